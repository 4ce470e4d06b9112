//! The first pass of the gradients: LSE and D = rowsum(dO ∘ O) − dLSE of each row, side by side.

use super::spec::{KernelSpec, partials};
use super::text::{Piece::OneOf, Slot, common, wgsl};
use super::turns::a_loop;
use crate::operand::Operand::{DLse, DO, Lse, O, Params, RowStats};
use crate::operand::Usage::{Read, Uniform, Write};
use crate::plan::tile_table;
use crate::plan::tiles::Owns;

pub(super) const PREPROCESS: KernelSpec = KernelSpec {
    name: "flash_backward_preprocess",
    file: wgsl!("flash_backward_preprocess.wgsl"),
    text: &[
        OneOf(Slot::Element),
        OneOf(Slot::Access),
        common!("q_tile"),
        common!("arithmetic"),
        OneOf(Slot::RowReduce),
    ],
    operands: &[(Params, Uniform), (O, Read), (Lse, Read), (DO, Read), (DLse, Read), (RowStats, Write)],
    row_sums: Some(2),
    candidates: tile_table::preprocess,
    bytes: |specialization| partials(specialization, Owns::Rows, 2),
    turns: |specialization, _| a_loop(specialization.head_dim_v.div_ceil(4 * specialization.tiles.lanes).into(), 0),
    traffic: |bytes| 2 * bytes.o + 3 * bytes.lse,
    ..KernelSpec::NONE
};
