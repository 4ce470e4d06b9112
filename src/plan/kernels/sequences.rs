//! The first pass where a call says how long its sequences are.

use super::spec::{Grid, KernelSpec, NO_FETCHES};
use super::text::wgsl;
use crate::operand::Operand::{Params, Tables};
use crate::operand::Usage::{Uniform, Write};
use crate::plan::tiles::{Owns, Tiles};

/// Invocations of a workgroup, one for each sequence.
const INVOCATIONS: u32 = 64;

/// It binds the lengths that come at the call too.
pub(super) const SEQUENCES: KernelSpec = KernelSpec {
    name: "sequences",
    file: wgsl!("sequences.wgsl"),
    operands: &[(Params, Uniform), (Tables, Write)],
    owns: Owns::Sequences,
    grid: Grid::Sequences,
    invocations: Some(INVOCATIONS),
    candidates: |_, _| &[Tiles::NONE],
    own_counts: |_| [("SEQUENCES_INVOCATIONS", INVOCATIONS)].into_iter().chain(NO_FETCHES).collect(),
    ..KernelSpec::NONE
};
