//! The keys split over workgroups: into how many splits, and where their partial results lie until they are merged.

use super::check;
use super::parts::{Lengths, Part};
use super::turns::turns_of;
use super::{Capabilities, DeviceClass, Kernel, Operand, Plan, Specialization, Tiles, Tuning};
use crate::problem::{AttentionProblem, AttentionShape, MergeProblem, TensorLayout};

/// The most splits that the planner takes by itself.
const MAX_SPLITS: u64 = 128;

/// KV tiles that make a split worth its merge.
const TILES_OF_A_SPLIT: u64 = 2;

/// The most keys whose terms one invocation adds up one after another. An f32 sum of n terms of one sign may drift by
/// n · 2⁻²⁵ of itself in the worst case; longer sums are split, and their parts merged. 1,000,000 keys, V ≥ 0, largest error of
/// O relative to itself: 8.6e-4 as one sum; 1.5e-6, and with 16,384 keys 9.3e-7. On an NVIDIA H200 the parts cost 0.8 % of the time
/// (f16, head_dim 64, 65,536 keys), with 16,384 keys 1.6 %.
const LONGEST_SUM: u64 = 32_768;

/// The most splits that sums are cut into: the merge adds up as many parts.
const MOST_SUMS: u64 = 4096;

/// Bytes of partial results that long sums take, as long as rows can be cut instead.
const SCRATCH_OF_SUMS: u64 = 128 << 20;

/// Workgroups that keep a device busy; wgpu does not tell how many cores it has.
const fn workgroups_wanted(class: DeviceClass) -> u64 {
    match class {
        // Four for each of the 132 cores of an H200.
        DeviceClass::Discrete => 528,
        DeviceClass::Integrated | DeviceClass::Other => 64,
        // A software driver has one workgroup at a time on each core, and few cores.
        DeviceClass::Cpu => 1,
    }
}

/// Into how many splits the keys go, so that the workgroups of all of them keep the device busy, no sum is too long, and no
/// loop takes more turns than the driver allows.
pub(super) fn num_splits(
    specialization: &Specialization,
    problem: &AttentionProblem,
    capabilities: &Capabilities,
    tuning: Option<&Tuning>,
) -> u32 {
    let Specialization { kernel, tiles, .. } = *specialization;
    if kernel.split().is_none() {
        return 1;
    }
    let shape = &problem.shape;
    let lengths = Lengths::new(shape, shape.seqlen_q, shape.seqlen_kv);
    let whole = Part::whole(shape, lengths);
    let workgroups = row_tiles(kernel, tiles, heads_per_kv(problem), &whole).max(1);
    let worthwhile = visible_tiles(problem, shape.seqlen_kv, tiles) / TILES_OF_A_SPLIT;
    let tuned = tuning.and_then(|tuning| tuning.workgroups).map(u64::from);
    let splits = tuned.unwrap_or(workgroups_wanted(capabilities.device_class)) / workgroups;
    let most = MAX_SPLITS.min(u64::from(capabilities.max_workgroups_per_dimension).pow(2));
    // On matrices splits were not measured where they are not needed.
    let busy = if kernel.uses_matrices() { 1 } else { splits.min(worthwhile).min(most).max(1) };
    let keys = visible_keys_of_a_tile(problem, shape.seqlen_kv, tiles);
    let sums = keys.div_ceil(LONGEST_SUM * u64::from(tiles.key_lanes)).min(MOST_SUMS);
    let mut splits = busy.max(sums);
    if let Some(most) = capabilities.max_loop_turns {
        let kv_tiles = keys.div_ceil(tiles.tile_kv.into());
        let fits = |splits: u64| turns_of(specialization, problem, lengths, splits as u32) <= most.into();
        while splits < kv_tiles && !fits(splits) {
            splits = (2 * splits).min(kv_tiles);
        }
    }
    splits as u32
}

/// Tiles of rows in a part, over all its heads and sequences.
pub(super) fn row_tiles(kernel: Kernel, tiles: Tiles, heads_per_kv: u32, part: &Part) -> u64 {
    let (heads, rows) = (u64::from(part.head_count), u64::from(part.row_count));
    let group = if kernel.packs_heads() { u64::from(heads_per_kv) } else { 1 };
    let groups = u64::from(part.batch_count) * (heads / group);
    groups.saturating_mul((rows * group).div_ceil(tiles.tile_q.into()))
}

/// Query heads, as parts count them. Where there are KV heads alone, each counts as one query head that has no rows: its
/// dK and dV are 0, and are written.
pub(super) fn query_heads(shape: &AttentionShape) -> u32 {
    if shape.num_heads == 0 { shape.num_heads_kv } else { shape.num_heads }
}

/// Of those, how many share a KV head; at least 1.
pub(super) fn heads_per_kv(problem: &AttentionProblem) -> u32 {
    query_heads(&problem.shape).checked_div(problem.shape.num_heads_kv).unwrap_or(1)
}

/// KV tiles that one row sees at most.
fn visible_tiles(problem: &AttentionProblem, seqlen_kv: u32, tiles: Tiles) -> u64 {
    window(problem).min(seqlen_kv.into()).div_ceil(tiles.tile_kv.into())
}

/// Keys that one row sees at most.
fn window(problem: &AttentionProblem) -> u64 {
    match (problem.mask.window_left, problem.mask.window_right) {
        (Some(left), Some(right)) => u64::from(left) + u64::from(right) + 1,
        _ => u64::MAX,
    }
}

/// Keys of the tiles that the rows of a Q tile see at most.
pub(super) fn visible_keys_of_a_tile(problem: &AttentionProblem, seqlen_kv: u32, tiles: Tiles) -> u64 {
    // A window starts and ends in the middle of tiles, and later by a key for each row.
    let keys = window(problem).saturating_add(u64::from(tiles.tile_q) + 2 * u64::from(tiles.tile_kv));
    keys.min(u64::from(seqlen_kv).next_multiple_of(tiles.tile_kv.into()))
}

/// Rows of the tiles with a row that sees some key of a KV tile, at most.
pub(super) fn visible_rows_of_a_tile(problem: &AttentionProblem, seqlen_q: u32, tiles: Tiles) -> u64 {
    let rows = window(problem).saturating_add(u64::from(tiles.tile_kv) + 2 * u64::from(tiles.tile_q));
    rows.min(u64::from(seqlen_q).next_multiple_of(tiles.tile_q.into()))
}

/// Where the partial results of some rows lie, in elements.
pub(super) struct PartialResults {
    pub o: TensorLayout,
    pub o_stride_split: u64,
    pub lse: TensorLayout,
    pub lse_stride_split: u64,
}

impl PartialResults {
    /// In scratch memory: O is `[split, batch, head, row, dim]` with rows of whole quads, LSE `[split, batch, head, row]`.
    fn in_scratch(part: &Part, head_dim_v: u32) -> Self {
        let width = head_dim_v.next_multiple_of(4);
        let (rows, heads) = (part.row_count, part.head_count);
        let lse_stride_split = (u64::from(part.batch_count) * u64::from(heads)).saturating_mul(rows.into());
        Self {
            o: TensorLayout::bhsd(rows, heads, width),
            o_stride_split: lse_stride_split.saturating_mul(width.into()),
            lse: TensorLayout::bhsd(rows, heads, 1),
            lse_stride_split,
        }
    }

    fn given(merge: &MergeProblem) -> Self {
        let shape = &merge.shape;
        Self {
            o: merge.layout,
            o_stride_split: merge.stride_split,
            lse: TensorLayout::bhsd(shape.seqlen_q, shape.num_heads, 1),
            lse_stride_split: merge.lse_stride_split,
        }
    }
}

impl Plan {
    /// Into how many splits the keys of a call go: never more than prepared, nor than there are tiles.
    pub(super) fn splits_of(&self, lengths: Lengths) -> u32 {
        if self.merge.is_some() {
            return self.num_splits;
        }
        let tiles = visible_tiles(&self.problem, lengths.seqlen_kv, self.tiles).max(1);
        u64::from(self.num_splits).min(tiles) as u32
    }

    pub(super) fn partial_results(&self, part: &Part) -> PartialResults {
        match &self.merge {
            Some(merge) => PartialResults::given(merge),
            None => PartialResults::in_scratch(part, self.problem.shape.head_dim_v),
        }
    }

    /// Bytes of the partial results of a part in scratch memory.
    pub(super) fn parts_of(&self, operand: Operand, part: &Part) -> u64 {
        let results = PartialResults::in_scratch(part, self.problem.shape.head_dim_v);
        let stride = if operand == Operand::OParts { results.o_stride_split } else { results.lse_stride_split };
        stride.saturating_mul(4 * u64::from(self.num_splits))
    }

    /// Whether a part takes more scratch memory for its partial results than it should, if it can be cut.
    pub(super) fn passes_scratch_of_sums(&self, part: &Part) -> bool {
        let bytes = || self.parts_of(Operand::OParts, part).saturating_add(self.parts_of(Operand::LseParts, part));
        self.merge.is_none() && self.num_splits > 1 && bytes() > SCRATCH_OF_SUMS
    }

    /// The layout of a tensor, or of the first of its parts.
    pub(super) fn layout(&self, operand: Operand) -> TensorLayout {
        match (operand, &self.merge) {
            (Operand::OParts, Some(merge)) => PartialResults::given(merge).o,
            _ => check::layout(&self.problem, operand),
        }
    }

    /// Elements that a tensor spans beyond its layout: those of its other parts.
    pub(super) fn span_of_splits(&self, operand: Operand) -> Option<u64> {
        let others = u64::from(self.num_splits.saturating_sub(1));
        match (operand, &self.merge) {
            (Operand::OParts, Some(merge)) => merge.stride_split.checked_mul(others),
            (Operand::LseParts, Some(merge)) => merge.lse_stride_split.checked_mul(others),
            _ => Some(0),
        }
    }

    pub(super) fn element_size(&self, operand: Operand) -> u64 {
        match (operand, &self.merge) {
            (Operand::OParts, Some(merge)) => merge.parts_element.size(),
            _ => check::element_size(&self.problem, operand),
        }
    }

    /// Elements that the buffer of an operand must hold, or `None` past 2⁶⁴.
    pub(super) fn checked_len(&self, operand: Operand) -> Option<u64> {
        let is_part = matches!(operand, Operand::OParts | Operand::LseParts);
        let check::Extent { batch, rows, heads, dim } = check::extent(&self.problem, operand);
        let len = self.layout(operand).required_len(batch, rows, heads, dim)?;
        match len {
            0 => Some(0),
            _ if is_part && self.num_splits == 0 => Some(0),
            len => len.checked_add(self.span_of_splits(operand)?),
        }
    }

    /// Bytes that the buffer of an operand must hold, whole words, or `None` past 2⁶⁴.
    pub(super) fn checked_bytes(&self, operand: Operand) -> Option<u64> {
        self.checked_len(operand)?.checked_mul(self.element_size(operand))?.checked_next_multiple_of(4)
    }
}
