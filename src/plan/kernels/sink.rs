//! The gradient of the sinks.

use super::spec::{Grid, KernelSpec, NO_FETCHES};
use super::text::{common, wgsl};
use super::turns::a_loop;
use crate::operand::Operand::{DSink, Params, RowStats, Sink};
use crate::operand::Usage::{Read, Uniform, Write};
use crate::plan::tiles::{Owns, Tiles};

/// Invocations that share the rows of a head.
const INVOCATIONS: u32 = 256;

/// Rows of each that are summed before the sum is added to the total.
const ROWS_ADDED_AT_ONCE: u32 = 64;

pub(super) const SINK: KernelSpec = KernelSpec {
    name: "backward_sink",
    file: wgsl!("backward_sink.wgsl"),
    text: &[common!("sink")],
    operands: &[(Params, Uniform), (RowStats, Read), (Sink, Read), (DSink, Write)],
    owns: Owns::Heads,
    grid: Grid::Heads,
    invocations: Some(INVOCATIONS),
    candidates: |_, _| &[Tiles::NONE],
    bytes: |_| 4 * INVOCATIONS as u64,
    own_counts: |_| {
        let counts = [("SINK_INVOCATIONS", INVOCATIONS), ("ROWS_ADDED_AT_ONCE", ROWS_ADDED_AT_ONCE)];
        counts.into_iter().chain(NO_FETCHES).collect()
    },
    turns: |_, loops| {
        let rows = a_loop(loops.all_rows.div_ceil(INVOCATIONS.into()), 1);
        a_loop(loops.sequences, rows) + a_loop(INVOCATIONS.trailing_zeros().into(), 0)
    },
    traffic: |bytes| 2 * bytes.lse,
    ..KernelSpec::NONE
};
