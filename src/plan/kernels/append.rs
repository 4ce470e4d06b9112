//! New keys and values to a cache, and rotary embeddings.

use super::spec::{Counts, Grid, KernelSpec, NO_FETCHES};
use super::specialization::{AppendText, RowTarget, Specialization};
use super::text::{Piece::OneOf, Slot, common, wgsl};
use super::turns::a_loop;
use crate::operand::Operand::{CacheSeqlens, K, KCache, NewCacheSeqlens, Params, Q, QRotated, V, VCache};
use crate::operand::Usage::{Read, Uniform, Write};
use crate::plan::tiles::Owns;

/// Invocations of a workgroup: a quad of the widest row for each.
const INVOCATIONS: u32 = 64;

/// Rows that a workgroup takes.
pub(in crate::plan) fn rows_of_workgroup(dim: u32) -> u32 {
    (INVOCATIONS / dim.div_ceil(4).max(1)).max(1)
}

pub(super) const APPEND_K: KernelSpec = KernelSpec {
    name: "append_k",
    file: wgsl!("append.wgsl"),
    text: &[
        common!("append"),
        common!("append_kv"),
        OneOf(Slot::CacheSeqlens),
        OneOf(Slot::Tokens),
        OneOf(Slot::RowSource),
        OneOf(Slot::RowWords),
        OneOf(Slot::RotaryPairs),
        OneOf(Slot::Angles),
        OneOf(Slot::Rotated),
        OneOf(Slot::TargetElement),
        OneOf(Slot::RowTarget),
        OneOf(Slot::RowPlace),
    ],
    operands: &[(Params, Uniform), (K, Read), (KCache, Write)],
    grid: Grid::RowsOfKv,
    packs_heads: true,
    invocations: Some(INVOCATIONS),
    names: &[("ROWS", "k"), ("TARGET", "k_cache")],
    bytes: |specialization| match specialization.append {
        Some(AppendText { target: RowTarget::Int8, .. }) => 4 * u64::from(INVOCATIONS),
        _ => 0,
    },
    own_counts: |specialization| counts(specialization, specialization.head_dim),
    turns: |specialization, _| turns_of_row(specialization.head_dim),
    traffic: |bytes| bytes.q + bytes.own_k,
    ..KernelSpec::NONE
};

pub(super) const APPEND_V: KernelSpec = KernelSpec {
    name: "append_v",
    operands: &[(Params, Uniform), (V, Read), (VCache, Write)],
    names: &[("ROWS", "v"), ("TARGET", "v_cache")],
    own_counts: |specialization| counts(specialization, specialization.head_dim_v),
    turns: |specialization, _| turns_of_row(specialization.head_dim_v),
    ..APPEND_K
};

pub(super) const ROTATE_Q: KernelSpec = KernelSpec {
    name: "rotate_q",
    text: &[
        common!("append"),
        OneOf(Slot::CacheSeqlens),
        OneOf(Slot::Tokens),
        OneOf(Slot::RowSource),
        OneOf(Slot::RowWords),
        OneOf(Slot::RotaryPairs),
        OneOf(Slot::Angles),
        OneOf(Slot::Rotated),
        OneOf(Slot::TargetElement),
        OneOf(Slot::RowTarget),
        OneOf(Slot::RowPlace),
    ],
    operands: &[(Params, Uniform), (Q, Read), (QRotated, Write)],
    grid: Grid::RowsOfQ,
    packs_heads: false,
    names: &[("ROWS", "q"), ("TARGET", "q_rotated")],
    traffic: |bytes| bytes.q + bytes.q,
    ..APPEND_K
};

/// Q over itself.
pub(super) const ROTATE_Q_IN_PLACE: KernelSpec = KernelSpec {
    name: "rotate_q_in_place",
    operands: &[(Params, Uniform), (Q, Write)],
    names: &[("ROWS", "q"), ("TARGET", "q")],
    ..ROTATE_Q
};

pub(super) const SEQLENS: KernelSpec = KernelSpec {
    name: "append_seqlens",
    file: wgsl!("append_seqlens.wgsl"),
    text: &[common!("append"), common!("cache_seqlens"), OneOf(Slot::Tokens)],
    operands: &[(Params, Uniform), (CacheSeqlens, Read), (NewCacheSeqlens, Write)],
    owns: Owns::Sequences,
    grid: Grid::Sequences,
    invocations: Some(INVOCATIONS),
    own_counts: |specialization| counts(specialization, 1),
    ..KernelSpec::NONE
};

fn counts(specialization: &Specialization, dim: u32) -> Counts {
    let rotary = specialization.append.and_then(|append| append.rotary).map(|(_, dim)| ("ROTARY_DIM", dim));
    [("APPEND_INVOCATIONS", INVOCATIONS), ("DIM", dim)].into_iter().chain(rotary).chain(NO_FETCHES).collect()
}

fn turns_of_row(dim: u32) -> u64 {
    a_loop(dim.div_ceil(4).into(), 0)
}
