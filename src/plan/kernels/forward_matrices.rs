//! The forward pass with its products on cooperative matrices.

use super::kernel::Kernel;
use super::spec::{Counts, Grid, KernelSpec, has_rows_alone};
use super::specialization::Specialization;
use super::text::{Piece::OneOf, Slot, common, matrix_common, matrix_wgsl};
use super::turns::turns_on_matrices;
use crate::operand::Operand::{K, Lse, LseParts, O, OParts, Params, Q, V};
use crate::operand::Usage::{Read, Uniform, Write};
use crate::plan::tile_table;
use crate::plan::tiles::{Owns, QUAD, Tiles};

/// The text of these kernels. `$tile` are the files that say which rows of which heads a tile has.
macro_rules! text {
    ($($tile:literal),+) => {
        &[
            common!("philox"),
            OneOf(Slot::Element),
            OneOf(Slot::Access),
            OneOf(Slot::F32Store),
            OneOf(Slot::KeyPlace),
            $(common!($tile),)+
            common!("arithmetic"),
            common!("visits"),
            OneOf(Slot::Visits),
            common!("kv_tiles"),
            OneOf(Slot::Output),
            OneOf(Slot::RowEnd),
            OneOf(Slot::MatrixOperand),
            OneOf(Slot::MatrixParts),
            OneOf(Slot::RowUnits),
            common!("quads"),
            matrix_common!("fragments"),
            matrix_common!("cooperative_tiles"),
            OneOf(Slot::RowMax),
        ]
    };
}

pub(super) const FORWARD: KernelSpec = KernelSpec {
    name: "flash_forward_cooperative",
    file: matrix_wgsl!("flash_forward_cooperative.wgsl"),
    text: text!("q_tile", "rows_of_head"),
    operands: &[(Params, Uniform), (Q, Read), (K, Read), (V, Read), (O, Write), (Lse, Write)],
    on_matrices: true,
    split: Some(Kernel::FlashForwardCooperativeSplit),
    masks: true,
    drops: true,
    names: &[("OWNED_K", "q"), ("WALKED_K", "k"), ("WALKED_V", "v")],
    scores: true,
    ends_rows: true,
    candidates: tile_table::forward_on_matrices,
    reads_pages: true,
    sides_fit: |specialization, _| sides_fit(specialization),
    bytes,
    own_counts: counts,
    turns: |specialization, loops| turns_on_matrices(specialization, Owns::Rows, loops),
    traffic: |bytes| bytes.q + bytes.k + bytes.v + bytes.o + bytes.lse,
    ..KernelSpec::NONE
};

pub(super) const SPLIT: KernelSpec = KernelSpec {
    name: "flash_forward_cooperative_split",
    operands: &[(Params, Uniform), (Q, Read), (K, Read), (V, Read), (OParts, Write), (LseParts, Write)],
    grid: Grid::RowTilesOfSplits,
    split: None,
    ends_rows: false,
    traffic: |bytes| bytes.splits * bytes.q + bytes.k + bytes.v + bytes.parts,
    ..FORWARD
};

/// Few rows of many heads: those that share a KV head share workgroups.
pub(super) const PACKED: KernelSpec = KernelSpec {
    name: "flash_forward_cooperative_packed",
    text: text!("group_tile"),
    packs_heads: true,
    serves: tile_table::packs_on_matrices,
    split: Some(Kernel::FlashForwardCooperativePackedSplit),
    candidates: tile_table::packed_on_matrices,
    // Score modifiers know one head for each invocation.
    sides_fit: |specialization, _| {
        sides_fit(specialization) && specialization.tiles.thread_rows == side(specialization.tiles)
    },
    ..FORWARD
};

pub(super) const PACKED_SPLIT: KernelSpec = KernelSpec {
    name: "flash_forward_cooperative_packed_split",
    operands: SPLIT.operands,
    grid: SPLIT.grid,
    split: None,
    ends_rows: false,
    traffic: SPLIT.traffic,
    ..PACKED
};

/// Fragments side by side in a chunk, which has 8 elements for each invocation; 0 where a single fragment has fewer.
fn chunk_fragments(tiles: Tiles) -> u32 {
    8 * tiles.lanes / (side(tiles) * side(tiles))
}

fn side(tiles: Tiles) -> u32 {
    tiles.matrix_side.unwrap_or(1)
}

fn sides_fit(specialization: &Specialization) -> bool {
    let Specialization { tiles, head_dim, head_dim_v, .. } = *specialization;
    let chunk = chunk_fragments(tiles) * side(tiles);
    if chunk == 0 {
        return false;
    }
    let widest = head_dim.max(head_dim_v).next_multiple_of(chunk);
    has_rows_alone(tiles)
        && tiles.tile_kv.is_multiple_of(chunk)
        // The invocations load at least a row of K and V at a time.
        && widest <= 4 * tiles.invocations()
}

fn bytes(specialization: &Specialization) -> u64 {
    let Specialization { tiles, head_dim, head_dim_v, storage, .. } = *specialization;
    let [tile_q, tile_kv, thread_rows] = [tiles.tile_q, tiles.tile_kv, tiles.thread_rows].map(u64::from);
    // A subgroup too small for a single fragment has no chunk; `sides_fit` refuses it.
    let chunk = u64::from(chunk_fragments(tiles) * side(tiles)).max(1);
    let row = |dim: u32| u64::from(dim).next_multiple_of(chunk) / 4 + 2;
    let scratch = tile_q / thread_rows * u64::from(side(tiles)) * (chunk / 4 + 2);
    // K, V and P are f16, S is f32; one quad says whether a maximum has grown.
    let halves = u64::from(storage.matrix_parts()) * (tile_kv * (row(head_dim) + row(head_dim_v)) + 4 + scratch);
    let units = if storage.has_row_units() { 8 * (tile_kv + 4) } else { 0 };
    QUAD / 2 * halves + QUAD * (scratch + 1) + units
}

fn counts(specialization: &Specialization) -> Counts {
    let Specialization { tiles, head_dim, head_dim_v, .. } = *specialization;
    let chunk = chunk_fragments(tiles) * side(tiles);
    let (k_chunks, v_chunks) = (head_dim.div_ceil(chunk), head_dim_v.div_ceil(chunk));
    let (k_quads, v_quads) = (k_chunks * chunk / 4, v_chunks * chunk / 4);
    let [k_lanes, v_lanes] = [k_quads, v_quads].map(|quads| specialization.matrix_fetch_lanes(quads));
    // Whole rows are fetched at a time.
    let fetches = |lanes: u32| tiles.tile_kv.div_ceil((tiles.invocations() / lanes).max(1));
    vec![
        ("MATRIX_SIDE", side(tiles)),
        ("CHUNK_FRAGMENTS", chunk_fragments(tiles)),
        ("ROW_FRAGMENTS", tiles.thread_rows / side(tiles)),
        ("KEY_CHUNKS", tiles.tile_kv / chunk),
        ("K_CHUNKS", k_chunks),
        ("V_CHUNKS", v_chunks),
        ("TILE_ROWS", tiles.tile_kv),
        ("K_FETCH_LANES", k_lanes),
        ("V_FETCH_LANES", v_lanes),
        ("K_FETCH_PARTS", k_quads.div_ceil(k_lanes)),
        ("V_FETCH_PARTS", v_quads.div_ceil(v_lanes)),
        ("K_FETCHES", fetches(k_lanes)),
        ("V_FETCHES", fetches(v_lanes)),
    ]
}
