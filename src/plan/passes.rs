//! A plan: the passes of an operation, and what they need.

use super::block_lists::TileLists;
use super::capabilities::Capabilities;
use super::chunks::Chunks;
use super::direction::Direction;
use super::kernels::{Kernel, KernelSpec, LengthsAtCall, Specialization};
use super::part::{Cut, Lengths};
use super::tensor::Tensor;
use super::tiles::{Owns, Tiles};
use crate::operand::Operand;
use crate::problem::{Algorithm, AppendProblem, AttentionProblem, Element};
use std::ops::Range;

/// One kernel of an operation.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Pass {
    /// The kernel.
    pub kernel: Kernel,
    /// Everything that its text depends on.
    pub specialization: Specialization,
}

/// Passes that one part of the problem goes through before the next part does.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Stage {
    /// Their indices.
    pub passes: Range<usize>,
    /// How the problem is cut for them.
    pub cut: Cut,
}

/// Who chose the tiles of a plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    Table,
    Tuning,
    Caller,
}

/// The passes that answer a problem on a device, the scratch memory they need, and (through [`Plan::dispatches`]) the
/// grids and uniforms of each call.
///
/// It can be printed. With the feature `serde` it can be serialized too, in the same words.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    pub(super) problem: AttentionProblem,
    pub(super) direction: Direction,
    pub(super) capabilities: Capabilities,
    pub(super) passes: Vec<Pass>,
    /// Runs of passes, in their order.
    pub(super) stages: Vec<Stage>,
    /// Of the last pass, and of all passes that share scores in memory.
    pub(super) tiles: Tiles,
    /// Who chose them.
    pub(super) source: Source,
    /// Splits of the keys, or partial results to merge.
    pub(super) num_splits: u32,
    /// Where K or V is longer than a binding.
    pub(super) chunks: Option<Chunks>,
    /// The heads and rows whose probabilities are computed.
    pub(super) chosen: Option<(Range<u32>, Range<u32>)>,
    /// The append that it is.
    pub(super) append: Option<AppendProblem>,
    /// The tiles that passes visit under block masks.
    pub(super) lists: TileLists,
    /// The caller's tensors.
    pub(super) tensors: Vec<Tensor>,
    /// Whether tensors that are read and tensors that are written may lie in one buffer.
    pub(super) shares_buffers: bool,
    pub(super) scratch: Vec<(Operand, u64)>,
}

impl Plan {
    /// The problem it answers.
    pub fn problem(&self) -> &AttentionProblem {
        &self.problem
    }

    /// The device it was made for.
    pub fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    /// The kernels, in the order in which they run.
    pub fn passes(&self) -> &[Pass] {
        &self.passes
    }

    /// Splits of the keys, whose partial results are merged; 1 for none. For a merge, the number of its parts.
    pub fn num_splits(&self) -> u32 {
        self.num_splits
    }

    /// What it computes.
    pub fn direction(&self) -> Direction {
        self.direction
    }

    /// The query heads that it is about.
    pub(super) fn heads(&self) -> Range<u32> {
        self.chosen.as_ref().map_or(0..self.problem.shape.query_heads(), |(heads, _)| heads.clone())
    }

    /// The rows that it is about, of those of a call.
    pub(super) fn rows(&self, lengths: Lengths) -> Range<u32> {
        let rows = self.chosen.as_ref().map_or(0..lengths.seqlen_q, |(_, rows)| rows.clone());
        rows.start.min(lengths.seqlen_q)..rows.end.min(lengths.seqlen_q)
    }

    /// The tiles of its kernels, or of the last one (dQ) where they differ.
    pub fn tiles(&self) -> Tiles {
        self.tiles
    }

    /// Why the plan has this kernel and these tiles, in a few words for people.
    pub fn reason(&self) -> String {
        let is_forward_flash = self.direction == Direction::Forward && self.problem.algorithm == Algorithm::Flash;
        let kernel = match self.first_of_rows().filter(|_| is_forward_flash) {
            Some(kernel) if kernel.packs_heads => "few rows share K and V".to_owned(),
            Some(kernel) if kernel.on_matrices => match self.problem.element {
                Element::F32 => "f32 on matrices, in two parts".to_owned(),
                element => format!("{} on matrices", element.name()),
            },
            Some(_) => match self.capabilities.matrix_side {
                None => "no matrices, or switched off".to_owned(),
                Some(side) => format!("{side}x{side} matrices do not suit device or problem"),
            },
            None => String::new(),
        };
        let tiles = match self.source {
            Source::Table => "tiles of the table",
            Source::Tuning => "tiles as tuned",
            Source::Caller => "tiles as given",
        };
        [kernel.as_str(), tiles].into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("; ")
    }

    /// Scratch buffers and their bytes. Standard attention has the score matrix, or as many of its heads and rows as one
    /// storage binding holds; its backward pass also has that of dP. Backward passes have D. Split keys have partial
    /// results. Score modifiers have their tables.
    pub fn scratch(&self) -> &[(Operand, u64)] {
        &self.scratch
    }

    /// Whether P, and backward dS, are rounded to f16 before their products: on cooperative matrices, in f16 and bf16
    /// problems, as in CUDA's flash attention. The other kernels keep them in f32, or in two parts of f16.
    pub fn rounds_p(&self) -> bool {
        let is_rounded =
            |pass: &Pass| pass.kernel.spec().on_matrices && pass.specialization.storage.matrix_parts() == 1;
        self.passes.iter().any(is_rounded)
    }

    /// Bytes of all scratch buffers.
    pub fn scratch_bytes(&self) -> u64 {
        self.scratch.iter().fold(0, |sum: u64, (_, bytes)| sum.saturating_add(*bytes))
    }

    /// Bytes of device memory beyond Q, K, V, O and the gradients: LSE and scratch.
    pub fn extra_bytes(&self) -> u64 {
        self.scratch_bytes().saturating_add(self.problem.lse_len().saturating_mul(4))
    }

    /// The first kernel that computes something of rows or keys.
    fn first_of_rows(&self) -> Option<&'static KernelSpec> {
        self.passes.iter().map(|pass| pass.kernel.spec()).find(|kernel| kernel.owns != Owns::Sequences)
    }

    /// The lengths that come in buffers at each call.
    pub(crate) fn lengths_at_call(&self) -> impl Iterator<Item = Operand> {
        LengthsAtCall::of(&self.problem).operands()
    }

    /// The caller's tensors, with all that an operation needs of each.
    pub(crate) fn tensors(&self) -> &[Tensor] {
        &self.tensors
    }

    /// The caller's tensors.
    pub fn operands(&self) -> impl Iterator<Item = Operand> {
        self.tensors.iter().map(|tensor| tensor.operand)
    }

    /// Bytes that the buffer of one of the caller's tensors must hold: whole 4-byte words.
    pub fn required_bytes(&self, operand: Operand) -> u64 {
        self.tensor(operand).map_or(0, Tensor::required_bytes)
    }

    /// Elements that the buffer of one of the caller's tensors must hold.
    pub fn required_len(&self, operand: Operand) -> u64 {
        self.tensor(operand).map_or(0, |tensor| tensor.len().unwrap_or(u64::MAX))
    }

    /// Whether two of the caller's tensors may lie in one buffer though one is written: where no pass of an append binds both.
    pub(crate) fn may_share(&self, one: Operand, other: Operand) -> bool {
        let binds_both = |pass: &Pass| pass.specialization.binds(one) && pass.specialization.binds(other);
        self.direction == Direction::Append && !self.passes.iter().any(binds_both)
    }

    /// Whether tensors that are read and tensors that are written may lie in one buffer, apart from each other. See
    /// [`FlashAttention::with_shared_buffers`](crate::FlashAttention::with_shared_buffers).
    pub fn shares_buffers(&self) -> bool {
        self.shares_buffers
    }

    /// The type that one of the caller's tensors is stored in. `None` for other operands.
    pub fn element(&self, operand: Operand) -> Option<Element> {
        self.tensor(operand).map(|tensor| tensor.element)
    }

    fn tensor(&self, operand: Operand) -> Option<&Tensor> {
        self.tensors.iter().find(|tensor| tensor.operand == operand)
    }
}
