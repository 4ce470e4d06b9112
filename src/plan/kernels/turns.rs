//! How many turns the loops of a kernel take. Some software drivers end a shader after a number of turns and report
//! nothing: see [`Capabilities::max_loop_turns`](crate::plan::Capabilities::max_loop_turns).
//!
//! A loop of n turns counts n + 1, because the turn in which it ends counts too. Loops over keys that a window or the
//! diagonal may hide are counted as if all were seen.

use super::specialization::Specialization;
use crate::plan::tiles::Owns;

/// What the loops of a workgroup go over.
pub(crate) struct Loops {
    /// Tiles of keys that a row may see.
    pub keys: u64,
    /// The same within one split of the keys.
    pub kv_tiles: u64,
    /// Tiles of rows that may see a key, in one head.
    pub rows: u64,
    /// Heads that share a KV head.
    pub heads: u64,
    /// Tiles of rows of all these heads.
    pub q_tiles: u64,
    pub num_splits: u64,
    /// Rows of a sequence, whatever they see, and sequences.
    pub all_rows: u64,
    pub sequences: u64,
    /// Tiles of scores that share a tile of entries of a bias.
    pub score_tiles: u64,
    /// Turns of one draw of dropout, 0 without it.
    pub philox: u64,
}

/// The turns of one call of `kept` in `common/philox.wgsl`.
pub(in crate::plan) const PHILOX: u64 = 11;

/// A loop of `turns` turns, each of which holds loops of `inside` turns.
pub(super) fn a_loop(turns: u64, inside: u64) -> u64 {
    turns.saturating_mul(inside.saturating_add(1)).saturating_add(1)
}

/// A loop in which the invocations of a workgroup share `count` pieces of work.
pub(super) fn shared(count: u32, invocations: u32, inside: u64) -> u64 {
    a_loop(count.div_ceil(invocations.max(1)).into(), inside)
}

/// A loop over tiles: whole tiles and the others each have one.
pub(super) fn tile_loop(turns: u64, inside: u64) -> u64 {
    a_loop(turns, inside).saturating_add(1)
}

/// On matrices: every fragment that passes may be taken twice, when a scale has to change; and a row's lanes meet in loops.
pub(super) fn turns_on_matrices(specialization: &Specialization, owns: Owns, loops: &Loops) -> u64 {
    let Specialization { tiles, head_dim, head_dim_v, .. } = *specialization;
    let side = tiles.matrix_side.unwrap_or(1).max(1);
    let steps = if owns == Owns::Keys { loops.q_tiles } else { loops.kv_tiles };
    let passing = tiles.passing(owns);
    let fragments = u64::from(passing.div_ceil(side));
    let owned = u64::from(tiles.thread_rows.div_ceil(side));
    // Lanes that meet: at most five steps each, for the units of what is loaded and the sums of what is owned.
    let quads = u64::from(head_dim.div_ceil(4) + head_dim_v.div_ceil(4));
    let meetings = 6 * (owned * (fragments + 4) + u64::from(passing) * quads / u64::from(tiles.lanes) + 4);
    let of_a_tile = meetings + fragments * (8 + 4 * owned * loops.philox) + u64::from(passing) * quads / 4 + 8;
    a_loop(steps.saturating_mul(2), of_a_tile)
}
