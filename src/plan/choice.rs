//! Which kernels answer an operation on a device, and the specializations that follow.

use super::capabilities::{Capabilities, DeviceClass};
use super::direction::Direction;
use super::kernels::{Access, CachedText, Chain, Kernel, LengthsAtCall, OwnWgsl, RowReduce, Specialization, Storage};
use super::splits::is_long_sum;
use super::tensor::{Tensor, in_quads};
use super::tiles::Tiles;
use crate::error::Error;
use crate::problem::{Algorithm, AttentionProblem, Element, KeyMask, ScoreMod};

/// Kernels that run one after another on the same tiles. If there are alternatives, the first that fits is taken.
pub(super) struct Step {
    alternatives: &'static [&'static [Kernel]],
    /// Which of the caller's tiles are for it, if any.
    pub tiles: Option<usize>,
}

/// The steps of an operation.
pub(super) fn steps(direction: Direction, algorithm: Algorithm) -> &'static [Step] {
    const PREPROCESS: Step = Step { alternatives: &[&[Kernel::FlashBackwardPreprocess]], tiles: None };
    match (direction, algorithm) {
        (Direction::Forward, Algorithm::Flash) => {
            const {
                let alternatives: &[&[Kernel]] = &[
                    &[Kernel::FlashDecode],
                    &[Kernel::FlashForwardCooperativePacked],
                    &[Kernel::FlashForwardCooperative],
                    &[Kernel::FlashForward],
                ];
                &[Step { alternatives, tiles: Some(0) }]
            }
        }
        (Direction::Forward, Algorithm::Standard) => {
            const {
                let alternatives: &[&[Kernel]] =
                    &[&[Kernel::StandardScores, Kernel::StandardSoftmax, Kernel::StandardOutput]];
                &[Step { alternatives, tiles: Some(0) }]
            }
        }
        (Direction::Backward, Algorithm::Flash) => {
            const {
                let dkdv: &[&[Kernel]] = &[&[Kernel::FlashBackwardDkdvCooperative], &[Kernel::FlashBackwardDkdv]];
                let dq: &[&[Kernel]] = &[&[Kernel::FlashBackwardDqCooperative], &[Kernel::FlashBackwardDq]];
                &[PREPROCESS, Step { alternatives: dkdv, tiles: Some(0) }, Step { alternatives: dq, tiles: Some(1) }]
            }
        }
        (Direction::Backward, Algorithm::Standard) => {
            const {
                let alternatives: &[&[Kernel]] = &[&[
                    Kernel::StandardScores,
                    Kernel::StandardDp,
                    Kernel::StandardDs,
                    Kernel::StandardDv,
                    Kernel::StandardDk,
                    Kernel::StandardDq,
                ]];
                &[PREPROCESS, Step { alternatives, tiles: Some(0) }]
            }
        }
        (Direction::Probabilities, _) => {
            const {
                let alternatives: &[&[Kernel]] = &[&[Kernel::Probabilities]];
                &[Step { alternatives, tiles: Some(0) }]
            }
        }
        // Kernels without tiles.
        (Direction::Merge | Direction::Append, _) => &[],
    }
}

/// The step that comes before those, where a call says how long its sequences are.
pub(super) fn first_step(problem: &AttentionProblem) -> Option<&'static Step> {
    const SEQUENCES: Step = Step { alternatives: &[&[Kernel::Sequences]], tiles: None };
    problem.has_lengths_at_call().then_some(const { &SEQUENCES })
}

/// The steps that come after those, for what else of a problem has a gradient.
pub(super) fn more_steps(direction: Direction, problem: &AttentionProblem) -> impl Iterator<Item = &'static Step> {
    const SINK: Step = Step { alternatives: &[&[Kernel::BackwardSink]], tiles: None };
    const BIAS: Step = Step { alternatives: &[&[Kernel::FlashBackwardDbias]], tiles: None };
    const SUMS: Step = Step { alternatives: &[&[Kernel::FlashBackwardDbiasSums]], tiles: None };
    const ROUND: Step = Step { alternatives: &[&[Kernel::RoundDbias]], tiles: None };
    let sink: &[Step] = if problem.has_sink() { const { &[SINK] } } else { &[] };
    let bias: &[Step] = match problem.bias_gradient() {
        Some((_, Element::F32)) => const { &[BIAS] },
        Some(_) => const { &[SUMS, ROUND] },
        None => &[],
    };
    sink.iter().chain(bias).filter(move |_| direction == Direction::Backward)
}

/// The kernels that answer a step on this device, and their tiles.
pub(super) fn choose(
    step: &Step,
    problem: &AttentionProblem,
    capabilities: &Capabilities,
    tensors: &[Tensor],
    given: Option<Tiles>,
    splits: Option<u32>,
) -> Result<(&'static [Kernel], Tiles), Error> {
    let can_split = |kernels: &[Kernel]| kernels[0].spec().split.is_some();
    let serves = |kernels: &[Kernel]| (kernels[0].spec().serves)(problem);
    let alternatives = || {
        let all = step.alternatives.iter().filter(|kernels| serves(kernels));
        all.filter(|kernels| splits.is_none_or(|n| n == 1) || can_split(kernels))
    };
    for &kernels in alternatives() {
        let candidates = (kernels[0].spec().candidates)(capabilities, problem);
        let fit = |tiles: &&Tiles| kernels.iter().all(|&kernel| fits(kernel, **tiles, problem, capabilities, tensors));
        if let Some(tiles) = given.as_ref().map_or(candidates, std::slice::from_ref).iter().find(fit) {
            return Ok((kernels, *tiles));
        }
    }
    let exist = |tiles: Tiles| {
        let is_sound = |kernel| specialize(problem, capabilities, tensors, kernel, tiles).is_sound();
        alternatives().any(|kernels| kernels.iter().all(|&kernel| is_sound(kernel)))
    };
    match given {
        Some(tiles) if !exist(tiles) => Err(Error::InvalidPlan {
            what: "tiles",
            reason: format!("no kernel of this operation has the tiles {tiles} ({tiles:?})"),
        }),
        Some(tiles) => Err(Error::Unsupported {
            feature: "these tiles",
            reason: format!("{tiles} ({tiles:?}) take more than the device has: {}", abilities(capabilities)),
        }),
        None => Err(Error::Unsupported {
            feature: "workgroups of this size",
            reason: format!(
                "{}; WebGPU promises 16384 bytes and 256 invocations; ask for a device with \
                 FlashAttention::device_descriptor",
                abilities(capabilities)
            ),
        }),
    }
}

/// What of a device decides which tiles fit it.
fn abilities(capabilities: &Capabilities) -> String {
    let Capabilities { max_workgroup_storage, max_invocations, subgroups, .. } = capabilities;
    let subgroups = match (subgroups, capabilities.subgroup_min_size, capabilities.subgroup_max_size) {
        (false, ..) => "no subgroups".to_owned(),
        (true, min, max) if min == max => format!("subgroups of {min}"),
        (true, min, max) => format!("subgroups of {min} to {max}"),
    };
    let matrices = capabilities.matrix_side.map_or("no matrices".to_owned(), |side| format!("{side}x{side} matrices"));
    format!("{max_workgroup_storage} bytes of workgroup memory, {max_invocations} invocations, {subgroups}, {matrices}")
}

/// Whether a kernel with these tiles fits problem and device.
pub(super) fn fits(
    kernel: Kernel,
    tiles: Tiles,
    problem: &AttentionProblem,
    capabilities: &Capabilities,
    tensors: &[Tensor],
) -> bool {
    kernel.spec().fits(&specialize(problem, capabilities, tensors, kernel, tiles), capabilities)
}

pub(super) fn specialize(
    problem: &AttentionProblem,
    capabilities: &Capabilities,
    tensors: &[Tensor],
    kernel: Kernel,
    tiles: Tiles,
) -> Specialization {
    let shape = &problem.shape;
    Specialization {
        kernel,
        storage: Storage::of(problem.element, capabilities),
        access: if in_quads(problem, tensors) { Access::Quad } else { Access::Single },
        row_reduce: RowReduce::of(tiles, capabilities),
        tiles,
        head_dim: shape.head_dim,
        head_dim_v: shape.head_dim_v,
        has_window: problem.mask.window_left.is_some()
            || problem.mask.window_right.is_some()
            || problem.lengths().is_some_and(|lengths| lengths.kv.packed.is_none())
            || !problem.key_masks().is_empty(),
        has_dropout: problem.dropout.is_some_and(|dropout| dropout.threshold() > 0),
        score_mods: Chain::of(problem.scores().iter().map(|modifier| (modifier.name(), modifier.reads()))),
        has_sink: problem.has_sink(),
        // Lists are made before a call says which rows and keys there are. Without them a block mask is a mask like others.
        has_lists: problem.key_masks().iter().any(|mask| matches!(mask, KeyMask::Blocks(_)))
            && !problem.has_lengths_at_call(),
        has_lengths: problem.lengths().is_some(),
        packed_q: problem.lengths().is_some_and(|lengths| lengths.q.packed.is_some()),
        packed_kv: problem.lengths().is_some_and(|lengths| lengths.kv.packed.is_some()),
        lengths_at_call: LengthsAtCall::of(problem),
        key_masks: Chain::of(problem.key_masks().iter().map(|mask| (mask.name(), mask.reads()))),
        wgsl: OwnWgsl::of(problem),
        bias_element: problem.scores().iter().find_map(ScoreMod::bias_element),
        bias_in_quads: problem.scores().iter().any(|modifier| modifier.has_bias_in_quads(shape)),
        parts_in_f32: true,
        append: None,
        cached: CachedText::of(problem),
        f32_gradients: problem.gradient_element() == Element::F32
            && (problem.element != Element::F32 || problem.adds_gradients),
        adds_gradients: problem.adds_gradients,
        f32_output: problem.element != Element::F32 && problem.output_element() == Element::F32,
        has_place: problem.shard.is_some(),
        masked_loop: capabilities.device_class != DeviceClass::Cpu,
        has_long_sums: is_long_sum(problem, kernel.spec().owns),
        in_lockstep: capabilities.device_class == DeviceClass::Cpu,
        shares_buffers: false,
    }
    .canonical()
}
