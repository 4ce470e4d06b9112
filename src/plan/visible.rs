//! Upper bounds of the keys and rows that a mask shows.

use super::tiles::Tiles;
use crate::problem::AttentionProblem;

/// KV tiles that one row sees at most.
pub(super) fn visible_tiles(problem: &AttentionProblem, seqlen_kv: u32, tiles: Tiles) -> u64 {
    window(problem).min(seqlen_kv.into()).div_ceil(tiles.tile_kv.into())
}

/// Keys that one row sees at most.
pub(super) fn window(problem: &AttentionProblem) -> u64 {
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
