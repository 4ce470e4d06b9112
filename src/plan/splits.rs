//! The keys split over workgroups: into how many splits.

use super::part::{Lengths, Part};
use super::tensor::partial_results;
use super::turns::turns_of;
use super::{Capabilities, DeviceClass, Direction, Kernel, Plan, Specialization, Tiles, Tuning};
use crate::problem::AttentionProblem;

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
    let lengths = Lengths::of(shape);
    let whole = Part::whole(shape, lengths);
    let workgroups = row_tiles(kernel, tiles, shape.heads_per_kv(), &whole).max(1);
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
    u64::from(part.batch_count) * (heads / group) * (rows * group).div_ceil(tiles.tile_q.into())
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

impl Plan {
    /// Into how many splits the keys of a call go: never more than prepared, nor than there are tiles.
    pub(super) fn splits_of(&self, lengths: Lengths) -> u32 {
        if self.direction == Direction::Merge {
            return self.num_splits;
        }
        let tiles = visible_tiles(&self.problem, lengths.seqlen_kv, self.tiles).max(1);
        u64::from(self.num_splits).min(tiles) as u32
    }

    /// Whether a part takes more scratch memory for its partial results than it should, if it can be cut.
    pub(super) fn passes_scratch_of_sums(&self, part: &Part) -> bool {
        let parts = partial_results(part, self.problem.shape.head_dim_v, self.num_splits);
        let bytes = parts.iter().try_fold(0u64, |sum, tensor| sum.checked_add(tensor.bytes()?));
        let is_split = self.direction != Direction::Merge && self.num_splits > 1;
        is_split && bytes.is_none_or(|bytes| bytes > SCRATCH_OF_SUMS)
    }
}
