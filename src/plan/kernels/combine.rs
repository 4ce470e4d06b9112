//! The merge of partial results.

use super::spec::{Grid, KernelSpec, NO_FETCHES};
use super::text::{Piece::OneOf, Slot, common, wgsl};
use super::turns::a_loop;
use crate::operand::Operand::{Lse, LseParts, O, OParts, Params};
use crate::operand::Usage::{Read, Uniform, Write};

/// Invocations of a workgroup.
const INVOCATIONS: u32 = 64;

pub(super) const COMBINE: KernelSpec = KernelSpec {
    name: "combine",
    file: wgsl!("combine.wgsl"),
    text: &[
        OneOf(Slot::Element),
        OneOf(Slot::Access),
        OneOf(Slot::F32Store),
        common!("q_tile"),
        common!("arithmetic"),
        OneOf(Slot::Parts),
        OneOf(Slot::RowEnd),
    ],
    operands: &[(Params, Uniform), (O, Write), (Lse, Write), (OParts, Read), (LseParts, Read)],
    grid: Grid::Quads,
    invocations: Some(INVOCATIONS),
    ends_rows: true,
    own_counts: |_| [("COMBINE_INVOCATIONS", INVOCATIONS)].into_iter().chain(NO_FETCHES).collect(),
    turns: |_, loops| 2 * a_loop(loops.num_splits, 0),
    traffic: |bytes| bytes.parts + bytes.o + bytes.lse,
    ..KernelSpec::NONE
};
