//! How a call is cut into dispatches: part of the problem, grid, bindings and uniform of each.

use super::check::{self, Extent};
use super::parts::{Lengths, Part};
use super::splits::heads_per_kv;
use super::{Operand, Params, Plan};
use crate::error::{Error, InvalidProblem};
use crate::problem::TensorLayout;
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

/// Where each tensor starts in its buffer, in bytes, indexed by `Operand as usize`; `None` for those that the caller did
/// not give.
pub type Origins = [Option<u64>; Operand::ALL.len()];

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
    /// Turns of all loops that an invocation takes at most.
    pub turns: u64,
    /// The uniform.
    pub params: Params,
    /// The storage bindings.
    pub windows: Vec<Window>,
}

/// A window of this many keys or more is no limit: lengths end at 2²⁹.
const UNLIMITED: u32 = 1 << 30;

impl Plan {
    /// The dispatches of one call, in order; none where there is nothing to write.
    ///
    /// # Errors
    /// [`Error::LengthExceedsPrepared`]; [`Error::InvalidProblem`] if a tensor ends past 2⁶⁴ bytes.
    pub fn dispatches(&self, call: &Call, origins: &Origins) -> Result<Vec<Dispatch>, Error> {
        let shape = &self.problem.shape;
        let seqlen_q = call.seqlen_q.unwrap_or(shape.seqlen_q);
        let seqlen_kv = call.seqlen_kv.unwrap_or(shape.seqlen_kv);
        for (name, found, prepared) in
            [("seqlen_q", seqlen_q, shape.seqlen_q), ("seqlen_kv", seqlen_kv, shape.seqlen_kv)]
        {
            if found > prepared {
                return Err(Error::LengthExceedsPrepared { name, found, prepared });
            }
        }
        for &operand in self.direction.operands() {
            // No tensor is larger than a buffer, which is quicker to ask.
            let origin = origins[operand as usize].unwrap_or(0);
            if origin.checked_add(self.capabilities.max_buffer).is_none()
                && origin.checked_add(self.required_bytes(operand)).is_none()
            {
                return Err(InvalidProblem::LayoutOverflows(operand).into());
            }
        }
        let lengths = Lengths::new(shape, seqlen_q, seqlen_kv);
        let mut dispatches = Vec::new();
        for stage in self.stages() {
            for part in self.parts(&stage, lengths)? {
                for index in stage.clone() {
                    // Without keys there are no scores to compute.
                    if self.workgroups(index, &part, lengths) > 0 {
                        dispatches.push(self.dispatch(index, call, lengths, part, origins));
                    }
                }
            }
        }
        Ok(dispatches)
    }

    /// The extent of an operand within a part. KV heads are those of the part's query heads, or as many as a part of
    /// this size can touch wherever it starts.
    pub(super) fn extent_of(&self, operand: Operand, part: &Part, anywhere: bool) -> Extent {
        let Extent { dim, .. } = check::extent(&self.problem, operand);
        let batch = part.batch_count;
        match operand {
            Operand::K | Operand::V | Operand::Dk | Operand::Dv => {
                let heads_per_kv = heads_per_kv(&self.problem);
                let first = part.head_first / heads_per_kv;
                let last = (part.head_first + part.head_count - 1) / heads_per_kv;
                let heads = if anywhere {
                    ((part.head_count - 1).div_ceil(heads_per_kv) + 1).min(self.problem.shape.num_heads_kv)
                } else {
                    last - first + 1
                };
                Extent { batch, rows: part.key_count, heads, dim }
            }
            // No tensors, and what does not fit of scratch is told by `refusal`.
            Operand::Params | Operand::S | Operand::Dp => Extent { batch, rows: 0, heads: 0, dim },
            Operand::OParts | Operand::LseParts if self.merge.is_none() || self.num_splits == 0 => {
                Extent { batch, rows: 0, heads: 0, dim }
            }
            _ => Extent { batch, rows: part.row_count, heads: part.head_count, dim },
        }
    }

    /// The window of `operand` that holds a part, and the part's first element counted from the window's start. Empty
    /// tensors get an empty window.
    fn window(&self, operand: Operand, part: &Part, origins: &Origins) -> (Window, u32) {
        if let Some(&(_, size)) = self.scratch.iter().find(|(other, _)| *other == operand)
            && operand != Operand::Delta
        {
            return (Window { operand, offset: 0, size }, 0);
        }
        let nothing = (Window { operand, offset: 0, size: 0 }, 0);
        let origin = origins[operand as usize];
        if operand == Operand::DLse && origin.is_none() {
            return nothing;
        }
        // Scratch buffers start at 0.
        let origin = origin.unwrap_or(0);
        let counts = self.extent_of(operand, part, false);
        let layout = self.layout(operand);
        let size = self.element_size(operand);
        let (first_row, first_head) = match operand {
            Operand::K | Operand::V | Operand::Dk | Operand::Dv => {
                (part.key_first, part.head_first / heads_per_kv(&self.problem))
            }
            _ => (part.row_first, part.head_first),
        };
        // `check` and `refusal` have seen that none of this overflows.
        let len = layout.required_len(counts.batch, counts.rows, counts.heads, counts.dim).unwrap_or(0);
        if len == 0 {
            return nothing;
        }
        let start = origin + layout.index(part.batch_first, first_row, first_head) * size;
        let end = start + (len - layout.offset + self.span_of_splits(operand).unwrap_or(0)) * size;
        let offset = start / self.binding_alignment() * self.binding_alignment();
        let window = Window { operand, offset, size: (end - offset).next_multiple_of(4) };
        (window, ((start - offset) / size) as u32)
    }

    fn dispatch(&self, index: usize, call: &Call, lengths: Lengths, part: Part, origins: &Origins) -> Dispatch {
        let problem = &self.problem;
        let shape = &problem.shape;
        let workgroups = self.workgroups(index, &part, lengths);
        let width = workgroups.min(u64::from(self.capabilities.max_workgroups_per_dimension));
        let grid = [width as u32, workgroups.div_ceil(width) as u32];
        let operands = self.passes[index].kernel.operands()[1..].iter();
        let windows: Vec<(Window, u32)> = operands.map(|&(operand, _)| self.window(operand, &part, origins)).collect();
        let place = |operand: Operand| {
            windows.iter().find(|(window, _)| window.operand == operand).map_or(0, |(_, place)| *place)
        };
        let layout = |operand| Strides::of(check::layout(problem, operand));
        let [q, k, v, o, lse] = [Operand::Q, Operand::K, Operand::V, Operand::O, Operand::Lse].map(layout);
        let [d_o, dq, dk, dv] = [Operand::DO, Operand::Dq, Operand::Dk, Operand::Dv].map(layout);
        let results = self.partial_results(&part);
        let (o_parts, lse_parts) = (Strides::of(results.o), Strides::of(results.lse));
        let dropout = problem.dropout;
        let seed = call.philox_seed.or(dropout.map(|dropout| dropout.philox_seed)).unwrap_or(0);
        let window = |limit: Option<u32>| limit.unwrap_or(UNLIMITED).min(UNLIMITED) as i32;
        let params = Params {
            seqlen_q: lengths.seqlen_q,
            seqlen_kv: lengths.seqlen_kv,
            heads_per_kv: heads_per_kv(problem),
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
            q_stride_batch: q.batch,
            q_stride_row: q.row,
            q_stride_head: q.head,
            k_offset: place(Operand::K),
            k_stride_batch: k.batch,
            k_stride_row: k.row,
            k_stride_head: k.head,
            v_offset: place(Operand::V),
            v_stride_batch: v.batch,
            v_stride_row: v.row,
            v_stride_head: v.head,
            o_offset: place(Operand::O),
            o_stride_batch: o.batch,
            o_stride_row: o.row,
            o_stride_head: o.head,
            lse_offset: place(Operand::Lse),
            lse_stride_batch: lse.batch,
            lse_stride_head: lse.head,
            s_stride_row: self.s_stride_row(lengths),
            key_first: part.key_first,
            key_count: part.key_count,
            has_d_lse: u32::from(origins[Operand::DLse as usize].is_some()),
            d_lse_offset: place(Operand::DLse),
            delta_offset: place(Operand::Delta),
            d_o_offset: place(Operand::DO),
            d_o_stride_batch: d_o.batch,
            d_o_stride_row: d_o.row,
            d_o_stride_head: d_o.head,
            dq_offset: place(Operand::Dq),
            dq_stride_batch: dq.batch,
            dq_stride_row: dq.row,
            dq_stride_head: dq.head,
            dk_offset: place(Operand::Dk),
            dk_stride_batch: dk.batch,
            dk_stride_row: dk.row,
            dk_stride_head: dk.head,
            dv_offset: place(Operand::Dv),
            dv_stride_batch: dv.batch,
            dv_stride_row: dv.row,
            dv_stride_head: dv.head,
            num_splits: self.splits_of(lengths),
            o_parts_offset: place(Operand::OParts),
            o_parts_stride_split: results.o_stride_split as u32,
            o_parts_stride_batch: o_parts.batch,
            o_parts_stride_row: o_parts.row,
            o_parts_stride_head: o_parts.head,
            lse_parts_offset: place(Operand::LseParts),
            lse_parts_stride_split: results.lse_stride_split as u32,
            lse_parts_stride_batch: lse_parts.batch,
            lse_parts_stride_head: lse_parts.head,
        };
        let windows = windows.into_iter().map(|(window, _)| window).collect();
        Dispatch { pass: index, grid, turns: self.turns(index, lengths), params, windows }
    }
}

/// The strides of a tensor as the uniform holds them. Those along a dimension of which a part holds one entry are never
/// used and may pass 32 bits.
struct Strides {
    batch: u32,
    row: u32,
    head: u32,
}

impl Strides {
    fn of(layout: TensorLayout) -> Self {
        Self { batch: layout.stride_batch as u32, row: layout.stride_row as u32, head: layout.stride_head as u32 }
    }
}
