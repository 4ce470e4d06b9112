//! The gradients with their products on cooperative matrices.

use super::backward::{DKDV_OPERANDS, DQ_OPERANDS, dkdv_traffic, dq_traffic, passing_stats};
use super::spec::{Counts, Grid, KernelSpec, fetches, has_own_lanes};
use super::specialization::Specialization;
use super::text::{Piece::OneOf, Slot, common, matrix_common, matrix_wgsl};
use super::turns::turns_on_matrices;
use crate::plan::tile_table;
use crate::plan::tiles::{Owns, QUAD};

pub(super) const DKDV: KernelSpec = KernelSpec {
    name: "flash_backward_dkdv_cooperative",
    file: matrix_wgsl!("flash_backward_dkdv_cooperative.wgsl"),
    text: &[
        common!("philox"),
        OneOf(Slot::Element),
        OneOf(Slot::Access),
        OneOf(Slot::F32Store),
        common!("kv_tile"),
        common!("arithmetic"),
        common!("visits"),
        OneOf(Slot::Visits),
        common!("row_steps"),
        common!("row_stats"),
        OneOf(Slot::MatrixOperand),
        OneOf(Slot::MatrixParts),
        OneOf(Slot::RowUnits),
        common!("quads"),
        matrix_common!("fragments"),
        matrix_common!("cooperative_gradient_tiles"),
    ],
    operands: DKDV_OPERANDS,
    owns: Owns::Keys,
    grid: Grid::KeyTiles,
    names: &[
        ("OWNED_K", "k"),
        ("OWNED_V", "v"),
        ("WALKED_K", "q"),
        ("WALKED_V", "d_o"),
        ("SCORE_K", "s"),
        ("SCORE_V", "dp"),
        ("FACTOR_K", "ds"),
        ("FACTOR_V", "p"),
        ("GRADIENT_K", "dk"),
        ("GRADIENT_V", "dv"),
    ],
    candidates: tile_table::dkdv_on_matrices,
    sides_fit: |specialization, _| sides_fit(specialization, Owns::Keys),
    bytes: |specialization| bytes(specialization, Owns::Keys),
    own_counts: |specialization| counts(specialization, Owns::Keys),
    turns: |specialization, loops| turns_on_matrices(specialization, Owns::Keys, loops),
    traffic: dkdv_traffic,
    ..DQ
};

pub(super) const DQ: KernelSpec = KernelSpec {
    name: "flash_backward_dq_cooperative",
    file: matrix_wgsl!("flash_backward_dq_cooperative.wgsl"),
    text: &[
        common!("philox"),
        OneOf(Slot::Element),
        OneOf(Slot::Access),
        OneOf(Slot::F32Store),
        common!("q_tile"),
        common!("arithmetic"),
        common!("visits"),
        OneOf(Slot::Visits),
        common!("kv_tiles"),
        common!("row_stats"),
        OneOf(Slot::MatrixOperand),
        OneOf(Slot::MatrixParts),
        OneOf(Slot::RowUnits),
        common!("quads"),
        matrix_common!("fragments"),
        matrix_common!("cooperative_gradient_tiles"),
    ],
    operands: DQ_OPERANDS,
    on_matrices: true,
    masks: true,
    drops: true,
    scores: true,
    masked_loop: true,
    names: &[
        ("OWNED_K", "q"),
        ("OWNED_V", "d_o"),
        ("WALKED_K", "k"),
        ("WALKED_V", "v"),
        ("SCORE_K", "s"),
        ("SCORE_V", "dp"),
        ("GRADIENT_K", "dq"),
    ],
    candidates: tile_table::dq_on_matrices,
    sides_fit: |specialization, _| sides_fit(specialization, Owns::Rows),
    bytes: |specialization| bytes(specialization, Owns::Rows),
    own_counts: |specialization| counts(specialization, Owns::Rows),
    turns: |specialization, loops| turns_on_matrices(specialization, Owns::Rows, loops),
    traffic: dq_traffic,
    ..KernelSpec::NONE
};

fn sides_fit(specialization: &Specialization, owns: Owns) -> bool {
    let tiles = specialization.tiles;
    let side = tiles.matrix_side.unwrap_or(1);
    has_own_lanes(tiles)
        && tiles.lanes == side * side / 8
        && tiles.owned(owns).is_multiple_of(tiles.thread_rows)
        && tiles.passing(owns).is_multiple_of(side)
}

fn bytes(specialization: &Specialization, owns: Owns) -> u64 {
    let Specialization { tiles, head_dim, head_dim_v, storage, .. } = *specialization;
    let side = u64::from(tiles.matrix_side.unwrap_or(1));
    let row = |dim: u32| u64::from(dim).div_ceil(side) * side / 4 + 2;
    let passing = u64::from(tiles.passing(owns));
    let rows = u64::from(tiles.invocations_of(owns) / tiles.lanes) * side;
    // A mark for each row of the passing tile; the tiles, P and dS are f16, S and dP f32.
    let halves = passing * (row(head_dim) + row(head_dim_v)) + rows * (side / 4 + 2);
    let halves = u64::from(storage.matrix_parts()) * halves;
    let units = if storage.has_row_units() { 8 * (passing + 4) } else { 0 };
    let s_stride = side / 4 + if owns == Owns::Keys { 1 } else { 2 };
    QUAD / 2 * halves + QUAD * rows * s_stride + passing_stats(specialization, owns) + 4 * passing + units
}

fn counts(specialization: &Specialization, owns: Owns) -> Counts {
    let Specialization { tiles, head_dim, head_dim_v, .. } = *specialization;
    let side = tiles.matrix_side.unwrap_or(1);
    let passing = tiles.passing(owns);
    let (k_fragments, v_fragments) = (head_dim.div_ceil(side), head_dim_v.div_ceil(side));
    // Two fragments of the passing tile at a time, where the registers of what is owned leave room for them.
    let parts = specialization.storage.matrix_parts();
    let owned = tiles.thread_rows / side * (k_fragments + v_fragments) * parts;
    let is_pair = owned <= if owns == Owns::Keys { 8 } else { 16 };
    let (k_quads, v_quads) = (k_fragments * side / 4, v_fragments * side / 4);
    let k_lanes = specialization.matrix_fetch_lanes(k_quads);
    let v_lanes = specialization.matrix_fetch_lanes(v_quads);
    let mut counts = vec![
        ("MATRIX_SIDE", side),
        ("OWNED_FRAGMENTS", tiles.thread_rows / side),
        // A chunk is a fragment: that has 8 elements for each invocation.
        ("CHUNK_FRAGMENTS", 1),
        ("K_CHUNKS", k_fragments),
        ("V_CHUNKS", v_fragments),
        ("TILE_ROWS", passing),
        ("PASSING_FRAGMENTS", if is_pair && (passing / side).is_multiple_of(2) { 2 } else { 1 }),
        ("STATS_FETCHES", tiles.tile_q.div_ceil(tiles.invocations_of(owns))),
        ("K_FETCH_LANES", k_lanes),
        ("K_FETCH_PARTS", k_quads.div_ceil(k_lanes)),
        ("V_FETCH_LANES", v_lanes),
        ("V_FETCH_PARTS", v_quads.div_ceil(v_lanes)),
    ];
    counts.extend(fetches(tiles, owns, k_lanes, v_lanes));
    counts
}
