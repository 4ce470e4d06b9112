//! The gradients. For dK and dV, a workgroup owns a tile of keys and goes over rows. For dQ, it owns a tile of rows and goes
//! over keys.

use super::spec::{Counts, Grid, KernelSpec, Traffic, fetches, has_own_lanes, partials};
use super::specialization::Specialization;
use super::text::{Piece::OneOf, Slot, common, wgsl};
use super::turns::{Loops, a_loop, shared, tile_loop};
use crate::operand::Operand::{DO, Dk, Dq, Dv, K, Params, Q, RowStats, V};
use crate::operand::Usage::{Read, Uniform, Write};
use crate::operand::{Operand, Usage};
use crate::plan::tile_table;
use crate::plan::tiles::{Owns, QUAD};

/// What dK and dV bind, on matrices too.
pub(super) const DKDV_OPERANDS: &[(Operand, Usage)] =
    &[(Params, Uniform), (Q, Read), (K, Read), (V, Read), (DO, Read), (RowStats, Read), (Dk, Write), (Dv, Write)];

/// What dQ binds.
pub(super) const DQ_OPERANDS: &[(Operand, Usage)] =
    &[(Params, Uniform), (Q, Read), (K, Read), (V, Read), (DO, Read), (RowStats, Read), (Dq, Write)];

pub(super) const DKDV: KernelSpec = KernelSpec {
    name: "flash_backward_dkdv",
    file: wgsl!("flash_backward_dkdv.wgsl"),
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
        OneOf(Slot::RowReduce),
        common!("row_stats"),
        OneOf(Slot::Keep),
        common!("flash_q_tiles"),
    ],
    operands: DKDV_OPERANDS,
    owns: Owns::Keys,
    grid: Grid::KeyTiles,
    row_sums: Some(2),
    masks: true,
    drops: true,
    scores: true,
    masked_loop: true,
    long_sums: true,
    candidates: tile_table::dkdv,
    sides_fit: |specialization, _| {
        let tiles = specialization.tiles;
        // The keys of an invocation lie within one quad, whose dropout is drawn together.
        has_own_lanes(tiles)
            && tiles.tile_kv.is_multiple_of(tiles.thread_rows)
            && matches!(tiles.thread_rows, 1 | 2 | 4)
    },
    bytes: |specialization| bytes(specialization, Owns::Keys),
    own_counts: |specialization| counts(specialization, Owns::Keys),
    turns: |specialization, loops| {
        let rows = a_loop(specialization.tiles.tile_q.into(), 0);
        a_loop(loops.q_tiles, keep_turns(specialization, Owns::Keys, loops) + rows).saturating_add(1)
    },
    traffic: dkdv_traffic,
    ..KernelSpec::NONE
};

pub(super) const DQ: KernelSpec = KernelSpec {
    name: "flash_backward_dq",
    file: wgsl!("flash_backward_dq.wgsl"),
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
        OneOf(Slot::RowReduce),
        common!("row_stats"),
        OneOf(Slot::Keep),
        common!("flash_tiles"),
    ],
    operands: DQ_OPERANDS,
    row_sums: Some(2),
    masks: true,
    drops: true,
    scores: true,
    masked_loop: true,
    long_sums: true,
    candidates: tile_table::dq,
    bytes: |specialization| bytes(specialization, Owns::Rows),
    own_counts: |specialization| counts(specialization, Owns::Rows),
    turns: |specialization, loops| {
        let keys = a_loop(specialization.tiles.tile_kv.into(), 0);
        tile_loop(loops.kv_tiles, keep_turns(specialization, Owns::Rows, loops) + keys)
    },
    traffic: dq_traffic,
    ..KernelSpec::NONE
};

fn bytes(specialization: &Specialization, owns: Owns) -> u64 {
    let Specialization { tiles, head_dim, head_dim_v, has_dropout, .. } = *specialization;
    let quads = tiles.row_quads(head_dim) + tiles.row_quads(head_dim_v);
    let keep = if has_dropout { u64::from(tiles.tile_q) * u64::from(tiles.tile_kv) } else { 0 };
    let passing = QUAD * u64::from(tiles.passing(owns)) * quads;
    passing + passing_stats(specialization, owns) + keep + partials(specialization, owns, 2)
}

/// Bytes of the two f32 of each row of a passing tile. Rows that a workgroup owns have them in registers.
pub(super) fn passing_stats(specialization: &Specialization, owns: Owns) -> u64 {
    match owns {
        Owns::Keys => 8 * u64::from(specialization.tiles.tile_q),
        Owns::Rows | Owns::Heads | Owns::Entries | Owns::Everything | Owns::Sequences => 0,
    }
}

/// Turns of `place_keep` in `slots/keep/`.
fn keep_turns(specialization: &Specialization, owns: Owns, loops: &Loops) -> u64 {
    let tiles = specialization.tiles;
    match loops.philox {
        0 => 0,
        philox => shared(tiles.tile_q * tiles.tile_kv / 4, tiles.invocations_of(owns), philox),
    }
}

fn counts(specialization: &Specialization, owns: Owns) -> Counts {
    let Specialization { tiles, head_dim, head_dim_v, .. } = *specialization;
    let (k_quads, v_quads) = (tiles.quads(head_dim), tiles.quads(head_dim_v));
    let stats_fetches = tiles.tile_q.div_ceil(tiles.invocations_of(owns));
    let mut counts = vec![("K_QUADS", k_quads), ("V_QUADS", v_quads), ("STATS_FETCHES", stats_fetches)];
    counts.extend(fetches(tiles, owns, tiles.lanes * k_quads, tiles.lanes * v_quads));
    counts
}

pub(super) fn dkdv_traffic(bytes: &Traffic) -> u128 {
    let own = bytes.own_k + bytes.own_v + bytes.dk + bytes.dv;
    bytes.passing_q + bytes.passing_o + bytes.passing_stats + own
}

pub(super) fn dq_traffic(bytes: &Traffic) -> u128 {
    bytes.q + bytes.o + 2 * bytes.lse + bytes.k + bytes.v + bytes.dq
}
