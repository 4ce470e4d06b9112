//! The dispatches of a call: part of the problem, grid, bindings and uniform of each.

use super::direction::Direction;
use super::params::Params;
use super::part::{Lengths, Part};
use super::passes::Plan;
use super::tensor::{Follows, Tensor};
use crate::error::{Error, InvalidProblem};
use crate::operand::Operand;
use crate::problem::Shard;
use std::f64::consts::LOG2_E;

/// What may change from one call to the next without a new preparation. `None` keeps the value of the problem.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[must_use]
#[non_exhaustive]
pub struct Call {
    /// Another dropout seed. Without dropout in the problem it has no effect.
    pub philox_seed: Option<u64>,
    /// Another dropout offset.
    pub philox_offset: Option<u32>,
    /// Fewer rows of Q than the problem has. Strides stay those of the problem.
    pub seqlen_q: Option<u32>,
    /// Fewer keys than the problem has. Strides stay those of the problem.
    pub seqlen_kv: Option<u32>,
    /// Another first row in the larger problem that this one is a [part](crate::Shard) of.
    pub first_row: Option<u32>,
    /// Another first key in it.
    pub first_key: Option<u32>,
}

impl Call {
    /// A call that changes nothing.
    pub const fn new() -> Self {
        Self {
            philox_seed: None,
            philox_offset: None,
            seqlen_q: None,
            seqlen_kv: None,
            first_row: None,
            first_key: None,
        }
    }

    /// Draws dropout with another seed.
    pub const fn with_philox_seed(mut self, philox_seed: u64) -> Self {
        self.philox_seed = Some(philox_seed);
        self
    }

    /// Draws dropout at another offset.
    pub const fn with_philox_offset(mut self, philox_offset: u32) -> Self {
        self.philox_offset = Some(philox_offset);
        self
    }

    /// Takes fewer rows of Q than the problem has.
    pub const fn with_seqlen_q(mut self, seqlen_q: u32) -> Self {
        self.seqlen_q = Some(seqlen_q);
        self
    }

    /// Takes fewer keys than the problem has.
    pub const fn with_seqlen_kv(mut self, seqlen_kv: u32) -> Self {
        self.seqlen_kv = Some(seqlen_kv);
        self
    }

    /// Takes rows and keys that begin elsewhere in the larger problem. The problem must be a [part](crate::Shard) of one.
    pub const fn with_place(mut self, first_row: u32, first_key: u32) -> Self {
        (self.first_row, self.first_key) = (Some(first_row), Some(first_key));
        self
    }
}

/// The byte at which each of the caller's tensors starts in its buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct Origins([Option<u64>; Operand::ALL.len()]);

impl Default for Origins {
    fn default() -> Self {
        Self([None; Operand::ALL.len()])
    }
}

impl Origins {
    /// The tensor is given, and starts at this byte.
    pub fn with(mut self, operand: Operand, byte: u64) -> Self {
        self.0[operand as usize] = Some(byte);
        self
    }

    /// The first byte of a tensor; `None` for one that was not given.
    pub fn get(&self, operand: Operand) -> Option<u64> {
        self.0[operand as usize]
    }
}

/// The part of a buffer that a dispatch binds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
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
#[non_exhaustive]
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
    /// [`Error::LengthExceedsPrepared`]; [`Error::InvalidProblem`] if a tensor ends past 2⁶⁴ bytes, or for a place outside the
    /// larger problem.
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
        let shard = self.shard_of(call, [seqlen_q, seqlen_kv])?;
        let is_other = [seqlen_q, seqlen_kv] != [shape.seqlen_q, shape.seqlen_kv];
        if is_other && self.passes.iter().any(|pass| pass.specialization.has_lists) {
            return Err(Error::Unsupported {
                feature: "other lengths with a block mask",
                reason: "its lists of tiles are for the lengths that were prepared; prepare an operation for these"
                    .into(),
            });
        }
        for operand in self.operands() {
            // No tensor is larger than a buffer. This is quicker to check.
            let origin = origins.get(operand).unwrap_or(0);
            if origin.checked_add(self.capabilities.max_buffer).is_none()
                && origin.checked_add(self.required_bytes(operand)).is_none()
            {
                return Err(InvalidProblem::LayoutOverflows(operand).into());
            }
        }
        let lengths = match self.direction {
            // Padded, they have all rows and keys, though packed tensors may have none.
            Direction::Probabilities => Lengths { seqlen_q, seqlen_kv },
            _ => Lengths::new(&self.problem, seqlen_q, seqlen_kv),
        };
        let mut dispatches = Vec::new();
        for stage in &self.stages {
            for part in self.parts(stage, self.covered(stage, lengths))? {
                for index in stage.passes.clone() {
                    if let Some(chunks) = self.visits_chunks(index) {
                        let of_part = (lengths, part);
                        dispatches.extend(self.dispatches_of_chunks(index, call, of_part, origins, chunks));
                        continue;
                    }
                    // Without keys there are no scores to compute.
                    if self.workgroups(index, &part, lengths) > 0 {
                        dispatches.push(self.dispatch(index, call, shard, lengths, part, origins));
                    }
                }
            }
        }
        Ok(dispatches)
    }

    /// Where the rows and keys of a call stand in a larger problem.
    fn shard_of(&self, call: &Call, lengths: [u32; 2]) -> Result<Option<Shard>, Error> {
        let refuse = |reason| Err(InvalidProblem::Shard { reason }.into());
        let Some(mut shard) = self.problem.shard else {
            let is_placed = call.first_row.or(call.first_key).is_some();
            let reason = "the call has a place in a larger problem; say by with_shard what that is";
            return if is_placed { refuse(reason.into()) } else { Ok(None) };
        };
        shard.first_row = call.first_row.unwrap_or(shard.first_row);
        shard.first_key = call.first_key.unwrap_or(shard.first_key);
        shard.fault(&self.problem, lengths).map_or(Ok(Some(shard)), refuse)
    }

    /// One pass over a part.
    pub(super) fn dispatch(
        &self,
        index: usize,
        call: &Call,
        shard: Option<Shard>,
        lengths: Lengths,
        part: Part,
        origins: &Origins,
    ) -> Dispatch {
        let is_given = |tensor: &&Tensor| !tensor.optional || origins.get(tensor.operand).is_some();
        let given = self.tensors.iter().filter(is_given).copied();
        let tensors: Vec<Tensor> = given.chain(self.scratch_tensors(&part, lengths)).collect();
        let grid = self.grid(index, &part, lengths);
        let mut params = Params { grid_width: grid[0], ..self.params(call, shard, lengths, &part) };
        let mut offsets = [0; Operand::ALL.len()];
        let mut windows = Vec::new();
        for (operand, _) in self.passes[index].specialization.operands().skip(1) {
            // Tables are the same for all parts; an optional tensor may not be there.
            let size = if operand == Operand::Tables { self.bytes_in_scratch(operand) } else { 0 };
            let nothing = (Window { operand, offset: 0, size }, 0);
            let tensor = tensors.iter().find(|tensor| tensor.operand == operand);
            let (window, offset) = tensor.map_or(nothing, |tensor| self.window(tensor, &part, origins));
            offsets[operand as usize] = offset;
            windows.push(window);
        }
        for tensor in &tensors {
            params.place(tensor, offsets[tensor.operand as usize]);
        }
        if self.problem.has_int8_cache() {
            params.count_kv_in_bytes();
        }
        Dispatch { pass: index, grid, turns: self.turns(index, &part, lengths), params, windows }
    }

    /// Workgroups, folded into two dimensions.
    fn grid(&self, index: usize, part: &Part, lengths: Lengths) -> [u32; 2] {
        let workgroups = self.workgroups(index, part, lengths);
        let width = workgroups.min(u64::from(self.capabilities.max_workgroups_per_dimension));
        [width as u32, workgroups.div_ceil(width) as u32]
    }

    /// The window of a tensor that holds a part, and the part's first element counted from the window's start. Empty
    /// tensors get an empty window.
    fn window(&self, tensor: &Tensor, part: &Part, origins: &Origins) -> (Window, u32) {
        let operand = tensor.operand;
        if tensor.follows == Follows::Scratch {
            return (Window { operand, offset: 0, size: self.bytes_in_scratch(operand) }, 0);
        }
        // `check` and `refusal` have seen that none of this overflows.
        let len = tensor.len_of(&tensor.extent_in(part)).unwrap_or(0);
        if len == 0 {
            return (Window { operand, offset: 0, size: 0 }, 0);
        }
        let size = tensor.element.size();
        // Scratch buffers start at 0.
        let start = origins.get(operand).unwrap_or(0) + tensor.first_in(part) * size;
        let end = start + (len - tensor.layout.offset) * size;
        let offset = start / self.binding_alignment() * self.binding_alignment();
        let window = Window { operand, offset, size: (end - offset).next_multiple_of(4) };
        (window, ((start - offset) / size) as u32)
    }

    fn bytes_in_scratch(&self, operand: Operand) -> u64 {
        self.scratch.iter().find(|(other, _)| *other == operand).map_or(0, |(_, bytes)| *bytes)
    }

    /// The uniform of a dispatch, without its grid and its tensors.
    fn params(&self, call: &Call, shard: Option<Shard>, lengths: Lengths, part: &Part) -> Params {
        let problem = &self.problem;
        let whole = shard.unwrap_or(Shard::of_lengths(lengths.seqlen_q, lengths.seqlen_kv));
        let dropout = problem.dropout;
        let seed = call.philox_seed.or(dropout.map(|dropout| dropout.philox_seed)).unwrap_or(0);
        let window = |limit: Option<u32>| limit.unwrap_or(UNLIMITED).min(UNLIMITED) as i32;
        Params {
            seqlen_q: lengths.seqlen_q,
            seqlen_kv: lengths.seqlen_kv,
            heads_per_kv: problem.shape.heads_per_kv(),
            num_heads: whole.num_heads.unwrap_or(problem.shape.num_heads),
            batch_first: part.batch_first,
            batch_count: part.batch_count,
            head_first: part.head_first,
            head_count: part.head_count,
            row_first: part.row_first,
            row_count: part.row_count,
            key_first: part.key_first,
            key_count: part.key_count,
            mask_offset: whole.mask_offset(&problem.mask) as i32,
            window_left: window(problem.mask.window_left),
            window_right: window(problem.mask.window_right),
            softmax_scale_log2: (problem.softmax_scale() * LOG2_E) as f32,
            dropout_threshold: dropout.map_or(0, |dropout| dropout.threshold()),
            dropout_scale: dropout.map_or(1.0, |dropout| dropout.keep_scale() as f32),
            philox_seed_low: seed as u32,
            philox_seed_high: (seed >> 32) as u32,
            philox_offset: call.philox_offset.or(dropout.map(|dropout| dropout.philox_offset)).unwrap_or(0),
            negative_infinity: f32::NEG_INFINITY,
            first_batch: whole.first_batch,
            first_head: whole.first_head,
            first_row: whole.first_row,
            first_key: whole.first_key,
            num_splits: self.splits_of(lengths),
            ..self.params_of_cache()
        }
    }
}
