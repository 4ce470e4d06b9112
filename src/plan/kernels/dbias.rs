//! The gradient of a bias.

use super::spec::{Grid, KernelSpec, NO_FETCHES, has_rows_alone};
use super::specialization::Specialization;
use super::text::{Piece::OneOf, Slot, common, wgsl};
use super::turns::{a_loop, shared};
use crate::operand::Operand::{DBias, DBiasSums, DO, K, Params, Q, RowStats, V};
use crate::operand::Usage::{Read, Uniform, Write};
use crate::plan::tiles::{Owns, QUAD, Tiles};

/// Quads of head dimensions that workgroup memory holds at most at a time.
const CHUNK_QUADS: u32 = 8;

/// Tiles of scores that are summed before the sum is added to the total, as in `flash_backward_dbias.wgsl`.
const TILES_ADDED_AT_ONCE: u64 = 64;

/// Invocations that round the sums, two for each.
const ROUND_INVOCATIONS: u32 = 64;

/// In f32.
pub(super) const DBIAS: KernelSpec = KernelSpec {
    name: "flash_backward_dbias",
    file: wgsl!("flash_backward_dbias.wgsl"),
    text: &[
        common!("philox"),
        OneOf(Slot::Element),
        OneOf(Slot::Access),
        common!("quads"),
        common!("arithmetic"),
        common!("row_stats"),
    ],
    operands: &[(Params, Uniform), (Q, Read), (K, Read), (V, Read), (DO, Read), (RowStats, Read), (DBias, Write)],
    owns: Owns::Entries,
    grid: Grid::Entries,
    masks: true,
    drops: true,
    scores: true,
    names: &[("OWNED_K", "q"), ("OWNED_V", "d_o"), ("WALKED_K", "k"), ("WALKED_V", "v"), ("SUM", "dbias")],
    // The same for all devices: they fit WebGPU's least limits.
    candidates: |_, _| const { &[Tiles::new(64, 32, 4, 8)] },
    sides_fit: |specialization, _| {
        let tiles = specialization.tiles;
        has_rows_alone(tiles) && tiles.tile_kv == 4 * tiles.lanes && tiles.invocations().is_power_of_two()
    },
    bytes: |specialization| {
        let tiles = specialization.tiles;
        let row = u64::from(chunk_quads(specialization) | 1);
        QUAD * (u64::from(tiles.tile_q + tiles.tile_kv) * row + u64::from(tiles.invocations()))
    },
    own_counts: |specialization| {
        let [k_chunks, v_chunks] = chunks(specialization);
        let counts =
            [("CHUNK_QUADS", chunk_quads(specialization)), ("K_CHUNKS", k_chunks), ("V_CHUNKS", v_chunks), ("KEYS", 4)];
        counts.into_iter().chain(NO_FETCHES).collect()
    },
    turns: |specialization, loops| {
        let tiles = specialization.tiles;
        let quads = chunk_quads(specialization);
        let load = |rows: u32| shared(rows * quads, tiles.invocations(), 0);
        let of_a_chunk = load(tiles.tile_q) + load(tiles.tile_kv) + a_loop(quads.into(), 0);
        let chunks = chunks(specialization).iter().map(|chunks| a_loop((*chunks).into(), of_a_chunk)).sum::<u64>();
        let of_a_tile = chunks + u64::from(tiles.thread_rows) * loops.philox;
        let steps = u64::from(tiles.invocations().ilog2() + 2);
        let at_once = loops.score_tiles.min(TILES_ADDED_AT_ONCE);
        a_loop(loops.score_tiles.div_ceil(TILES_ADDED_AT_ONCE), a_loop(at_once, of_a_tile))
            .saturating_add(u64::from(tiles.thread_rows) * steps)
    },
    traffic: |bytes| bytes.passing_q + bytes.passing_o + bytes.passing_stats + bytes.k + bytes.v + bytes.s,
    ..KernelSpec::NONE
};

/// The sums of a gradient in 16 bits.
pub(super) const SUMS: KernelSpec = KernelSpec {
    name: "flash_backward_dbias_sums",
    operands: &[(Params, Uniform), (Q, Read), (K, Read), (V, Read), (DO, Read), (RowStats, Read), (DBiasSums, Write)],
    names: &[("OWNED_K", "q"), ("OWNED_V", "d_o"), ("WALKED_K", "k"), ("WALKED_V", "v"), ("SUM", "dbias_sums")],
    ..DBIAS
};

/// What becomes of them.
pub(super) const ROUND: KernelSpec = KernelSpec {
    name: "round_dbias",
    file: wgsl!("round_dbias.wgsl"),
    text: &[OneOf(Slot::BiasHalf)],
    operands: &[(Params, Uniform), (DBias, Write), (DBiasSums, Read)],
    owns: Owns::Everything,
    grid: Grid::PairsOfEntries,
    invocations: Some(ROUND_INVOCATIONS),
    candidates: |_, _| &[Tiles::NONE],
    own_counts: |_| [("ROUND_INVOCATIONS", ROUND_INVOCATIONS)].into_iter().chain(NO_FETCHES).collect(),
    ..KernelSpec::NONE
};

/// Quads of a chunk: no more than the wider head has.
fn chunk_quads(specialization: &Specialization) -> u32 {
    specialization.head_dim.max(specialization.head_dim_v).div_ceil(4).clamp(1, CHUNK_QUADS)
}

/// Chunks of Q and K, and of V and dO.
fn chunks(specialization: &Specialization) -> [u32; 2] {
    let quads = chunk_quads(specialization);
    [specialization.head_dim, specialization.head_dim_v].map(|dim| dim.div_ceil(4).div_ceil(quads))
}
