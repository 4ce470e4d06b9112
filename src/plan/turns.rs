//! How many turns the loops of a kernel take in one call.

use super::kernels::{Loops, PHILOX, Specialization};
use super::part::Lengths;
use super::visible::{visible_keys_of_a_tile, visible_rows_of_a_tile};
use crate::problem::AttentionProblem;

/// Turns of all loops that an invocation takes at most, with the keys in `num_splits` splits, and where
/// `score_tiles` tiles of scores share a tile of entries of a bias.
pub(super) fn turns_of(
    specialization: &Specialization,
    problem: &AttentionProblem,
    lengths: Lengths,
    [num_splits, score_tiles]: [u64; 2],
) -> u64 {
    let tiles = specialization.tiles;
    let keys = visible_keys_of_a_tile(problem, lengths.seqlen_kv, tiles).div_ceil(tiles.tile_kv.into());
    let rows = visible_rows_of_a_tile(problem, lengths.seqlen_q, tiles).div_ceil(tiles.tile_q.into());
    let heads = u64::from(problem.shape.heads_per_kv());
    let loops = Loops {
        keys,
        kv_tiles: keys.div_ceil(num_splits.max(1)),
        rows,
        heads,
        q_tiles: rows.saturating_mul(heads),
        num_splits,
        all_rows: lengths.seqlen_q.into(),
        sequences: problem.shape.batch.into(),
        score_tiles,
        philox: if specialization.has_dropout { PHILOX } else { 0 },
    };
    (specialization.kernel.spec().turns)(specialization, &loops)
}
