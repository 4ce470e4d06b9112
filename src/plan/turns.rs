//! How many turns the loops of a kernel take in one call.

use super::kernels::{Grid, Loops, PHILOX, Specialization};
use super::part::Lengths;
use super::tiles::Owns;
use super::visible::{visible_keys_of_a_tile, visible_rows_of_a_tile};
use crate::problem::{AttentionProblem, Snippet};

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
    let of_kernel = (specialization.kernel.spec().turns)(specialization, &loops);
    of_kernel.saturating_add(turns_of_own_wgsl(specialization, &loops))
}

/// Those of the caller's own functions. Invocations that share a row may all ask for all of its scores, four at a time.
fn turns_of_own_wgsl(specialization: &Specialization, loops: &Loops) -> u64 {
    let turns = |snippet: &Option<Snippet>| {
        snippet.as_ref().filter(|snippet| snippet.has_loops).map_or(0, |snippet| u64::from(snippet.max_turns) + 1)
    };
    let own = &specialization.wgsl;
    // Gradients need a score twice, and its gradient.
    let of_four = 4 * (3 * turns(&own.score) + turns(&own.mask));
    let (kernel, tiles) = (specialization.kernel.spec(), specialization.tiles);
    let of_a_tile = u64::from(tiles.thread_rows) * u64::from(tiles.passing(kernel.owns));
    let fours = match (kernel.grid, kernel.owns) {
        (Grid::ScoreTiles, _) => of_a_tile,
        // A row that a workgroup shares, seen twice.
        (Grid::Rows, _) => {
            let of_all = loops.keys.saturating_mul(u64::from(tiles.tile_kv) / 4);
            2 * of_all.div_ceil(specialization.invocations().max(1).into())
        }
        (_, Owns::Keys) => loops.q_tiles.saturating_mul(of_a_tile),
        (_, Owns::Entries) => loops.score_tiles.saturating_mul(of_a_tile),
        (_, Owns::Everything | Owns::Sequences) => 0,
        (_, Owns::Rows | Owns::Heads) => loops.kv_tiles.saturating_mul(of_a_tile),
    };
    fours.saturating_mul(of_four)
}
