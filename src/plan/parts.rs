//! How a problem that is too large for one dispatch is divided into parts.

use super::direction::Direction;
use super::kernels::{Grid, rows_of_workgroup};
use super::part::{Cut, Lengths, Part};
use super::passes::{Plan, Stage};
use super::tensor::{self, Follows, Tensor};
use super::tiles::{Owns, Tiles};
use super::visible::window;
use crate::error::Error;
use crate::operand::Operand;
use std::ops::Range;

/// The limit that a tensor passes which is longer than a binding.
pub(super) const LONGEST_BINDING: &str = "max_storage_buffer_binding_size";

/// The most dispatches that one operation may make. A call holds them all in memory, about 600 bytes each; bounds on work
/// as [`AttentionProblem::with_bounded_work`](crate::AttentionProblem::with_bounded_work) advises reach it after minutes of work.
const MAX_DISPATCHES: u64 = 1 << 18;

fn common_divisor(a: u32, b: u32) -> u32 {
    if b == 0 { a.max(1) } else { common_divisor(b, a % b) }
}

impl Plan {
    /// The parts of the problem that the dispatches of a stage cover, one after another.
    pub(super) fn parts(&self, stage: &Stage, lengths: Lengths) -> Result<Vec<Part>, Error> {
        if self.writes_nothing(stage, lengths) {
            return Ok(Vec::new());
        }
        let shape = &self.problem.shape;
        let step = self.step(stage, lengths)?;
        self.check_number(stage, &step, lengths)?;
        let [_, _, cuts_rows, cuts_keys] = stage.cut.cuts();
        let firsts = |all: Range<u32>, step: u32| all.step_by(step.max(1) as usize);
        // Rows that see nothing are written too, and so are keys that no row sees. Entries of no row or no key are sums of
        // nothing.
        let (all_heads, all_rows) = (self.heads(), self.rows(lengths));
        let all_keys = lengths.seqlen_kv;
        let rows =
            || if cuts_rows { firsts(all_rows.start..all_rows.end.max(1), step.row_count) } else { firsts(0..1, 1) };
        let keys = || if cuts_keys { firsts(0..all_keys.max(1), step.key_count) } else { firsts(0..1, 1) };
        let mut parts = Vec::new();
        for batch_first in firsts(0..shape.batch, step.batch_count) {
            for head_first in firsts(all_heads.clone(), step.head_count) {
                for row_first in rows() {
                    for key_first in keys() {
                        parts.push(Part {
                            batch_first,
                            batch_count: step.batch_count.min(shape.batch - batch_first),
                            head_first,
                            head_count: step.head_count.min(all_heads.end - head_first),
                            row_first,
                            row_count: step.row_count.min(all_rows.end - row_first),
                            key_first,
                            key_count: step.key_count.min(all_keys - key_first),
                        });
                    }
                }
            }
        }
        Ok(parts)
    }

    /// Whether a stage has no row, or no key, to write something for.
    fn writes_nothing(&self, stage: &Stage, lengths: Lengths) -> bool {
        let (rows, keys) = (self.rows(lengths).len() as u32, lengths.seqlen_kv);
        let written = match stage.cut {
            Cut::Rows => rows,
            Cut::Keys => keys,
            Cut::Groups => rows.max(keys),
            // The sum of no rows is 0.
            Cut::Heads | Cut::Entries { .. } | Cut::Nothing | Cut::Sequences => 1,
        };
        let is_empty = stage.cut.is_of_entries() && self.required_len(Operand::DBias) == 0;
        let has_no_tokens = self.append.as_ref().is_some_and(|append| append.packed_tokens() == Some(0));
        let is_empty = is_empty || has_no_tokens && stage.cut == Cut::Rows;
        written == 0 || is_empty || self.problem.shape.batch == 0 || self.problem.shape.query_heads() == 0
    }

    /// Refuses parts without number, before any is made.
    fn check_number(&self, stage: &Stage, step: &Part, lengths: Lengths) -> Result<(), Error> {
        let shape = &self.problem.shape;
        let pieces = |all: u32, of: u32| u64::from(all.div_ceil(of.max(1)));
        let [_, _, cuts_rows, cuts_keys] = stage.cut.cuts();
        let rows = if cuts_rows { pieces(self.rows(lengths).len() as u32, step.row_count) } else { 1 };
        let keys = if cuts_keys { pieces(lengths.seqlen_kv, step.key_count) } else { 1 };
        let parts = pieces(shape.batch, step.batch_count) * pieces(self.heads().len() as u32, step.head_count);
        let passes: u64 = stage
            .passes
            .clone()
            .map(|index| match self.visits_chunks(index) {
                Some(chunks) => chunks.count(lengths.seqlen_kv).into(),
                None => 1,
            })
            .sum();
        let found = parts.saturating_mul(rows).saturating_mul(keys).saturating_mul(passes);
        if found > MAX_DISPATCHES {
            return Err(Error::TooManyDispatches { found, max: MAX_DISPATCHES });
        }
        Ok(())
    }

    /// The scratch buffers, each with the bytes of the largest part that a dispatch covers.
    pub(super) fn measure_scratch(&self) -> Result<Vec<(Operand, u64)>, Error> {
        let lengths = Lengths::of(&self.problem);
        let mut scratch = Vec::new();
        for stage in self.stages.iter().filter(|stage| !self.writes_nothing(stage, lengths)) {
            let step = self.step(stage, lengths)?;
            self.check_number(stage, &step, lengths)?;
            for tensor in self.scratch_tensors(&step, lengths) {
                let is_new = scratch.iter().all(|(other, _)| *other != tensor.operand);
                if is_new && self.binds(stage, tensor.operand) {
                    // An empty tensor still needs something to bind.
                    scratch.push((tensor.operand, tensor.bytes().unwrap_or(u64::MAX).max(16)));
                }
            }
        }
        // Lengths that a call says may be those of any number of sequences.
        let of_lengths = self.problem.lengths().map_or(0, |lengths| 4 * lengths.table_len(self.problem.shape.batch));
        let is_too_long = of_lengths > self.max_binding();
        let tables = if is_too_long { of_lengths } else { size_of_val(&*self.tables()) as u64 };
        if tables > self.max_binding() {
            let (operand, allowed) = (Operand::Tables, self.max_binding());
            let limit = LONGEST_BINDING;
            return Err(Error::TooLarge { operand, needed: tables, allowed, limit });
        }
        scratch.extend((tables > 0).then_some((Operand::Tables, tables)));
        Ok(scratch)
    }

    /// The tensors in scratch memory, as they are laid out for a part.
    pub(super) fn scratch_tensors(&self, part: &Part, lengths: Lengths) -> impl Iterator<Item = Tensor> {
        let stride_row = self.s_stride_row(lengths);
        let [o_parts, lse_parts] = tensor::partial_results(part, self.problem.shape.head_dim_v, self.num_splits);
        let [s, dp] = [Operand::S, Operand::Dp].map(|operand| tensor::scores(operand, part, stride_row));
        let dbias_sums = tensor::dbias_sums(&self.problem);
        let is_bound = |operand| self.passes.iter().any(|pass| pass.kernel.spec().binds(operand));
        let is_given = |operand| self.tensors.iter().any(|tensor| tensor.operand == operand);
        let tensors = [s, tensor::row_stats(&self.problem), dp, o_parts, lse_parts].into_iter().chain(dbias_sums);
        tensors.filter(move |tensor| is_bound(tensor.operand) && !is_given(tensor.operand))
    }

    fn binds(&self, stage: &Stage, operand: Operand) -> bool {
        self.passes[stage.passes.clone()].iter().any(|pass| pass.kernel.spec().binds(operand))
    }

    /// The most bytes that a dispatch may need of a scratch buffer: those that were planned for, or, while that is being
    /// done, what the device allows.
    fn scratch_limit(&self, operand: Operand) -> u64 {
        let planned = self.scratch.iter().find(|(other, _)| *other == operand).map(|(_, bytes)| *bytes);
        planned.unwrap_or(self.max_binding().min(self.capabilities.max_buffer))
    }

    /// Elements from one row of a score matrix to the next.
    pub(super) fn s_stride_row(&self, lengths: Lengths) -> u32 {
        lengths.seqlen_kv.next_multiple_of(self.tiles.tile_kv)
    }

    /// Bindings start at multiples of this many bytes.
    pub(super) fn binding_alignment(&self) -> u64 {
        self.capabilities.binding_alignment.max(1)
    }

    /// The buffer of a tensor starts at a multiple of this: four elements of any type are aligned. Aux and lengths are bound alone:
    /// their first word is that of the binding, and the last word of aux its last.
    pub(crate) fn slice_alignment(&self, operand: Operand) -> u64 {
        const QUAD: u64 = 16;
        use Operand::{Aux, CuSeqlensKv, CuSeqlensQ, SeqlensKv, SeqlensQ};
        let is_alone = matches!(operand, Aux | SeqlensQ | SeqlensKv | CuSeqlensQ | CuSeqlensKv);
        if is_alone { self.binding_alignment().max(QUAD) } else { QUAD }
    }

    /// The longest binding: a shader addresses its elements with 32 bits.
    pub(super) fn max_binding(&self) -> u64 {
        self.capabilities.max_binding.min(u64::from(u32::MAX) - 3)
    }

    /// How much of the problem one dispatch takes. It starts with all, and halves sequences, then heads, then rows or keys,
    /// until every limit holds. At one tile, the bounds on work and on partial results are ignored; other limits are errors.
    pub(super) fn step(&self, stage: &Stage, lengths: Lengths) -> Result<Part, Error> {
        let shape = &self.problem.shape;
        let (heads, rows) = (self.heads(), self.rows(lengths));
        let (head_count, row_count) = (heads.len() as u32, rows.len() as u32);
        let mut step = Part {
            head_first: heads.start,
            head_count,
            row_first: rows.start,
            row_count,
            ..Part::whole(shape, lengths)
        };
        let tiles: Vec<Tiles> =
            self.passes[stage.passes.clone()].iter().map(|pass| pass.specialization.tiles).collect();
        let cut = stage.cut;
        // Heads that share keys stay together where keys are owned, and where they share a workgroup.
        let packed = self.passes[stage.passes.clone()].iter().any(|pass| pass.kernel.spec().packs_heads);
        let alone = !packed && matches!(cut, Cut::Rows | Cut::Entries { .. });
        let least_heads = if alone { 1 } else { self.problem.shape.heads_per_kv() };
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
            let least = [1, least_heads, tile_q, tile_kv];
            let mut counts = step.counts();
            let Some(n) = cut.order().find(|n| cut.cuts()[*n] && counts[*n] > least[*n]) else {
                return refusal.map_or(Ok(step), Err);
            };
            let all = [shape.batch, head_count, row_count, lengths.seqlen_kv];
            counts[n] = halved(counts[n], least[n], all[n]);
            step.set_counts(counts);
        }
    }

    /// Which limit of the device a part of this size passes, if any.
    pub(super) fn refusal(&self, stage: &Stage, part: &Part, lengths: Lengths) -> Option<Error> {
        let part = &self.with_keys_of_a_chunk(part);
        let mut tensors: Vec<Tensor> =
            self.tensors.iter().copied().chain(self.scratch_tensors(part, lengths)).collect();
        let passes = &self.passes[stage.passes.clone()];
        let bound = |tensor: &Tensor| passes.iter().any(|pass| pass.specialization.binds(tensor.operand));
        tensors.retain(bound);
        // In this order. (A sort for so few would be 2 KB of a browser's download.)
        let place = |tensor: &Tensor| (tensor.follows == Follows::Scratch, tensor.operand.binding());
        while let Some(next) = (0..tensors.len()).min_by_key(|index| place(&tensors[*index])) {
            let tensor = tensors.swap_remove(next);
            let operand = tensor.operand;
            let (needed, allowed) = match tensor.follows {
                Follows::Scratch => (tensor.bytes(), self.scratch_limit(operand)),
                // Bindings start at aligned offsets, up to one alignment before the tensor's first element.
                _ => {
                    let span = tensor.span_at_most(part);
                    (span.and_then(|span| span.checked_add(self.binding_alignment())), self.max_binding())
                }
            };
            let needed = needed.unwrap_or(u64::MAX);
            if needed > allowed {
                return Some(Error::TooLarge { operand, needed, allowed, limit: LONGEST_BINDING });
            }
        }
        self.grid_refusal(stage, part, lengths)
    }

    fn grid_refusal(&self, stage: &Stage, part: &Part, lengths: Lengths) -> Option<Error> {
        let per_dimension = u64::from(self.capabilities.max_workgroups_per_dimension);
        let allowed = (per_dimension * per_dimension).min(u64::from(u32::MAX));
        for index in stage.passes.clone() {
            if let Some(allowed) = self.capabilities.max_loop_turns
                && self.turns(index, part, lengths) > allowed.into()
            {
                return Some(self.too_many_turns(index, allowed));
            }
            // Tiles and rows are counted in 32 bits too.
            let tiles = self.score_tiles(index, part).max(self.token_rows(index, part));
            let needed = self.workgroups(index, part, lengths).max(tiles);
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

    /// Rows of new tokens that a pass writes; 0 for one that writes none.
    fn token_rows(&self, index: usize, part: &Part) -> u64 {
        let heads = match self.passes[index].kernel.spec().grid {
            Grid::RowsOfKv => part.head_count / self.problem.shape.heads_per_kv(),
            Grid::RowsOfQ => part.head_count,
            _ => 0,
        };
        (u64::from(part.batch_count) * u64::from(heads)).saturating_mul(part.row_count.into())
    }

    fn too_many_turns(&self, index: usize, allowed: u32) -> Error {
        let kernel = self.passes[index].kernel;
        let lengths = if kernel.spec().owns == Owns::Keys {
            "seqlen_q times the heads that share a KV head"
        } else {
            "seqlen_kv"
        };
        let own = match self.passes[index].specialization.wgsl.snippets().any(|snippet| snippet.has_loops) {
            true => {
                ", give the loops of score_mod and mask_mod fewer turns (WgslOptions::with_max_turns; flash: --max-turns)"
            }
            false => "",
        };
        Error::Unsupported {
            feature: "loops this long",
            reason: format!(
                "{} would take more than {allowed} turns of its loops, after which this driver ends a shader; make \
                 {lengths} smaller{own}, or use a newer driver (Mesa 25 or later)",
                kernel.name()
            ),
        }
    }

    pub(super) fn flops_at_most(&self, cut: Cut, part: &Part, lengths: Lengths) -> u64 {
        let shape = &self.problem.shape;
        let window = window(&self.problem);
        let heads = u64::from(part.batch_count) * u64::from(part.head_count);
        let pairs = match cut {
            Cut::Heads => part.row_count.into(),
            Cut::Rows | Cut::Groups => u64::from(part.row_count).saturating_mul(window.min(lengths.seqlen_kv.into())),
            Cut::Entries { .. } => u64::from(part.row_count).saturating_mul(window.min(part.key_count.into())),
            Cut::Nothing | Cut::Sequences => 0,
            Cut::Keys => u64::from(part.key_count).saturating_mul(window.min(lengths.seqlen_q.into())),
        };
        let (head_dim, head_dim_v) = (u64::from(shape.head_dim), u64::from(shape.head_dim_v));
        // Products of the largest dispatch: of the forward pass; of dQ, and of dK and dV, each with two recomputed.
        let products = match (self.direction, cut) {
            (_, Cut::Sequences) => 1,
            (Direction::Probabilities, _) => head_dim,
            (Direction::Append, _) => 1,
            (Direction::Forward | Direction::Merge, _) => head_dim + head_dim_v,
            (Direction::Backward, Cut::Rows) => 2 * head_dim + head_dim_v,
            (Direction::Backward, Cut::Keys) => 2 * (head_dim + head_dim_v),
            (Direction::Backward, Cut::Heads | Cut::Nothing) => 1,
            (Direction::Backward, Cut::Entries { .. }) => head_dim + head_dim_v,
            (Direction::Backward, Cut::Groups) => head_dim.max(head_dim_v),
        };
        heads.saturating_mul(pairs).saturating_mul(2 * products)
    }

    /// Which dimensions have entries of a bias of their own, in the stage of a pass; all but for the gradient of one.
    fn own_entries(&self, index: usize) -> [bool; 4] {
        let stage = self.stages.iter().find(|stage| stage.passes.contains(&index));
        match stage.map(|stage| stage.cut) {
            Some(Cut::Entries { own }) => own,
            _ => [true; 4],
        }
    }

    /// Tiles of scores that share a tile of entries of a bias.
    pub(super) fn score_tiles(&self, index: usize, part: &Part) -> u64 {
        part.tiles_of_entries(self.own_entries(index), self.passes[index].specialization.tiles)[1]
    }

    /// The lengths that a stage covers in a call.
    pub(super) fn covered(&self, stage: &Stage, lengths: Lengths) -> Lengths {
        if stage.cut.is_of_entries() { Lengths::of_entries(&self.problem.shape) } else { lengths }
    }

    pub(super) fn workgroups(&self, index: usize, part: &Part, lengths: Lengths) -> u64 {
        let kernel = self.passes[index].kernel.spec();
        let tiles = self.passes[index].specialization.tiles;
        let heads_per_kv = self.problem.shape.heads_per_kv();
        let heads = u64::from(part.batch_count) * u64::from(part.head_count);
        let rows = heads.saturating_mul(part.row_count.into());
        let row_tiles = kernel.row_tiles(tiles, heads_per_kv, part);
        match kernel.grid {
            Grid::RowTiles => row_tiles,
            Grid::RowTilesOfSplits => row_tiles.saturating_mul(self.splits_of(lengths).into()),
            Grid::ScoreTiles => row_tiles.saturating_mul((self.s_stride_row(lengths) / tiles.tile_kv).into()),
            Grid::KeyTiles => {
                (heads / u64::from(heads_per_kv)).saturating_mul(part.key_count.div_ceil(tiles.tile_kv).into())
            }
            Grid::Rows => rows,
            Grid::Heads => part.head_count.into(),
            Grid::Sequences => u64::from(part.batch_count.div_ceil(self.passes[index].specialization.invocations())),
            Grid::Entries => part.tiles_of_entries(self.own_entries(index), tiles)[0],
            Grid::PairsOfEntries => {
                let pairs = self.required_len(Operand::DBias).div_ceil(2);
                pairs.div_ceil(self.passes[index].specialization.invocations().into())
            }
            Grid::RowsOfKv | Grid::RowsOfQ => {
                let specialization = &self.passes[index].specialization;
                let dim = specialization.head_dim.max(specialization.head_dim_v);
                self.token_rows(index, part).div_ceil(rows_of_workgroup(dim).into())
            }
            Grid::Quads => {
                let quads = rows.saturating_mul(self.problem.shape.head_dim_v.div_ceil(4).into());
                quads.div_ceil(self.passes[index].specialization.invocations().into())
            }
        }
    }
}
