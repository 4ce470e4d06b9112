//! The forward pass: a workgroup owns a tile of rows and goes over K and V in workgroup memory.

use super::kernel::Kernel;
use super::spec::{Counts, Grid, KernelSpec, fetches, has_rows_alone, partials};
use super::specialization::Specialization;
use super::text::{Piece::OneOf, Slot, common, wgsl};
use super::turns::{a_loop, tile_loop};
use crate::operand::Operand::{K, Lse, LseParts, O, OParts, Params, Q, V};
use crate::operand::Usage::{Read, Uniform, Write};
use crate::plan::capabilities::Capabilities;
use crate::plan::tile_table;
use crate::plan::tiles::{Owns, QUAD};

pub(super) const FORWARD: KernelSpec = KernelSpec {
    name: "flash_forward",
    file: wgsl!("flash_forward.wgsl"),
    text: &[
        common!("philox"),
        OneOf(Slot::Element),
        OneOf(Slot::Access),
        OneOf(Slot::F32Store),
        OneOf(Slot::CachedHalf),
        OneOf(Slot::CachedElement),
        OneOf(Slot::KeyPlace),
        common!("q_tile"),
        common!("arithmetic"),
        common!("visits"),
        OneOf(Slot::Visits),
        common!("kv_tiles"),
        OneOf(Slot::RowReduce),
        OneOf(Slot::Output),
        OneOf(Slot::RowEnd),
        common!("flash_tiles"),
        OneOf(Slot::TileRead),
    ],
    operands: &[(Params, Uniform), (Q, Read), (K, Read), (V, Read), (O, Write), (Lse, Write)],
    row_sums: Some(4),
    split: Some(Kernel::FlashForwardSplit),
    masks: true,
    drops: true,
    scores: true,
    masked_loop: true,
    ends_rows: true,
    reads_pages: true,
    converts_kv: true,
    candidates: tile_table::forward,
    sides_fit,
    bytes: |specialization| {
        let Specialization { tiles, head_dim, head_dim_v, .. } = *specialization;
        let quads = tiles.row_quads(head_dim) + tiles.row_quads(head_dim_v);
        QUAD * u64::from(tiles.tile_kv) * quads + partials(specialization, Owns::Rows, 4)
    },
    own_counts: counts,
    turns: |specialization, loops| {
        let tiles = specialization.tiles;
        let quads = u64::from(tiles.key_quads());
        let draws = u64::from(tiles.thread_rows) * quads * loops.philox;
        tile_loop(loops.kv_tiles, a_loop(u64::from(tiles.tile_kv) / 4 / quads, draws))
    },
    traffic: |bytes| bytes.q + bytes.k + bytes.v + bytes.o + bytes.lse,
    ..KernelSpec::NONE
};

pub(super) const SPLIT: KernelSpec = KernelSpec {
    name: "flash_forward_split",
    operands: &[(Params, Uniform), (Q, Read), (K, Read), (V, Read), (OParts, Write), (LseParts, Write)],
    grid: Grid::RowTilesOfSplits,
    split: None,
    ends_rows: false,
    traffic: |bytes| bytes.splits * bytes.q + bytes.k + bytes.v + bytes.parts,
    ..FORWARD
};

fn sides_fit(specialization: &Specialization, capabilities: &Capabilities) -> bool {
    let tiles = specialization.tiles;
    // Only whole subgroups, all of one size, can load for each other.
    let loads_together = || {
        tiles.lanes == 1
            && capabilities.subgroups
            && [capabilities.subgroup_min_size, capabilities.subgroup_max_size] == [tiles.broadcast; 2]
            && tiles.tile_q.is_multiple_of(tiles.thread_rows * tiles.broadcast)
    };
    has_rows_alone(tiles) || (tiles.key_lanes == 1 && tiles.broadcast > 1 && loads_together())
}

/// As decoding has them too.
pub(super) fn counts(specialization: &Specialization) -> Counts {
    let Specialization { tiles, head_dim, head_dim_v, .. } = *specialization;
    let (k_quads, v_quads) = (tiles.quads(head_dim), tiles.quads(head_dim_v));
    let mut counts = vec![
        ("K_QUADS", k_quads),
        ("V_QUADS", v_quads),
        ("KEYS", 4),
        ("BROADCAST", tiles.broadcast),
        ("K_LOADS", k_quads / tiles.broadcast),
        ("V_LOADS", v_quads / tiles.broadcast),
        ("KEY_LANES", tiles.key_lanes),
        ("GROUP_QUADS", tiles.key_quads()),
    ];
    counts.extend(fetches(tiles, Owns::Rows, tiles.lanes * k_quads, tiles.lanes * v_quads));
    counts
}
