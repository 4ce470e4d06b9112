//! Which kernels answer an operation on a device, and the specializations that follow.

use super::capabilities::{Capabilities, DeviceClass};
use super::direction::Direction;
use super::kernels::{Access, Kernel, RowReduce, ScoreMods, Specialization, Storage};
use super::tensor::{Tensor, in_quads};
use super::tiles::Tiles;
use crate::error::Error;
use crate::problem::{Algorithm, AttentionProblem, Element};

/// Kernels that run one after another on the same tiles, or others in their place: of such alternatives the first that
/// fits is taken.
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
                let alternatives: &[&[Kernel]] =
                    &[&[Kernel::FlashDecode], &[Kernel::FlashForwardCooperative], &[Kernel::FlashForward]];
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
        // One kernel, and no tiles.
        (Direction::Merge, _) => &[],
    }
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
    let none_splits = || !step.alternatives.iter().any(|kernels| can_split(kernels));
    if splits.is_some_and(|splits| splits == 0 || (splits > 1 && none_splits())) {
        let reason = "only flash attention has splits, and there must be at least one".into();
        return Err(Error::Unsupported { feature: "splits of the keys", reason });
    }
    for &kernels in step.alternatives.iter().filter(|kernels| splits.is_none_or(|n| n == 1) || can_split(kernels)) {
        let candidates = (kernels[0].spec().candidates)(capabilities, problem);
        let fit = |tiles: &&Tiles| kernels.iter().all(|&kernel| fits(kernel, **tiles, problem, capabilities, tensors));
        if let Some(tiles) = given.as_ref().map_or(candidates, std::slice::from_ref).iter().find(fit) {
            return Ok((kernels, *tiles));
        }
    }
    Err(Error::Unsupported {
        feature: "workgroups of this size",
        reason: format!(
            "{} bytes of workgroup memory and {} invocations are allowed, WebGPU promises 16384 and 256; ask for a device \
             with FlashAttention::device_descriptor",
            capabilities.max_workgroup_storage, capabilities.max_invocations
        ),
    })
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
        access: if in_quads(tensors) { Access::Quad } else { Access::Single },
        row_reduce: RowReduce::of(tiles, capabilities),
        tiles,
        head_dim: shape.head_dim,
        head_dim_v: shape.head_dim_v,
        has_window: problem.mask.window_left.is_some() || problem.mask.window_right.is_some(),
        has_dropout: problem.dropout.is_some_and(|dropout| dropout.threshold() > 0),
        score_mods: ScoreMods::of(problem),
        parts_in_f32: true,
        f32_gradients: problem.element != Element::F32 && problem.gradient_element_in_force() == Element::F32,
        masked_loop: capabilities.device_class != DeviceClass::Cpu,
        in_lockstep: capabilities.device_class == DeviceClass::Cpu,
    }
    .canonical()
}
