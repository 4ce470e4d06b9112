//! How a call is cut into dispatches: part of the problem, grid, bindings and uniform of each.

use super::check::{self, Extent};
use super::{Kernel, Operand, Params, Pass, Plan};
use crate::error::Error;
use std::f64::consts::LOG2_E;

/// What may change from one call to the next without preparing again. `None` keeps what the problem says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Call {
    /// Another dropout seed. Without dropout in the problem it has no effect.
    pub philox_seed: Option<u64>,
    /// Another dropout offset.
    pub philox_offset: Option<u32>,
    /// Fewer rows of Q than the problem has. Strides stay those of the problem.
    pub seqlen_q: Option<u32>,
    /// Fewer keys than the problem has. Strides stay those of the problem.
    pub seqlen_kv: Option<u32>,
}

/// Where each tensor starts in its buffer, in bytes, indexed by `Operand as usize`.
pub type Origins = [u64; Operand::ALL.len()];

/// The part of a buffer that a dispatch binds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// The operand.
    pub operand: Operand,
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub size: u64,
}

/// One dispatch: a pass over a part of the problem.
#[derive(Clone, Debug, PartialEq)]
pub struct Dispatch {
    /// Index of its pass in [`Plan::passes`].
    pub pass: usize,
    /// Workgroups.
    pub grid: [u32; 2],
    /// The uniform.
    pub params: Params,
    /// The storage bindings.
    pub windows: Vec<Window>,
}

/// A window of this many keys or more is no limit: lengths end at 2²⁹.
const UNLIMITED: u32 = 1 << 30;

/// A part of the problem: ranges of sequences, heads and rows.
#[derive(Clone, Copy, Debug)]
struct Part {
    batch_first: u32,
    batch_count: u32,
    head_first: u32,
    head_count: u32,
    row_first: u32,
    row_count: u32,
}

/// The lengths of one call.
#[derive(Clone, Copy)]
struct Lengths {
    seqlen_q: u32,
    seqlen_kv: u32,
}

impl Plan {
    /// The dispatches of one call, in order; none where there is nothing to write.
    ///
    /// # Errors
    /// [`Error::LengthExceedsPrepared`].
    pub fn dispatches(&self, call: &Call, origins: &Origins) -> Result<Vec<Dispatch>, Error> {
        let shape = &self.problem.shape;
        let lengths = Lengths {
            seqlen_q: call.seqlen_q.unwrap_or(shape.seqlen_q),
            seqlen_kv: call.seqlen_kv.unwrap_or(shape.seqlen_kv),
        };
        for (name, found, prepared) in
            [("seqlen_q", lengths.seqlen_q, shape.seqlen_q), ("seqlen_kv", lengths.seqlen_kv, shape.seqlen_kv)]
        {
            if found > prepared {
                return Err(Error::LengthExceedsPrepared { name, found, prepared });
            }
        }
        if shape.batch == 0 || shape.num_heads == 0 || lengths.seqlen_q == 0 {
            return Ok(Vec::new());
        }
        let step = self.step(lengths, self.scratch_bytes)?;
        let mut dispatches = Vec::new();
        for batch_first in (0..shape.batch).step_by(step.batch_count as usize) {
            for head_first in (0..shape.num_heads).step_by(step.head_count as usize) {
                for row_first in (0..lengths.seqlen_q).step_by(step.row_count as usize) {
                    let part = Part {
                        batch_first,
                        batch_count: step.batch_count.min(shape.batch - batch_first),
                        head_first,
                        head_count: step.head_count.min(shape.num_heads - head_first),
                        row_first,
                        row_count: step.row_count.min(lengths.seqlen_q - row_first),
                    };
                    for (index, pass) in self.passes.iter().enumerate() {
                        // Without keys there are no scores to compute.
                        if self.workgroups(pass.kernel, &part, lengths) > 0 {
                            dispatches.push(self.dispatch(index, pass, call, lengths, part, origins));
                        }
                    }
                }
            }
        }
        Ok(dispatches)
    }

    /// Bytes of scratch for the largest part that a dispatch covers.
    pub(super) fn measure_scratch(&self) -> Result<u64, Error> {
        let shape = &self.problem.shape;
        let lengths = Lengths { seqlen_q: shape.seqlen_q, seqlen_kv: shape.seqlen_kv };
        if shape.batch == 0 || shape.num_heads == 0 || lengths.seqlen_q == 0 {
            return Ok(0);
        }
        let step = self.step(lengths, self.max_binding().min(self.capabilities.max_buffer))?;
        // An empty score matrix still needs something to bind.
        Ok(self.scratch_of(&step, lengths).max(if self.uses_scratch() { 16 } else { 0 }))
    }

    fn uses_scratch(&self) -> bool {
        self.passes.iter().any(|pass| pass.kernel.operands().iter().any(|&(operand, _)| operand == Operand::S))
    }

    fn scratch_of(&self, part: &Part, lengths: Lengths) -> u64 {
        if !self.uses_scratch() {
            return 0;
        }
        let rows = u64::from(part.batch_count) * u64::from(part.head_count) * u64::from(part.row_count);
        rows.saturating_mul(4 * u64::from(self.s_stride_row(lengths)))
    }

    fn s_stride_row(&self, lengths: Lengths) -> u32 {
        lengths.seqlen_kv.next_multiple_of(self.tiles.tile_kv)
    }

    /// The longest binding: a shader addresses its elements with 32 bits.
    fn max_binding(&self) -> u64 {
        self.capabilities.max_binding.min(u64::from(u32::MAX) - 3)
    }

    /// How much of the problem one dispatch takes: all of it, halved over sequences, then heads, then rows until every
    /// limit holds. The bound on work is given up at one Q tile; the others are errors there.
    fn step(&self, lengths: Lengths, max_scratch: u64) -> Result<Part, Error> {
        let shape = &self.problem.shape;
        let mut step = Part {
            batch_first: 0,
            batch_count: shape.batch,
            head_first: 0,
            head_count: shape.num_heads,
            row_first: 0,
            row_count: lengths.seqlen_q,
        };
        loop {
            let refusal = self.refusal(&step, lengths, max_scratch);
            let too_long = self.flops_at_most(&step, lengths) > self.problem.max_flops_per_dispatch.unwrap_or(u64::MAX);
            if refusal.is_none() && !too_long {
                return Ok(step);
            }
            let tile_q = self.tiles.tile_q;
            if step.batch_count > 1 {
                step.batch_count = step.batch_count.div_ceil(2);
            } else if step.head_count > 1 {
                step.head_count = step.head_count.div_ceil(2);
            } else if step.row_count > tile_q {
                step.row_count = step.row_count.div_ceil(2).next_multiple_of(tile_q);
                if step.row_count >= lengths.seqlen_q {
                    step.row_count = tile_q;
                }
            } else {
                return refusal.map_or(Ok(step), Err);
            }
        }
    }

    /// Which limit of the device a part of this size passes, if any.
    fn refusal(&self, part: &Part, lengths: Lengths, max_scratch: u64) -> Option<Error> {
        for operand in [Operand::Q, Operand::K, Operand::V, Operand::O, Operand::Lse] {
            let counts = self.extent_of(operand, part, lengths, true);
            let size = check::element_size(&self.problem, operand);
            // Bindings start at aligned offsets, up to one alignment before the tensor's first element.
            let needed = check::layout(&self.problem, operand)
                .required_len(counts.batch, counts.rows, counts.heads, counts.dim)
                .and_then(|len| (len - check::layout(&self.problem, operand).offset.min(len)).checked_mul(size))
                .and_then(|bytes| bytes.checked_add(self.capabilities.binding_alignment))
                .unwrap_or(u64::MAX);
            if needed > self.max_binding() {
                let limit = "max_storage_buffer_binding_size";
                return Some(Error::TooLarge { operand, needed, allowed: self.max_binding(), limit });
            }
        }
        let needed = self.scratch_of(part, lengths);
        if needed > max_scratch {
            let limit = "max_storage_buffer_binding_size";
            return Some(Error::TooLarge { operand: Operand::S, needed, allowed: max_scratch, limit });
        }
        let per_dimension = u64::from(self.capabilities.max_workgroups_per_dimension);
        let allowed = (per_dimension * per_dimension).min(u64::from(u32::MAX));
        for pass in &self.passes {
            let needed = self.workgroups(pass.kernel, part, lengths);
            if needed > allowed {
                return Some(Error::Unsupported {
                    feature: "grids of this size",
                    reason: format!(
                        "{} needs {needed} workgroups for one query tile, max_compute_workgroups_per_dimension = \
                         {per_dimension} allows {allowed}; make seqlen_kv smaller",
                        pass.kernel.name()
                    ),
                });
            }
        }
        None
    }

    fn flops_at_most(&self, part: &Part, lengths: Lengths) -> u64 {
        let shape = &self.problem.shape;
        let mask = &self.problem.mask;
        let window = match (mask.window_left, mask.window_right) {
            (Some(left), Some(right)) => u64::from(left) + u64::from(right) + 1,
            _ => u64::MAX,
        };
        let keys = window.min(u64::from(lengths.seqlen_kv));
        let rows = u64::from(part.batch_count) * u64::from(part.head_count) * u64::from(part.row_count);
        rows.saturating_mul(keys).saturating_mul(2 * u64::from(shape.head_dim + shape.head_dim_v))
    }

    fn workgroups(&self, kernel: Kernel, part: &Part, lengths: Lengths) -> u64 {
        let heads = u64::from(part.batch_count) * u64::from(part.head_count);
        let q_tiles = heads * u64::from(part.row_count.div_ceil(self.tiles.tile_q));
        match kernel {
            Kernel::FlashForward | Kernel::FlashForwardCooperative | Kernel::StandardOutput => q_tiles,
            Kernel::StandardScores => {
                q_tiles.saturating_mul(u64::from(self.s_stride_row(lengths) / self.tiles.tile_kv))
            }
            Kernel::StandardSoftmax => heads * u64::from(part.row_count),
        }
    }

    /// The extent of an operand within a part. KV heads are those of the part's query heads, or as many as a part of
    /// this size can touch wherever it starts.
    fn extent_of(&self, operand: Operand, part: &Part, lengths: Lengths, anywhere: bool) -> Extent {
        let Extent { dim, .. } = check::extent(&self.problem, operand);
        let batch = part.batch_count;
        match operand {
            Operand::K | Operand::V => {
                let heads_per_kv = self.heads_per_kv();
                let first = part.head_first / heads_per_kv;
                let last = (part.head_first + part.head_count - 1) / heads_per_kv;
                let heads = if anywhere {
                    ((part.head_count - 1).div_ceil(heads_per_kv) + 1).min(self.problem.shape.num_heads_kv)
                } else {
                    last - first + 1
                };
                Extent { batch, rows: lengths.seqlen_kv, heads, dim }
            }
            _ => Extent { batch, rows: part.row_count, heads: part.head_count, dim },
        }
    }

    fn heads_per_kv(&self) -> u32 {
        self.problem.shape.num_heads / self.problem.shape.num_heads_kv
    }

    /// The window of `operand` that holds a part, and the part's first element counted from the window's start. Empty
    /// tensors get an empty window.
    fn window(&self, operand: Operand, part: &Part, lengths: Lengths, origins: &Origins) -> (Window, u32) {
        let origin = origins[operand as usize];
        if operand == Operand::S {
            return (Window { operand, offset: origin, size: self.scratch_bytes }, 0);
        }
        let counts = self.extent_of(operand, part, lengths, false);
        let layout = check::layout(&self.problem, operand);
        let size = check::element_size(&self.problem, operand);
        let (first_row, first_head) = match operand {
            Operand::K | Operand::V => (0, part.head_first / self.heads_per_kv()),
            _ => (part.row_first, part.head_first),
        };
        // `check` and `refusal` have seen that none of this overflows.
        let len = layout.required_len(counts.batch, counts.rows, counts.heads, counts.dim).unwrap_or(0);
        if len == 0 {
            return (Window { operand, offset: 0, size: 0 }, 0);
        }
        let start = origin + layout.index(part.batch_first, first_row, first_head) * size;
        let end = start + (len - layout.offset) * size;
        let offset = start / self.capabilities.binding_alignment * self.capabilities.binding_alignment;
        let window = Window { operand, offset, size: (end - offset).next_multiple_of(4) };
        (window, ((start - offset) / size) as u32)
    }

    fn dispatch(
        &self,
        index: usize,
        pass: &Pass,
        call: &Call,
        lengths: Lengths,
        part: Part,
        origins: &Origins,
    ) -> Dispatch {
        let problem = &self.problem;
        let layout = &problem.layout;
        let shape = &problem.shape;
        // Strides along a dimension of which the part holds one entry are never used and may pass 32 bits.
        let stride = |stride: u64| stride as u32;
        let workgroups = self.workgroups(pass.kernel, &part, lengths);
        let width = workgroups.min(u64::from(self.capabilities.max_workgroups_per_dimension));
        let grid = [width as u32, workgroups.div_ceil(width) as u32];
        let windows = Operand::ALL.map(|operand| self.window(operand, &part, lengths, origins));
        let place = |operand: Operand| windows[operand as usize].1;
        let dropout = problem.dropout;
        let seed = call.philox_seed.or(dropout.map(|dropout| dropout.philox_seed)).unwrap_or(0);
        let window = |limit: Option<u32>| limit.unwrap_or(UNLIMITED).min(UNLIMITED) as i32;
        let params = Params {
            seqlen_q: lengths.seqlen_q,
            seqlen_kv: lengths.seqlen_kv,
            heads_per_kv: self.heads_per_kv(),
            num_heads: shape.num_heads,
            batch_first: part.batch_first,
            batch_count: part.batch_count,
            head_first: part.head_first,
            head_count: part.head_count,
            row_first: part.row_first,
            row_count: part.row_count,
            grid_width: grid[0],
            mask_offset: problem.mask.offset(lengths.seqlen_q, lengths.seqlen_kv) as i32,
            window_left: window(problem.mask.window_left),
            window_right: window(problem.mask.window_right),
            softmax_scale_log2: (problem.softmax_scale() * LOG2_E) as f32,
            dropout_threshold: dropout.map_or(0, |dropout| dropout.threshold()),
            dropout_scale: dropout.map_or(1.0, |dropout| dropout.keep_scale() as f32),
            philox_seed_low: seed as u32,
            philox_seed_high: (seed >> 32) as u32,
            philox_offset: call.philox_offset.or(dropout.map(|dropout| dropout.philox_offset)).unwrap_or(0),
            negative_infinity: f32::NEG_INFINITY,
            q_offset: place(Operand::Q),
            q_stride_batch: stride(layout.q.stride_batch),
            q_stride_row: stride(layout.q.stride_row),
            q_stride_head: stride(layout.q.stride_head),
            k_offset: place(Operand::K),
            k_stride_batch: stride(layout.k.stride_batch),
            k_stride_row: stride(layout.k.stride_row),
            k_stride_head: stride(layout.k.stride_head),
            v_offset: place(Operand::V),
            v_stride_batch: stride(layout.v.stride_batch),
            v_stride_row: stride(layout.v.stride_row),
            v_stride_head: stride(layout.v.stride_head),
            o_offset: place(Operand::O),
            o_stride_batch: stride(layout.o.stride_batch),
            o_stride_row: stride(layout.o.stride_row),
            o_stride_head: stride(layout.o.stride_head),
            lse_offset: place(Operand::Lse),
            lse_stride_batch: stride(check::layout(problem, Operand::Lse).stride_batch),
            lse_stride_head: stride(check::layout(problem, Operand::Lse).stride_head),
            s_stride_row: self.s_stride_row(lengths),
            ..Params::default()
        };
        let windows = pass.kernel.operands()[1..].iter().map(|&(operand, _)| windows[operand as usize].0).collect();
        Dispatch { pass: index, grid, params, windows }
    }
}
