//! Standard attention and its gradients: the matrices S and dP pass through device memory, and each product of two matrices
//! is a kernel.

use super::spec::{Counts, Grid, KernelSpec, fetches, has_own_lanes, has_rows_alone};
use super::text::{Piece::OneOf, Slot, common, wgsl};
use super::turns::{Loops, a_loop, shared};
use crate::operand::Operand::{self, DO, Dk, Dp, Dq, Dv, K, Lse, O, Params, Q, RowStats, V};
use crate::operand::Usage::{Read, Uniform, Write};
use crate::plan::tile_table;
use crate::plan::tiles::{Owns, QUAD, Tiles};

/// Quads of head dimensions that workgroup memory holds at a time.
const CHUNK_QUADS: u32 = 16;

/// Invocations that share a row in `standard_softmax.wgsl` and `standard_ds.wgsl`.
const SOFTMAX_INVOCATIONS: u32 = 64;

/// What they have in common.
const STANDARD: KernelSpec = KernelSpec {
    candidates: tile_table::standard,
    sides_fit: |specialization, _| {
        let tiles = specialization.tiles;
        has_rows_alone(tiles) && tiles.tile_kv == 4 * tiles.lanes
    },
    ..KernelSpec::NONE
};

/// S or dP: rows times keys, summed over a head's dimension.
const PRODUCT: KernelSpec = KernelSpec {
    text: &[
        OneOf(Slot::Element),
        OneOf(Slot::Access),
        common!("q_tile"),
        common!("arithmetic"),
        common!("standard_keys"),
        common!("standard_product"),
    ],
    grid: Grid::ScoreTiles,
    ..STANDARD
};

pub(super) const SCORES: KernelSpec = KernelSpec {
    name: "standard_scores",
    file: wgsl!("standard_scores.wgsl"),
    operands: &[(Params, Uniform), (Q, Read), (K, Read), (Operand::S, Write)],
    names: &[("ROWS", "q"), ("KEY_TENSOR", "k")],
    masks: true,
    bytes: |specialization| product_bytes(specialization.tiles, specialization.head_dim),
    own_counts: |specialization| counts(specialization.tiles, Owns::Rows, specialization.head_dim),
    turns: |specialization, _| product_turns(specialization.tiles, specialization.head_dim),
    traffic: |bytes| bytes.passing_q + bytes.k + bytes.s,
    ..PRODUCT
};

/// Probabilities of chosen rows: an operation by itself.
pub(super) const PROBABILITIES: KernelSpec = KernelSpec {
    name: "probabilities",
    file: wgsl!("probabilities.wgsl"),
    operands: &[(Params, Uniform), (Q, Read), (K, Read), (Lse, Read), (Operand::Probabilities, Write)],
    scores: true,
    traffic: |bytes| bytes.passing_q + bytes.k + bytes.lse + bytes.s,
    ..SCORES
};

pub(super) const DP: KernelSpec = KernelSpec {
    name: "standard_dp",
    file: wgsl!("standard_dp.wgsl"),
    operands: &[(Params, Uniform), (V, Read), (DO, Read), (Dp, Write)],
    names: &[("ROWS", "d_o"), ("KEY_TENSOR", "v")],
    bytes: |specialization| product_bytes(specialization.tiles, specialization.head_dim_v),
    own_counts: |specialization| counts(specialization.tiles, Owns::Rows, specialization.head_dim_v),
    turns: |specialization, _| product_turns(specialization.tiles, specialization.head_dim_v),
    traffic: |bytes| bytes.passing_o + bytes.v + bytes.s,
    ..PRODUCT
};

pub(super) const SOFTMAX: KernelSpec = KernelSpec {
    name: "standard_softmax",
    file: wgsl!("standard_softmax.wgsl"),
    text: &[common!("philox"), common!("arithmetic"), OneOf(Slot::RowEnd)],
    operands: &[(Params, Uniform), (Lse, Write), (Operand::S, Write)],
    grid: Grid::Rows,
    invocations: Some(SOFTMAX_INVOCATIONS),
    drops: true,
    scores: true,
    ends_rows: true,
    bytes: |_| 8 * SOFTMAX_INVOCATIONS as u64,
    own_counts: |specialization| counts(specialization.tiles, Owns::Rows, specialization.head_dim),
    turns: |specialization, loops| {
        let quads = quads_of_a_row(specialization.tiles, loops);
        let halvings = a_loop(SOFTMAX_INVOCATIONS.trailing_zeros().into(), 0);
        a_loop(quads, 0) + halvings + a_loop(quads, loops.philox)
    },
    // Read for the sums, read and written for the probabilities.
    traffic: |bytes| 3 * bytes.s + bytes.lse,
    ..STANDARD
};

pub(super) const DS: KernelSpec = KernelSpec {
    name: "standard_ds",
    file: wgsl!("standard_ds.wgsl"),
    text: &[common!("philox"), common!("row_stats")],
    operands: &[(Params, Uniform), (Operand::S, Write), (RowStats, Read), (Dp, Write)],
    grid: Grid::Rows,
    invocations: Some(SOFTMAX_INVOCATIONS),
    drops: true,
    scores: true,
    own_counts: |specialization| counts(specialization.tiles, Owns::Rows, specialization.head_dim),
    turns: |specialization, loops| a_loop(quads_of_a_row(specialization.tiles, loops), loops.philox),
    traffic: |bytes| 4 * bytes.s + 2 * bytes.lse,
    ..STANDARD
};

/// O or dQ: a matrix times K or V, summed over keys.
const SUM: KernelSpec = KernelSpec { masks: true, ..STANDARD };

pub(super) const OUTPUT: KernelSpec = KernelSpec {
    name: "standard_output",
    file: wgsl!("standard_output.wgsl"),
    text: &[
        OneOf(Slot::Element),
        OneOf(Slot::Access),
        OneOf(Slot::F32Store),
        common!("q_tile"),
        common!("arithmetic"),
        common!("standard_keys"),
        common!("standard_sum"),
    ],
    operands: &[(Params, Uniform), (V, Read), (O, Write), (Lse, Read), (Operand::S, Read)],
    names: &[("MATRIX", "s"), ("KEY_TENSOR", "v"), ("SUM", "o")],
    bytes: |specialization| sum_bytes(specialization.tiles, specialization.head_dim_v),
    own_counts: |specialization| counts(specialization.tiles, Owns::Rows, specialization.head_dim_v),
    turns: |specialization, loops| sum_turns(specialization.tiles, specialization.head_dim_v, loops),
    traffic: |bytes| bytes.s + bytes.v + bytes.o,
    ..SUM
};

pub(super) const DQ: KernelSpec = KernelSpec {
    name: "standard_dq",
    file: wgsl!("standard_dq.wgsl"),
    text: &[
        OneOf(Slot::Element),
        OneOf(Slot::Access),
        OneOf(Slot::F32Store),
        common!("q_tile"),
        common!("arithmetic"),
        common!("standard_keys"),
        common!("standard_sum"),
    ],
    operands: &[(Params, Uniform), (K, Read), (Lse, Read), (Dq, Write), (Dp, Read)],
    names: &[("MATRIX", "dp"), ("KEY_TENSOR", "k"), ("SUM", "dq")],
    bytes: |specialization| sum_bytes(specialization.tiles, specialization.head_dim),
    own_counts: |specialization| counts(specialization.tiles, Owns::Rows, specialization.head_dim),
    turns: |specialization, loops| sum_turns(specialization.tiles, specialization.head_dim, loops),
    traffic: |bytes| bytes.s + bytes.k + bytes.dq,
    ..SUM
};

/// dK or dV: a transposed matrix times Q or dO, summed over rows.
const TRANSPOSED_SUM: KernelSpec = KernelSpec {
    text: &[
        OneOf(Slot::Element),
        OneOf(Slot::Access),
        OneOf(Slot::F32Store),
        common!("kv_tile"),
        common!("arithmetic"),
        common!("standard_transposed_sum"),
    ],
    owns: Owns::Keys,
    grid: Grid::KeyTiles,
    masks: true,
    sides_fit: |specialization, _| has_own_lanes(specialization.tiles) && specialization.tiles.thread_rows == 4,
    ..STANDARD
};

pub(super) const DV: KernelSpec = KernelSpec {
    name: "standard_dv",
    file: wgsl!("standard_dv.wgsl"),
    operands: &[(Params, Uniform), (Lse, Read), (Operand::S, Read), (DO, Read), (Dv, Write)],
    names: &[("MATRIX", "s"), ("ROWS", "d_o"), ("SUM", "dv")],
    bytes: |specialization| transposed_sum_bytes(specialization.tiles, specialization.head_dim_v),
    own_counts: |specialization| counts(specialization.tiles, Owns::Keys, specialization.head_dim_v),
    turns: |specialization, loops| transposed_sum_turns(specialization.tiles, specialization.head_dim_v, loops),
    traffic: |bytes| bytes.s + bytes.passing_o + bytes.dv,
    ..TRANSPOSED_SUM
};

pub(super) const DK: KernelSpec = KernelSpec {
    name: "standard_dk",
    file: wgsl!("standard_dk.wgsl"),
    operands: &[(Params, Uniform), (Q, Read), (Lse, Read), (Dk, Write), (Dp, Read)],
    names: &[("MATRIX", "dp"), ("ROWS", "q"), ("SUM", "dk")],
    bytes: |specialization| transposed_sum_bytes(specialization.tiles, specialization.head_dim),
    own_counts: |specialization| counts(specialization.tiles, Owns::Keys, specialization.head_dim),
    turns: |specialization, loops| transposed_sum_turns(specialization.tiles, specialization.head_dim, loops),
    traffic: |bytes| bytes.s + bytes.passing_q + bytes.dk,
    ..TRANSPOSED_SUM
};

/// In how many chunks Q and K pass, and how many quads of head dimensions each holds.
fn k_chunks(head_dim: u32) -> (u32, u32) {
    chunks(head_dim.div_ceil(4), CHUNK_QUADS)
}

/// In how many chunks V passes, and how many quads of each one invocation owns.
fn v_chunks(tiles: Tiles, head_dim_v: u32) -> (u32, u32) {
    chunks(tiles.quads(head_dim_v), (CHUNK_QUADS / tiles.lanes).max(1))
}

/// Into how many chunks so many quads go, and how many are in each.
fn chunks(quads: u32, at_most: u32) -> (u32, u32) {
    let chunks = quads.div_ceil(at_most);
    (chunks, quads.div_ceil(chunks.max(1)))
}

/// Quads of a row of a chunk of V in workgroup memory: an odd number, for its banks.
fn v_stride(tiles: Tiles, dim: u32) -> u64 {
    (u64::from(v_chunks(tiles, dim).1) * u64::from(tiles.lanes)) | 1
}

fn product_bytes(tiles: Tiles, dim: u32) -> u64 {
    QUAD * u64::from(tiles.tile_q + tiles.tile_kv) * u64::from(k_chunks(dim).1 | 1)
}

fn sum_bytes(tiles: Tiles, dim: u32) -> u64 {
    let [tile_q, tile_kv, lanes] = [tiles.tile_q, tiles.tile_kv, tiles.lanes].map(u64::from);
    QUAD * (tile_q * (lanes | 1) + tile_kv * v_stride(tiles, dim))
}

fn transposed_sum_bytes(tiles: Tiles, dim: u32) -> u64 {
    QUAD * u64::from(tiles.tile_q) * (u64::from((tiles.tile_kv / 4) | 1) + v_stride(tiles, dim))
}

fn product_turns(tiles: Tiles, dim: u32) -> u64 {
    let (chunks, quads) = k_chunks(dim);
    let fetch = shared(tiles.tile_q * quads, tiles.invocations(), 0);
    a_loop(chunks.into(), fetch + a_loop(quads.into(), 0))
}

/// Quads of a row of the score matrix that one invocation walks over.
fn quads_of_a_row(tiles: Tiles, loops: &Loops) -> u64 {
    loops.keys.saturating_mul(u64::from(tiles.tile_kv) / 4).div_ceil(SOFTMAX_INVOCATIONS.into())
}

fn sum_turns(tiles: Tiles, dim: u32, loops: &Loops) -> u64 {
    let fetch = shared(tiles.tile_q * tiles.lanes, tiles.invocations(), 0);
    a_loop(loops.keys, fetch + u64::from(v_chunks(tiles, dim).0) * a_loop(tiles.lanes.into(), 0))
}

fn transposed_sum_turns(tiles: Tiles, dim: u32, loops: &Loops) -> u64 {
    let fetch = shared(tiles.tile_q * tiles.tile_kv / 4, tiles.invocations_of(Owns::Keys), 0);
    let of_a_tile = fetch + u64::from(v_chunks(tiles, dim).0) * a_loop(tiles.tile_q.into(), 0);
    a_loop(loops.heads, a_loop(loops.rows, of_a_tile))
}

/// The constants of a kernel whose product sums over `dim`, or has rows of that width.
fn counts(tiles: Tiles, owns: Owns, dim: u32) -> Counts {
    let (k_chunks, k_chunk_quads) = k_chunks(dim);
    let (v_chunks, thread_quads) = v_chunks(tiles, dim);
    let mut counts = vec![
        ("PRODUCT_DIM", dim),
        ("KEYS", 4),
        ("SOFTMAX_INVOCATIONS", SOFTMAX_INVOCATIONS),
        ("K_CHUNKS", k_chunks),
        ("K_CHUNK_QUADS", k_chunk_quads),
        ("V_CHUNKS", v_chunks),
        ("THREAD_QUADS", thread_quads),
    ];
    counts.extend(fetches(tiles, owns, k_chunk_quads, thread_quads * tiles.lanes));
    counts
}
