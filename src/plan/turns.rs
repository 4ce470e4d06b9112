//! How many turns the loops of a kernel take. Some software drivers end a shader after a number of them, without a word:
//! see [`Capabilities::max_loop_turns`](super::Capabilities::max_loop_turns).
//!
//! A loop of n turns counts n + 1: the turn in which it is left is one too. Loops over what a window or the diagonal may
//! hide are counted as if all of it were seen.

use super::part::Lengths;
use super::splits::{visible_keys_of_a_tile, visible_rows_of_a_tile};
use super::tiles::SOFTMAX_INVOCATIONS;
use super::{Kernel, Plan, Specialization, Tiles};
use crate::problem::AttentionProblem;

/// A loop of `turns` turns, each of which holds loops of `inside` turns.
fn a_loop(turns: u64, inside: u64) -> u64 {
    turns.saturating_mul(inside.saturating_add(1)).saturating_add(1)
}

/// A loop in which the invocations of a workgroup share out `count` things.
fn shared(count: u32, invocations: u32, inside: u64) -> u64 {
    a_loop(count.div_ceil(invocations.max(1)).into(), inside)
}

/// The turns of one call of `kept` in `common/philox.wgsl`.
const PHILOX: u64 = 11;

impl Plan {
    /// Turns of all loops that an invocation takes at most in a dispatch of this pass.
    pub(super) fn turns(&self, index: usize, lengths: Lengths) -> u64 {
        turns_of(&self.passes[index].specialization, &self.problem, lengths, self.splits_of(lengths))
    }
}

/// The same for a kernel on one of `num_splits` splits of the keys.
pub(super) fn turns_of(
    specialization: &Specialization,
    problem: &AttentionProblem,
    lengths: Lengths,
    num_splits: u32,
) -> u64 {
    let Specialization { kernel, tiles, head_dim, head_dim_v, .. } = *specialization;
    let invocations = tiles.invocations_of(kernel);
    let philox = if specialization.has_dropout { PHILOX } else { 0 };
    let (tile_q, tile_kv) = (u64::from(tiles.tile_q), u64::from(tiles.tile_kv));
    // Tiles of keys that a workgroup walks over; tiles of rows, of all heads that share a KV head.
    let keys = visible_keys_of_a_tile(problem, lengths.seqlen_kv, tiles).div_ceil(tile_kv);
    let kv_tiles = keys.div_ceil(num_splits.max(1).into());
    let rows = visible_rows_of_a_tile(problem, lengths.seqlen_q, tiles).div_ceil(tile_q);
    let heads = u64::from(problem.shape.heads_per_kv());
    let q_tiles = rows.saturating_mul(heads);
    // Whole tiles and the others each have a loop.
    let tile_loop = |turns: u64, inside: u64| a_loop(turns, inside).saturating_add(1);
    let dim = kernel.product_dim(head_dim, head_dim_v);
    let v_chunks = u64::from(tiles.v_chunks(dim).0);
    match kernel {
        Kernel::FlashForward | Kernel::FlashForwardSplit => {
            let quads = u64::from(tiles.key_quads());
            tile_loop(kv_tiles, a_loop(tile_kv / 4 / quads, u64::from(tiles.thread_rows) * quads * philox))
        }
        Kernel::FlashDecode | Kernel::FlashDecodeSplit => {
            let groups = a_loop(tiles.key_lanes.into(), 0);
            let thread_rows = u64::from(tiles.thread_rows);
            let draws = thread_rows * u64::from(tiles.key_quads()) * philox;
            a_loop(kv_tiles, draws) + thread_rows * (2 * groups + shared(head_dim_v.div_ceil(4), invocations, groups))
        }
        Kernel::FlashForwardCooperative
        | Kernel::FlashForwardCooperativeSplit
        | Kernel::FlashBackwardDkdvCooperative
        | Kernel::FlashBackwardDqCooperative => turns_on_matrices(specialization, kv_tiles, q_tiles, philox),
        Kernel::FlashBackwardPreprocess => a_loop(head_dim_v.div_ceil(4 * tiles.lanes).into(), 0),
        Kernel::FlashBackwardDkdv => {
            a_loop(q_tiles, keep_turns(tiles, invocations, philox) + a_loop(tile_q, 0)).saturating_add(1)
        }
        Kernel::FlashBackwardDq => tile_loop(kv_tiles, keep_turns(tiles, invocations, philox) + a_loop(tile_kv, 0)),
        Kernel::Combine => 2 * a_loop(num_splits.into(), 0),
        Kernel::StandardScores | Kernel::StandardDp => {
            let (chunks, quads) = tiles.k_chunks(dim);
            a_loop(chunks.into(), shared(tiles.tile_q * quads, invocations, 0) + a_loop(quads.into(), 0))
        }
        Kernel::StandardSoftmax => {
            let quads = keys.saturating_mul(tile_kv / 4).div_ceil(SOFTMAX_INVOCATIONS.into());
            let halvings = a_loop(SOFTMAX_INVOCATIONS.trailing_zeros().into(), 0);
            a_loop(quads, 0) + halvings + a_loop(quads, philox)
        }
        Kernel::StandardDs => a_loop(keys.saturating_mul(tile_kv / 4).div_ceil(SOFTMAX_INVOCATIONS.into()), philox),
        Kernel::StandardOutput | Kernel::StandardDq => {
            a_loop(keys, shared(tiles.tile_q * tiles.lanes, invocations, 0) + v_chunks * a_loop(tiles.lanes.into(), 0))
        }
        Kernel::StandardDv | Kernel::StandardDk => {
            let of_a_tile = shared(tiles.tile_q * tiles.tile_kv / 4, invocations, 0) + v_chunks * a_loop(tile_q, 0);
            a_loop(heads, a_loop(rows, of_a_tile))
        }
    }
}

/// Of `place_keep` in `slots/keep/`.
fn keep_turns(tiles: Tiles, invocations: u32, philox: u64) -> u64 {
    if philox == 0 { 0 } else { shared(tiles.tile_q * tiles.tile_kv / 4, invocations, philox) }
}

/// On matrices: every fragment that passes may be taken twice, when a scale has to change; and a row's lanes meet in loops.
fn turns_on_matrices(specialization: &Specialization, kv_tiles: u64, q_tiles: u64, philox: u64) -> u64 {
    let Specialization { kernel, tiles, head_dim, head_dim_v, .. } = *specialization;
    let side = tiles.matrix_side.unwrap_or(1).max(1);
    let (walked, steps) = if kernel.owns_keys() { (tiles.tile_q, q_tiles) } else { (tiles.tile_kv, kv_tiles) };
    let fragments = u64::from(walked.div_ceil(side));
    let owned = u64::from(tiles.thread_rows.div_ceil(side));
    // Lanes that meet: at most five steps each, for the units of what is loaded and the sums of what is owned.
    let quads = u64::from(head_dim.div_ceil(4) + head_dim_v.div_ceil(4));
    let meetings = 6 * (owned * (fragments + 4) + u64::from(walked) * quads / u64::from(tiles.lanes) + 4);
    let of_a_tile = meetings + fragments * (8 + 4 * owned * philox) + u64::from(walked) * quads / 4 + 8;
    a_loop(steps.saturating_mul(2), of_a_tile)
}
