//! Into how many splits the keys go, over workgroups.

use super::block_lists::most_listed;
use super::capabilities::{Capabilities, DeviceClass};
use super::direction::Direction;
use super::kernels::Specialization;
use super::part::{Lengths, Part};
use super::passes::Plan;
use super::tensor::partial_results;
use super::tiles::Owns;
use super::tuning::Tuning;
use super::turns::turns_of;
use super::visible::{visible_keys_of_a_tile, visible_tiles, window};
use crate::problem::AttentionProblem;

/// The most splits that the planner chooses without a request.
const MAX_SPLITS: u64 = 128;

/// KV tiles that make a split worth its merge.
const TILES_OF_A_SPLIT: u64 = 2;

/// The most keys whose terms one invocation adds up one after another. An f32 sum of n terms of one sign may drift by
/// n · 2⁻²⁵ of itself in the worst case; longer sums are split, and their parts merged; gradients add up a few tiles at a time.
/// 1,000,000 keys, V ≥ 0, largest error of O relative to itself: 8.6e-4 as one sum; 1.5e-6, and with 16,384 keys 9.3e-7. On an
/// NVIDIA H200 the parts cost 0.8 % of the time (f16, head_dim 64, 65,536 keys), with 16,384 keys 1.6 %.
const LONGEST_SUM: u64 = 32_768;

/// The same for each group of lanes where several share a row's keys: rows are few then, and a merge costs little.
const LONGEST_SUM_OF_A_GROUP: u64 = 2048;

/// The most splits that sums are cut into: the merge adds up as many parts.
const MOST_SUMS: u64 = 4096;

/// Bytes of partial results that long sums take, as long as rows can be cut instead.
const SCRATCH_OF_SUMS: u64 = 128 << 20;

/// Workgroups that keep a device busy; wgpu does not say how many cores it has.
const fn workgroups_wanted(class: DeviceClass) -> u64 {
    match class {
        // Four for each of the 132 cores of an H200.
        DeviceClass::Discrete => 528,
        DeviceClass::Integrated | DeviceClass::Other => 64,
        // A software driver has one workgroup at a time on each core, and few cores.
        DeviceClass::Cpu => 1,
    }
}

/// The same on matrices: two for each core. They fill it, and one more than that would start when the others end. 16 rows of 4
/// heads on 4 × 8 heads of 8192 keys, head_dim 128, 4, 8 and 12 splits: 0.124, 0.088, 0.120 ms on an NVIDIA H200.
const fn workgroups_wanted_on_matrices(class: DeviceClass) -> u64 {
    workgroups_wanted(class).div_ceil(2)
}

/// Whether a gradient has more terms than one sum should.
pub(super) fn is_long_sum(problem: &AttentionProblem, owns: Owns) -> bool {
    let shape = &problem.shape;
    let of_a_head = |length: u32| window(problem).min(length.into());
    let terms = match owns {
        Owns::Keys => of_a_head(shape.seqlen_q).saturating_mul(shape.heads_per_kv().into()),
        _ => of_a_head(shape.seqlen_kv),
    };
    terms > LONGEST_SUM
}

/// Into how many splits the keys go, so that the workgroups of all of them keep the device busy, no sum is too long, and no
/// loop takes more turns than the driver allows.
pub(super) fn num_splits(
    specialization: &Specialization,
    problem: &AttentionProblem,
    capabilities: &Capabilities,
    tuning: Option<&Tuning>,
) -> u32 {
    let tiles = specialization.tiles;
    let kernel = specialization.kernel.spec();
    if kernel.split.is_none() {
        return 1;
    }
    let shape = &problem.shape;
    let lengths = Lengths::of(problem);
    let whole = Part::whole(shape, lengths);
    let workgroups = kernel.row_tiles(tiles, shape.heads_per_kv(), &whole).max(1);
    let listed = most_listed(problem, specialization).unwrap_or(u64::MAX);
    let worthwhile = visible_tiles(problem, shape.seqlen_kv, tiles).min(listed) / TILES_OF_A_SPLIT;
    let tuned = tuning.and_then(|tuning| tuning.workgroups).map(u64::from);
    let wanted = if kernel.on_matrices { workgroups_wanted_on_matrices } else { workgroups_wanted };
    let splits = tuned.unwrap_or(wanted(capabilities.device_class)) / workgroups;
    let most = MAX_SPLITS.min(u64::from(capabilities.max_workgroups_per_dimension).pow(2));
    let most = most.min(most_that_fit(specialization, problem, capabilities));
    // On matrices with full tiles splits were not measured where they are not needed.
    let has_full_tiles = kernel.on_matrices && !kernel.packs_heads;
    let busy = if has_full_tiles { 1 } else { splits.min(worthwhile).min(most).max(1) };
    let keys = visible_keys_of_a_tile(problem, shape.seqlen_kv, tiles);
    let longest = match u64::from(tiles.key_lanes) {
        1 => LONGEST_SUM,
        groups => LONGEST_SUM_OF_A_GROUP * groups,
    };
    let summed = keys.min(listed.saturating_mul(tiles.tile_kv.into()));
    let sums = summed.div_ceil(longest).min(MOST_SUMS);
    let mut splits = busy.max(sums);
    if let Some(most) = capabilities.max_loop_turns {
        let kv_tiles = keys.div_ceil(tiles.tile_kv.into());
        let fits = |splits: u64| turns_of(specialization, problem, lengths, [splits, 1]) <= most.into();
        while splits < kv_tiles && !fits(splits) {
            splits = (2 * splits).min(kv_tiles);
        }
    }
    splits as u32
}

/// The most splits whose partial results of a tile's rows fit a binding.
fn most_that_fit(specialization: &Specialization, problem: &AttentionProblem, capabilities: &Capabilities) -> u64 {
    let shape = &problem.shape;
    let heads = if specialization.kernel.spec().packs_heads { shape.heads_per_kv() } else { 1 };
    let rows = u64::from(shape.seqlen_q.min(specialization.tiles.tile_q)) * u64::from(heads);
    capabilities.max_binding / (rows * u64::from(shape.head_dim_v) * size_of::<f32>() as u64).max(1)
}

impl Plan {
    /// Into how many splits the keys of a call go: never more than prepared, nor than there are tiles.
    pub(super) fn splits_of(&self, lengths: Lengths) -> u32 {
        if self.direction == Direction::Merge {
            return self.num_splits;
        }
        if let Some(chunks) = self.chunks {
            return chunks.count(lengths.seqlen_kv) * chunks.splits;
        }
        let tiles = visible_tiles(&self.problem, lengths.seqlen_kv, self.tiles).max(1);
        u64::from(self.num_splits).min(tiles) as u32
    }

    /// Turns of all loops that an invocation takes at most in a dispatch of this pass.
    pub(super) fn turns(&self, index: usize, part: &Part, lengths: Lengths) -> u64 {
        let (splits, score_tiles) = (self.splits_of(lengths), self.score_tiles(index, part));
        turns_of(&self.passes[index].specialization, &self.problem, lengths, [splits.into(), score_tiles])
    }

    /// Whether a part takes more scratch memory for its partial results than it should, if it can be cut.
    pub(super) fn passes_scratch_of_sums(&self, part: &Part) -> bool {
        let parts = partial_results(part, self.problem.shape.head_dim_v, self.num_splits);
        let bytes = parts.iter().try_fold(0u64, |sum, tensor| sum.checked_add(tensor.bytes()?));
        let is_split = self.direction != Direction::Merge && self.num_splits > 1;
        is_split && bytes.is_none_or(|bytes| bytes > SCRATCH_OF_SUMS)
    }
}
