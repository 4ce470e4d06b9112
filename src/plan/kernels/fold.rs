//! The fold of partial results into a running one.

use super::spec::{Grid, KernelSpec, NO_FETCHES};
use super::text::{Piece::OneOf, Slot, wgsl};
use super::turns::a_loop;
use crate::operand::Operand::{Lse, LseParts, O, OParts, Params};
use crate::operand::Usage::{Read, Uniform, Write};
use crate::plan::check::MAX_HEAD_DIM;

/// Invocations of a workgroup: one for each four dimensions of the widest row.
const INVOCATIONS: u32 = MAX_HEAD_DIM / 4;

pub(super) const FOLD: KernelSpec = KernelSpec {
    name: "fold",
    file: wgsl!("fold.wgsl"),
    text: &[OneOf(Slot::Parts)],
    operands: &[(Params, Uniform), (O, Write), (Lse, Write), (OParts, Read), (LseParts, Read)],
    grid: Grid::Rows,
    invocations: Some(INVOCATIONS),
    own_counts: |_| [("FOLD_INVOCATIONS", INVOCATIONS)].into_iter().chain(NO_FETCHES).collect(),
    turns: |_, loops| 2 * a_loop(loops.num_splits, 0),
    traffic: |bytes| bytes.parts + 2 * (bytes.o + bytes.lse),
    ..KernelSpec::NONE
};
