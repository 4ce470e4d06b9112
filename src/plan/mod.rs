//! Which kernels with which tiles and grids answer a problem on a device: pure, tested without a GPU.

mod capabilities;
mod check;
mod dispatch;
mod kernel;
mod params;
mod specialization;
mod tiles;

pub use capabilities::{Capabilities, DeviceClass};
pub use check::{MAX_HEAD_DIM, MAX_LENGTH};
pub use dispatch::{Call, Dispatch, Origins, Window};
pub use kernel::{Kernel, Operand, Usage};
pub use params::Params;
pub use specialization::{Access, RowReduce, Specialization, Storage};
pub use tiles::Tiles;

pub(crate) use tiles::SOFTMAX_INVOCATIONS;

use crate::error::Error;
use crate::problem::{Algorithm, AttentionProblem, AttentionShape, Element, TensorLayout};

/// One kernel of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Pass {
    /// The kernel.
    pub kernel: Kernel,
    /// Everything that its text depends on.
    pub specialization: Specialization,
}

/// The passes that answer a problem on a device, the scratch memory they need, and (through [`Plan::dispatches`]) the
/// grids and uniforms of each call.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    problem: AttentionProblem,
    capabilities: Capabilities,
    passes: Vec<Pass>,
    tiles: Tiles,
    scratch_bytes: u64,
}

impl Plan {
    /// Checks the problem and plans it.
    ///
    /// # Errors
    /// [`Error::InvalidProblem`] if it contradicts itself, [`Error::TooLarge`] if a tensor passes a limit of the device
    /// and no split helps, [`Error::Unsupported`] if no kernel fits the device.
    pub fn new(problem: &AttentionProblem, capabilities: &Capabilities) -> Result<Self, Error> {
        Self::build(problem, capabilities, None)
    }

    /// As [`Plan::new`], with tiles of the caller's choice instead of the table's: to measure, or to test one meaning
    /// under many tilings.
    ///
    /// # Errors
    /// Those of `new`; [`Error::Unsupported`] for tiles that make no kernel or don't fit the device.
    pub fn with_tiles(problem: &AttentionProblem, capabilities: &Capabilities, tiles: Tiles) -> Result<Self, Error> {
        Self::build(problem, capabilities, Some(tiles))
    }

    fn build(problem: &AttentionProblem, capabilities: &Capabilities, tiles: Option<Tiles>) -> Result<Self, Error> {
        check::check(problem)?;
        for operand in [Operand::Q, Operand::K, Operand::V, Operand::O, Operand::Lse] {
            let needed = check::required_bytes(problem, operand).unwrap_or(u64::MAX);
            if needed > capabilities.max_buffer {
                let allowed = capabilities.max_buffer;
                return Err(Error::TooLarge { operand, needed, allowed, limit: "max_buffer_size" });
            }
        }
        let AttentionShape { head_dim, head_dim_v, .. } = problem.shape;
        let kernels = |tiles: &Tiles| -> &'static [Kernel] {
            match problem.algorithm {
                Algorithm::Flash if tiles.matrix_side.is_some() => &[Kernel::FlashForwardCooperative],
                Algorithm::Flash => &[Kernel::FlashForward],
                Algorithm::Standard => &[Kernel::StandardScores, Kernel::StandardSoftmax, Kernel::StandardOutput],
            }
        };
        // Matrices hold f16: the wider range of bf16 does not fit them, the precision of f32 would be lost.
        let may_use_matrices = problem.algorithm == Algorithm::Flash && problem.element == Element::F16;
        let fits = |tiles: &&Tiles| {
            (tiles.matrix_side.is_none() || may_use_matrices)
                && tiles.fit(kernels(tiles), capabilities, head_dim, head_dim_v)
        };
        let cooperative = if may_use_matrices { tiles::cooperative_candidates(capabilities) } else { &[] };
        let portable = tiles::candidates(problem.algorithm, capabilities, &problem.shape);
        let chosen = match &tiles {
            Some(tiles) => Some(tiles).filter(fits),
            None => cooperative.iter().chain(portable).find(fits),
        };
        let Some(&tiles) = chosen else {
            return Err(Error::Unsupported {
                feature: "workgroups of this size",
                reason: format!(
                    "{} bytes of workgroup memory and {} invocations are allowed, WebGPU promises 16384 and 256; ask \
                     for a device with FlashAttention::device_descriptor",
                    capabilities.max_workgroup_storage, capabilities.max_invocations
                ),
            });
        };
        let passes = kernels(&tiles)
            .iter()
            .map(|&kernel| Pass { kernel, specialization: specialize(problem, capabilities, kernel, tiles) })
            .collect();
        let mut plan =
            Self { problem: problem.clone(), capabilities: capabilities.clone(), passes, tiles, scratch_bytes: 0 };
        plan.scratch_bytes = plan.measure_scratch()?;
        Ok(plan)
    }

    /// The problem it answers.
    pub fn problem(&self) -> &AttentionProblem {
        &self.problem
    }

    /// The device it was made for.
    pub fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    /// The kernels, in the order in which they run.
    pub fn passes(&self) -> &[Pass] {
        &self.passes
    }

    /// The tiles of all its kernels.
    pub fn tiles(&self) -> Tiles {
        self.tiles
    }

    /// Bytes of scratch memory: the score matrix of standard attention, or of as many heads and rows of it as one
    /// storage binding holds; 0 for flash.
    pub fn scratch_bytes(&self) -> u64 {
        self.scratch_bytes
    }

    /// Bytes of device memory beyond Q, K, V and O: LSE and scratch.
    pub fn extra_bytes(&self) -> u64 {
        self.scratch_bytes + 4 * self.problem.shape.lse_len()
    }

    /// Bytes that the buffer of `operand` must hold: whole 4-byte words.
    pub fn required_bytes(&self, operand: Operand) -> u64 {
        // `check` has seen that it does not overflow.
        check::required_bytes(&self.problem, operand).unwrap_or(u64::MAX)
    }

    /// Elements that the buffer of `operand` must hold.
    pub fn required_len(&self, operand: Operand) -> u64 {
        check::required_len(&self.problem, operand).unwrap_or(u64::MAX)
    }

    /// Bytes that the kernels read from and write to device memory, counted from the tiles: what one workgroup loads
    /// and stores, with no reuse between workgroups. Caches make the true number smaller.
    pub fn traffic_bytes(&self) -> u64 {
        let problem = &self.problem;
        let shape = &problem.shape;
        let size = problem.element.size();
        let (tile_q, tile_kv) = (u64::from(self.tiles.tile_q), u64::from(self.tiles.tile_kv));
        let (head_dim, head_dim_v) = (u64::from(shape.head_dim), u64::from(shape.head_dim_v));
        let heads = u64::from(shape.batch) * u64::from(shape.num_heads);

        // Pairs of a Q tile and a KV tile that are visited, in one head.
        let mut visits = 0u64;
        let mut row = 0;
        while row < shape.seqlen_q {
            let last = (row + self.tiles.tile_q).min(shape.seqlen_q) - 1;
            let end = u64::from(problem.visible_keys(last).end);
            let first = u64::from(problem.visible_keys(row).start).min(end);
            visits += end.div_ceil(tile_kv) - first / tile_kv;
            row += self.tiles.tile_q;
        }
        let rows = u64::from(shape.seqlen_q);
        let (q, o, lse) = (rows * head_dim * size, rows * head_dim_v * size, rows * 4);
        let (k, v) = (visits * tile_kv * head_dim * size, visits * tile_kv * head_dim_v * size);
        let q_again = visits * tile_q * head_dim * size;
        let s = visits * tile_q * tile_kv * 4;
        let per_head: u64 = self
            .passes
            .iter()
            .map(|pass| match pass.kernel {
                Kernel::FlashForward | Kernel::FlashForwardCooperative => q + k + v + o + lse,
                Kernel::StandardScores => q_again + k + s,
                // Read for the sums, read and written for the probabilities.
                Kernel::StandardSoftmax => 3 * s + lse,
                Kernel::StandardOutput => s + v + o,
            })
            .sum();
        per_head * heads
    }
}

fn specialize(problem: &AttentionProblem, capabilities: &Capabilities, kernel: Kernel, tiles: Tiles) -> Specialization {
    let layout = &problem.layout;
    let is_quad = |layout: &TensorLayout, dim: u32| {
        [layout.offset, layout.stride_batch, layout.stride_row, layout.stride_head, u64::from(dim)]
            .iter()
            .all(|number| number % 4 == 0)
    };
    let shape = &problem.shape;
    let quads = is_quad(&layout.q, shape.head_dim)
        && is_quad(&layout.k, shape.head_dim)
        && is_quad(&layout.v, shape.head_dim_v)
        && is_quad(&layout.o, shape.head_dim_v);
    Specialization {
        kernel,
        storage: Storage::of(problem.element, capabilities),
        access: if quads { Access::Quad } else { Access::Single },
        row_reduce: tiles.row_reduce(capabilities),
        tiles,
        head_dim: shape.head_dim,
        head_dim_v: shape.head_dim_v,
        has_window: problem.mask.window_left.is_some() || problem.mask.window_right.is_some(),
        has_dropout: problem.dropout.is_some_and(|dropout| dropout.threshold() > 0),
        in_lockstep: capabilities.device_class == DeviceClass::Cpu,
    }
    .canonical()
}
