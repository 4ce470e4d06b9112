//! How a problem too large for one dispatch is cut into parts.

use super::splits::{heads_per_kv, query_heads, row_tiles};
use super::{COMBINE_INVOCATIONS, Direction, Kernel, Operand, Plan, Tiles};
use crate::error::Error;
use crate::problem::{Algorithm, AttentionShape};
use std::ops::Range;

/// What a part holds besides whole sequences and heads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cut {
    /// A range of rows, with all keys that they see.
    Rows,
    /// A range of keys, with all rows of all heads that share them.
    Keys,
    /// All rows and keys, of all heads that share keys: what sums over both in memory cannot be cut further.
    Groups,
}

/// A part of the problem: ranges of sequences, heads, rows and keys.
#[derive(Clone, Copy, Debug)]
pub(super) struct Part {
    pub batch_first: u32,
    pub batch_count: u32,
    pub head_first: u32,
    pub head_count: u32,
    pub row_first: u32,
    pub row_count: u32,
    pub key_first: u32,
    pub key_count: u32,
}

impl Part {
    /// All of it.
    pub(super) fn whole(shape: &AttentionShape, lengths: Lengths) -> Self {
        Self {
            batch_first: 0,
            batch_count: shape.batch,
            head_first: 0,
            head_count: query_heads(shape),
            row_first: 0,
            row_count: lengths.seqlen_q,
            key_first: 0,
            key_count: lengths.seqlen_kv,
        }
    }
}

/// The lengths of one call.
#[derive(Clone, Copy)]
pub(super) struct Lengths {
    pub seqlen_q: u32,
    pub seqlen_kv: u32,
}

impl Lengths {
    /// Without query heads there are no rows either.
    pub(super) fn new(shape: &AttentionShape, seqlen_q: u32, seqlen_kv: u32) -> Self {
        Self { seqlen_q: if shape.num_heads == 0 { 0 } else { seqlen_q }, seqlen_kv }
    }
}

/// The most dispatches that one operation may make. A call holds them all in memory, about 600 bytes each; bounds on work
/// as [`AttentionProblem::bounded_work`](crate::AttentionProblem::bounded_work) advises reach it after minutes of work.
const MAX_DISPATCHES: u64 = 1 << 18;

fn common_divisor(a: u32, b: u32) -> u32 {
    if b == 0 { a.max(1) } else { common_divisor(b, a % b) }
}

impl Plan {
    fn cut(&self, kernel: Kernel) -> Cut {
        match (self.direction, self.problem.algorithm, kernel) {
            (_, _, Kernel::FlashBackwardPreprocess) => Cut::Rows,
            (Direction::Backward, Algorithm::Standard, _) => Cut::Groups,
            (_, _, kernel) => {
                if kernel.owns_keys() {
                    Cut::Keys
                } else {
                    Cut::Rows
                }
            }
        }
    }

    /// Runs of passes that are cut in the same way, so that one part can pass through all of them before the next.
    pub(super) fn stages(&self) -> Vec<Range<usize>> {
        let mut stages: Vec<Range<usize>> = Vec::new();
        for (index, pass) in self.passes.iter().enumerate() {
            match stages.last_mut() {
                Some(stage) if self.cut(self.passes[stage.start].kernel) == self.cut(pass.kernel) => {
                    stage.end = index + 1
                }
                _ => stages.push(index..index + 1),
            }
        }
        stages
    }

    /// The parts of the problem that the dispatches of a stage cover, one after another.
    pub(super) fn parts(&self, stage: &Range<usize>, lengths: Lengths) -> Result<Vec<Part>, Error> {
        if self.writes_nothing(stage, lengths) {
            return Ok(Vec::new());
        }
        let shape = &self.problem.shape;
        let step = self.step(stage, lengths)?;
        let cut = self.cut(self.passes[stage.start].kernel);
        self.check_number(stage, &step, lengths)?;
        let firsts = |end: u32, step: u32| (0..end).step_by(step.max(1) as usize);
        // Rows that see nothing are written too, and so are keys that no row sees.
        let rows = || if cut == Cut::Rows { firsts(lengths.seqlen_q, step.row_count) } else { firsts(1, 1) };
        let keys = || if cut == Cut::Keys { firsts(lengths.seqlen_kv, step.key_count) } else { firsts(1, 1) };
        let mut parts = Vec::new();
        for batch_first in firsts(shape.batch, step.batch_count) {
            for head_first in firsts(query_heads(shape), step.head_count) {
                for row_first in rows() {
                    for key_first in keys() {
                        parts.push(Part {
                            batch_first,
                            batch_count: step.batch_count.min(shape.batch - batch_first),
                            head_first,
                            head_count: step.head_count.min(query_heads(shape) - head_first),
                            row_first,
                            row_count: step.row_count.min(lengths.seqlen_q - row_first),
                            key_first,
                            key_count: step.key_count.min(lengths.seqlen_kv - key_first),
                        });
                    }
                }
            }
        }
        Ok(parts)
    }

    /// Whether a stage has no row, or no key, to write something for.
    fn writes_nothing(&self, stage: &Range<usize>, lengths: Lengths) -> bool {
        let (rows, keys) = (lengths.seqlen_q, lengths.seqlen_kv);
        let written = match self.cut(self.passes[stage.start].kernel) {
            Cut::Rows => rows,
            Cut::Keys => keys,
            Cut::Groups => rows.max(keys),
        };
        written == 0 || self.problem.shape.batch == 0 || query_heads(&self.problem.shape) == 0
    }

    /// Refuses parts without number, before any is made.
    fn check_number(&self, stage: &Range<usize>, step: &Part, lengths: Lengths) -> Result<(), Error> {
        let shape = &self.problem.shape;
        let pieces = |all: u32, of: u32| u64::from(all.div_ceil(of.max(1)));
        let cut = match self.cut(self.passes[stage.start].kernel) {
            Cut::Rows => pieces(lengths.seqlen_q, step.row_count),
            Cut::Keys => pieces(lengths.seqlen_kv, step.key_count),
            Cut::Groups => 1,
        };
        let parts = pieces(shape.batch, step.batch_count) * pieces(query_heads(shape), step.head_count);
        let found = parts.saturating_mul(cut).saturating_mul(stage.len() as u64);
        if found > MAX_DISPATCHES {
            return Err(Error::TooManyDispatches { found, max: MAX_DISPATCHES });
        }
        Ok(())
    }

    /// The scratch buffers, each with the bytes of the largest part that a dispatch covers.
    pub(super) fn measure_scratch(&self) -> Result<Vec<(Operand, u64)>, Error> {
        let shape = &self.problem.shape;
        let lengths = Lengths::new(shape, shape.seqlen_q, shape.seqlen_kv);
        let mut scratch = Vec::new();
        for stage in self.stages().into_iter().filter(|stage| !self.writes_nothing(stage, lengths)) {
            let step = self.step(&stage, lengths)?;
            self.check_number(&stage, &step, lengths)?;
            for operand in [Operand::S, Operand::Dp] {
                if self.binds(&stage, operand) {
                    // An empty score matrix still needs something to bind.
                    scratch.push((operand, self.scores_of(&stage, &step, lengths).max(16)));
                }
            }
            for operand in [Operand::OParts, Operand::LseParts] {
                if self.binds(&stage, operand) && self.merge.is_none() {
                    scratch.push((operand, self.parts_of(operand, &step).max(16)));
                }
            }
            if self.binds(&stage, Operand::Delta) && scratch.iter().all(|(other, _)| *other != Operand::Delta) {
                scratch.push((Operand::Delta, self.required_bytes(Operand::Delta).max(16)));
            }
        }
        Ok(scratch)
    }

    pub(super) fn binds(&self, stage: &Range<usize>, operand: Operand) -> bool {
        self.passes[stage.clone()].iter().any(|pass| pass.kernel.binds(operand))
    }

    /// The most bytes that a dispatch may need of a scratch buffer: those that were planned for, or, while that is being
    /// done, what the device allows.
    fn scratch_limit(&self, operand: Operand) -> u64 {
        let planned = self.scratch.iter().find(|(other, _)| *other == operand).map(|(_, bytes)| *bytes);
        planned.unwrap_or(self.max_binding().min(self.capabilities.max_buffer))
    }

    pub(super) fn scores_of(&self, stage: &Range<usize>, part: &Part, lengths: Lengths) -> u64 {
        if !self.binds(stage, Operand::S) {
            return 0;
        }
        let heads = u64::from(part.batch_count) * u64::from(part.head_count);
        heads.saturating_mul(part.row_count.into()).saturating_mul(4 * u64::from(self.s_stride_row(lengths)))
    }

    pub(super) fn s_stride_row(&self, lengths: Lengths) -> u32 {
        lengths.seqlen_kv.next_multiple_of(self.tiles.tile_kv)
    }

    /// Bindings start at multiples of so many bytes.
    pub(super) fn binding_alignment(&self) -> u64 {
        self.capabilities.binding_alignment.max(1)
    }

    /// The longest binding: a shader addresses its elements with 32 bits.
    pub(super) fn max_binding(&self) -> u64 {
        self.capabilities.max_binding.min(u64::from(u32::MAX) - 3)
    }

    /// How much of the problem one dispatch takes: all of it, halved over sequences, then heads, then rows or keys until
    /// every limit holds. The bounds on work and on partial results are given up at one tile; the others are errors there.
    pub(super) fn step(&self, stage: &Range<usize>, lengths: Lengths) -> Result<Part, Error> {
        let shape = &self.problem.shape;
        let mut step = Part::whole(shape, lengths);
        let tiles: Vec<Tiles> = self.passes[stage.clone()].iter().map(|pass| pass.specialization.tiles).collect();
        let cut = self.cut(self.passes[stage.start].kernel);
        // Heads that share keys stay together where keys are owned, and where they share a workgroup.
        let packed = self.passes[stage.clone()].iter().any(|pass| pass.kernel.packs_heads());
        let least_heads = if packed || cut != Cut::Rows { heads_per_kv(&self.problem) } else { 1 };
        let halved = |count: u32, least: u32, all: u32| {
            let half = count.div_ceil(2).next_multiple_of(least);
            if half >= count.min(all) { least } else { half }
        };
        loop {
            let refusal = self.refusal(stage, &step, lengths);
            let flops = self.flops_at_most(cut, &step, lengths);
            let is_light = flops <= self.problem.max_flops_per_dispatch.unwrap_or(u64::MAX);
            if refusal.is_none() && is_light && !self.passes_scratch_of_sums(&step) {
                return Ok(step);
            }
            let tile_q = tiles.iter().map(|tiles| tiles.tile_q).max().unwrap_or(1);
            // Rows that fill whole tiles, so that a tile holds the same rows however the problem is cut.
            let tile_q = if packed { tile_q / common_divisor(tile_q, least_heads) } else { tile_q };
            let tile_kv = tiles.iter().map(|tiles| tiles.tile_kv).max().unwrap_or(1);
            if step.batch_count > 1 {
                step.batch_count = step.batch_count.div_ceil(2);
            } else if step.head_count > least_heads {
                step.head_count = halved(step.head_count, least_heads, query_heads(shape));
            } else if cut == Cut::Rows && step.row_count > tile_q {
                step.row_count = halved(step.row_count, tile_q, lengths.seqlen_q);
            } else if cut == Cut::Keys && step.key_count > tile_kv {
                step.key_count = halved(step.key_count, tile_kv, lengths.seqlen_kv);
            } else {
                return refusal.map_or(Ok(step), Err);
            }
        }
    }

    /// Which limit of the device a part of this size passes, if any.
    pub(super) fn refusal(&self, stage: &Range<usize>, part: &Part, lengths: Lengths) -> Option<Error> {
        for &operand in Operand::ALL.iter().filter(|&&operand| self.binds(stage, operand)) {
            let counts = self.extent_of(operand, part, true);
            let size = self.element_size(operand);
            // Bindings start at aligned offsets, up to one alignment before the tensor's first element.
            let layout = self.layout(operand);
            let needed = layout
                .required_len(counts.batch, counts.rows, counts.heads, counts.dim)
                .and_then(|len| (len - layout.offset.min(len)).checked_add(self.span_of_splits(operand)?))
                .and_then(|len| len.checked_mul(size))
                .and_then(|bytes| bytes.checked_add(self.binding_alignment()))
                .unwrap_or(u64::MAX);
            if needed > self.max_binding() {
                let limit = "max_storage_buffer_binding_size";
                return Some(Error::TooLarge { operand, needed, allowed: self.max_binding(), limit });
            }
        }
        for operand in [Operand::S, Operand::OParts, Operand::LseParts] {
            let needed = match operand {
                Operand::S => self.scores_of(stage, part, lengths),
                _ if self.merge.is_none() && self.binds(stage, operand) => self.parts_of(operand, part),
                _ => 0,
            };
            let allowed = self.scratch_limit(operand);
            if needed > allowed {
                return Some(Error::TooLarge { operand, needed, allowed, limit: "max_storage_buffer_binding_size" });
            }
        }
        let per_dimension = u64::from(self.capabilities.max_workgroups_per_dimension);
        let allowed = (per_dimension * per_dimension).min(u64::from(u32::MAX));
        for index in stage.clone() {
            if let Some(allowed) = self.capabilities.max_loop_turns
                && self.turns(index, lengths) > allowed.into()
            {
                return Some(self.too_many_turns(index, allowed));
            }
            let needed = self.workgroups(index, part, lengths);
            if needed > allowed {
                return Some(Error::Unsupported {
                    feature: "grids of this size",
                    reason: format!(
                        "{} needs {needed} workgroups for one tile, max_compute_workgroups_per_dimension = \
                         {per_dimension} allows {allowed}; make seqlen_kv smaller",
                        self.passes[index].kernel.name()
                    ),
                });
            }
        }
        None
    }

    fn too_many_turns(&self, index: usize, allowed: u32) -> Error {
        let kernel = self.passes[index].kernel;
        let lengths = if kernel.owns_keys() { "seqlen_q times the heads that share a KV head" } else { "seqlen_kv" };
        Error::Unsupported {
            feature: "loops this long",
            reason: format!(
                "{} would take more than {allowed} turns of its loops, after which this driver ends a shader; make \
                 {lengths} smaller, or use a newer driver (Mesa 25 or later)",
                kernel.name()
            ),
        }
    }

    pub(super) fn flops_at_most(&self, cut: Cut, part: &Part, lengths: Lengths) -> u64 {
        let shape = &self.problem.shape;
        let mask = &self.problem.mask;
        let window = match (mask.window_left, mask.window_right) {
            (Some(left), Some(right)) => u64::from(left) + u64::from(right) + 1,
            _ => u64::MAX,
        };
        let heads = u64::from(part.batch_count) * u64::from(part.head_count);
        let pairs = match cut {
            Cut::Rows | Cut::Groups => u64::from(part.row_count).saturating_mul(window.min(lengths.seqlen_kv.into())),
            Cut::Keys => u64::from(part.key_count).saturating_mul(window.min(lengths.seqlen_q.into())),
        };
        let (head_dim, head_dim_v) = (u64::from(shape.head_dim), u64::from(shape.head_dim_v));
        // Products of the largest dispatch: of the forward pass, of dQ with two recomputed, of dK and dV likewise.
        let products = match (self.direction, cut) {
            (Direction::Forward | Direction::Merge, _) => head_dim + head_dim_v,
            (Direction::Backward, Cut::Rows) => 2 * head_dim + head_dim_v,
            (Direction::Backward, Cut::Keys) => 2 * (head_dim + head_dim_v),
            (Direction::Backward, Cut::Groups) => head_dim.max(head_dim_v),
        };
        heads.saturating_mul(pairs).saturating_mul(2 * products)
    }

    pub(super) fn workgroups(&self, index: usize, part: &Part, lengths: Lengths) -> u64 {
        let kernel = self.passes[index].kernel;
        let tiles = self.passes[index].specialization.tiles;
        let heads = u64::from(part.batch_count) * u64::from(part.head_count);
        let q_tiles = row_tiles(kernel, tiles, heads_per_kv(&self.problem), part);
        match kernel {
            Kernel::FlashForwardSplit | Kernel::FlashForwardCooperativeSplit | Kernel::FlashDecodeSplit => {
                q_tiles.saturating_mul(self.splits_of(lengths).into())
            }
            Kernel::Combine => {
                let quads = u64::from(self.problem.shape.head_dim_v.div_ceil(4));
                heads.saturating_mul(part.row_count.into()).saturating_mul(quads).div_ceil(COMBINE_INVOCATIONS.into())
            }
            Kernel::FlashForward
            | Kernel::FlashForwardCooperative
            | Kernel::FlashDecode
            | Kernel::StandardOutput
            | Kernel::FlashBackwardPreprocess
            | Kernel::FlashBackwardDq
            | Kernel::FlashBackwardDqCooperative
            | Kernel::StandardDq => q_tiles,
            Kernel::StandardScores | Kernel::StandardDp => {
                q_tiles.saturating_mul(u64::from(self.s_stride_row(lengths) / tiles.tile_kv))
            }
            Kernel::StandardSoftmax | Kernel::StandardDs => heads.saturating_mul(part.row_count.into()),
            Kernel::FlashBackwardDkdv
            | Kernel::FlashBackwardDkdvCooperative
            | Kernel::StandardDv
            | Kernel::StandardDk => {
                let heads_kv = heads / u64::from(heads_per_kv(&self.problem));
                heads_kv.saturating_mul(part.key_count.div_ceil(tiles.tile_kv).into())
            }
        }
    }
}
