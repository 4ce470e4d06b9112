//! Which kernels answer an operation on a device, and the specializations that follow.

use super::tensor::{Tensor, in_quads};
use super::{Access, Capabilities, DeviceClass, Direction, Kernel, Specialization, Storage, Tiles, tile_table};
use crate::error::Error;
use crate::operand::Operand;
use crate::problem::{Algorithm, AttentionProblem, Element};

/// Kernels that share their tiles, and the tiles to try for them; of several such alternatives the first that fits is
/// taken.
pub(super) type Step = Vec<(&'static [Kernel], &'static [Tiles])>;

/// The steps of an operation, each to be answered by one of its alternatives.
pub(super) fn steps(problem: &AttentionProblem, capabilities: &Capabilities, direction: Direction) -> Vec<Step> {
    let shape = &problem.shape;
    let portable = tile_table::candidates(problem.algorithm, capabilities, shape);
    match (direction, problem.algorithm) {
        (Direction::Forward, Algorithm::Flash) => {
            vec![vec![
                (&[Kernel::FlashDecode], tile_table::decode_candidates(capabilities, shape)),
                (&[Kernel::FlashForwardCooperative], tile_table::cooperative_candidates(capabilities, problem)),
                (&[Kernel::FlashForward], portable),
            ]]
        }
        // A merge has one kernel and no tiles.
        (Direction::Merge, _) => Vec::new(),
        (Direction::Forward, Algorithm::Standard) => {
            vec![vec![(&[Kernel::StandardScores, Kernel::StandardSoftmax, Kernel::StandardOutput], portable)]]
        }
        (Direction::Backward, algorithm) => {
            let step = |kernels: &'static [Kernel]| -> Step {
                vec![(kernels, tile_table::backward_candidates(kernels[0], capabilities, shape))]
            };
            let either = |on_matrices: &'static [Kernel], kernels: &'static [Kernel]| -> Step {
                let candidates = tile_table::cooperative_backward_candidates(on_matrices[0], capabilities, problem);
                [(on_matrices, candidates)].into_iter().chain(step(kernels)).collect()
            };
            if algorithm == Algorithm::Standard {
                let kernels = &[
                    Kernel::StandardScores,
                    Kernel::StandardDp,
                    Kernel::StandardDs,
                    Kernel::StandardDv,
                    Kernel::StandardDk,
                    Kernel::StandardDq,
                ];
                return vec![step(&[Kernel::FlashBackwardPreprocess]), vec![(kernels, portable)]];
            }
            vec![
                step(&[Kernel::FlashBackwardPreprocess]),
                either(&[Kernel::FlashBackwardDkdvCooperative], &[Kernel::FlashBackwardDkdv]),
                either(&[Kernel::FlashBackwardDqCooperative], &[Kernel::FlashBackwardDq]),
            ]
        }
    }
}

/// Which of the caller's tiles are for this step: none for the rows' sums, the last for dQ, else the first.
pub(super) fn given_for(step: &Step, given: &[Tiles]) -> Option<Tiles> {
    let first = step.first().and_then(|(kernels, _)| kernels.first());
    match first {
        Some(Kernel::FlashBackwardPreprocess) => None,
        Some(kernel) if kernel.binds(Operand::Dq) => given.last().copied(),
        _ => given.first().copied(),
    }
}

/// The kernels that answer a step on this device, and their tiles.
pub(super) fn choose(
    step: &Step,
    problem: &AttentionProblem,
    capabilities: &Capabilities,
    given: Option<Tiles>,
    splits: Option<u32>,
) -> Result<(&'static [Kernel], Tiles), Error> {
    let can_split = |(kernels, _): &&(&'static [Kernel], _)| kernels[0].split().is_some();
    if splits.is_some_and(|splits| splits == 0 || (splits > 1 && !step.iter().any(|option| can_split(&option)))) {
        let reason = "only flash attention has splits, and there must be at least one".into();
        return Err(Error::Unsupported { feature: "splits of the keys", reason });
    }
    let step = step.iter().filter(|option| splits.is_none_or(|splits| splits == 1) || can_split(option));
    for &(kernels, candidates) in step {
        let fits = |tiles: &&Tiles| {
            let matrices = tiles.matrix_side.is_some();
            kernels.iter().all(|&kernel| kernel.uses_matrices() == matrices && tiles.fit(kernel, capabilities, problem))
        };
        if let Some(tiles) = given.as_ref().map_or(candidates, std::slice::from_ref).iter().find(fits) {
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
        row_reduce: tiles.row_reduce(capabilities),
        tiles,
        head_dim: shape.head_dim,
        head_dim_v: shape.head_dim_v,
        has_window: problem.mask.window_left.is_some() || problem.mask.window_right.is_some(),
        has_dropout: problem.dropout.is_some_and(|dropout| dropout.threshold() > 0),
        parts_in_f32: true,
        f32_gradients: problem.element != Element::F32 && problem.gradient_element_in_force() == Element::F32,
        masked_loop: capabilities.device_class != DeviceClass::Cpu,
        in_lockstep: capabilities.device_class == DeviceClass::Cpu,
    }
    .canonical()
}
