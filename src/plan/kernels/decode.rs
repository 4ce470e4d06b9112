//! Few rows and many keys: the rows of all heads that share K and V are in the registers of every invocation, and K and V
//! go straight to registers.

use super::forward;
use super::kernel::Kernel;
use super::spec::{Grid, KernelSpec, partials};
use super::specialization::Specialization;
use super::text::{Piece::OneOf, Slot, common, wgsl};
use super::turns::{a_loop, shared};
use crate::operand::Operand::{K, Lse, LseParts, O, OParts, Params, Q, V};
use crate::operand::Usage::{Read, Uniform, Write};
use crate::plan::tile_table;
use crate::plan::tiles::{Owns, QUAD};

pub(super) const DECODE: KernelSpec = KernelSpec {
    name: "flash_decode",
    file: wgsl!("flash_decode.wgsl"),
    text: &[
        common!("philox"),
        OneOf(Slot::Element),
        OneOf(Slot::Access),
        OneOf(Slot::F32Store),
        OneOf(Slot::CachedHalf),
        OneOf(Slot::CachedElement),
        OneOf(Slot::KeyPlace),
        common!("group_tile"),
        common!("arithmetic"),
        common!("visits"),
        OneOf(Slot::Visits),
        OneOf(Slot::RowReduce),
        OneOf(Slot::Output),
        OneOf(Slot::RowEnd),
        common!("decode_tiles"),
    ],
    operands: &[(Params, Uniform), (Q, Read), (K, Read), (V, Read), (O, Write), (Lse, Write)],
    row_sums: Some(4),
    packs_heads: true,
    split: Some(Kernel::FlashDecodeSplit),
    masks: true,
    drops: true,
    scores: true,
    ends_rows: true,
    reads_pages: true,
    converts_kv: true,
    candidates: tile_table::decode,
    sides_fit: |specialization, _| {
        let tiles = specialization.tiles;
        // The rows of a workgroup would need lists in common.
        !specialization.has_lists
            && tiles.thread_rows == tiles.tile_q
            && tiles.key_lanes > 1
            && tiles.tile_kv.is_multiple_of(4 * tiles.key_lanes)
    },
    bytes: |specialization| {
        let tiles = specialization.tiles;
        let o = QUAD * tiles.row_quads(specialization.head_dim_v);
        u64::from(tiles.key_lanes) * (8 + o) + partials(specialization, Owns::Rows, 4)
    },
    own_counts: forward::counts,
    turns: |specialization, loops| {
        let Specialization { tiles, head_dim_v, .. } = *specialization;
        let groups = a_loop(tiles.key_lanes.into(), 0);
        let thread_rows = u64::from(tiles.thread_rows);
        let draws = thread_rows * u64::from(tiles.key_quads()) * loops.philox;
        let merge = 2 * groups + shared(head_dim_v.div_ceil(4), tiles.invocations(), groups);
        a_loop(loops.kv_tiles, draws) + thread_rows * merge
    },
    traffic: |bytes| bytes.q + bytes.shared + bytes.o + bytes.lse,
    ..KernelSpec::NONE
};

pub(super) const SPLIT: KernelSpec = KernelSpec {
    name: "flash_decode_split",
    operands: &[(Params, Uniform), (Q, Read), (K, Read), (V, Read), (OParts, Write), (LseParts, Write)],
    grid: Grid::RowTilesOfSplits,
    split: None,
    ends_rows: false,
    traffic: |bytes| bytes.splits * bytes.q + bytes.shared + bytes.parts,
    ..DECODE
};
