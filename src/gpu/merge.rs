//! A prepared merge of partial results, and its encoding into the caller's command encoder.

use super::attention::FlashAttention;
use super::operation::{Operation, Tensor};
use crate::error::Error;
use crate::plan::{Call, Operand, Plan, Usage};
use crate::problem::MergeProblem;

/// The caller's buffers of one merge. All need `BufferUsages::STORAGE`, and offsets that are multiples of 16 bytes. O and
/// LSE need buffers of their own.
#[derive(Clone, Copy, Debug)]
pub struct MergeBuffers<'a> {
    /// The parts of O; anything if there are none.
    pub o_parts: wgpu::BufferSlice<'a>,
    /// Their log-sum-exp, f32, each part `[batch, num_heads, seqlen_q]`; anything if there are none.
    pub lse_parts: wgpu::BufferSlice<'a>,
    /// Receives the output.
    pub o: wgpu::BufferSlice<'a>,
    /// Receives the log-sum-exp of each row, f32, `[batch, num_heads, seqlen_q]`.
    pub lse: wgpu::BufferSlice<'a>,
}

impl<'a> MergeBuffers<'a> {
    fn tensors(&self) -> [Tensor<'a>; 4] {
        [
            (Operand::OParts, Usage::Read, self.o_parts),
            (Operand::LseParts, Usage::Read, self.lse_parts),
            (Operand::O, Usage::Write, self.o),
            (Operand::Lse, Usage::Write, self.lse),
        ]
    }
}

/// A merge that is checked, planned and compiled. Encode it as often as you like.
#[derive(Clone, Debug)]
pub struct PreparedMerge {
    operation: Operation,
}

impl FlashAttention {
    /// Checks a merge of partial results, plans it and compiles its pipeline.
    ///
    /// # Errors
    /// Those of [`PlanBuilder::build`](crate::PlanBuilder::build); [`Error::OutOfMemory`], [`Error::Shader`] and [`Error::Gpu`] from the device.
    pub async fn prepare_merge(&self, merge: &MergeProblem) -> Result<PreparedMerge, Error> {
        PreparedMerge::new(self, self.plan_merge(merge).build()?).await
    }
}

impl PreparedMerge {
    pub(super) async fn new(attention: &FlashAttention, plan: Plan) -> Result<Self, Error> {
        Ok(Self { operation: Operation::new(attention, plan).await? })
    }

    /// Its plan.
    pub fn plan(&self) -> &Plan {
        &self.operation.plan
    }

    /// Records the merge. Nothing is submitted and nothing waits.
    ///
    /// # Errors
    /// Those of [`PreparedForward::encode`](super::PreparedForward::encode).
    pub fn encode(&self, encoder: &mut wgpu::CommandEncoder, buffers: &MergeBuffers) -> Result<(), Error> {
        self.encode_rows(encoder, buffers, None)
    }

    /// As [`PreparedMerge::encode`], with fewer rows than prepared. Strides stay those of the problem.
    ///
    /// # Errors
    /// Those of `encode`, and [`Error::LengthExceedsPrepared`].
    pub fn encode_rows(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        buffers: &MergeBuffers,
        seqlen_q: Option<u32>,
    ) -> Result<(), Error> {
        let tensors = buffers.tensors();
        let dispatches = self.operation.dispatches(&tensors, &Call { seqlen_q, ..Call::default() })?;
        self.operation.record(encoder, &tensors, &dispatches)
    }

    /// Lets go of the caller's buffers, as [`PreparedForward::release_buffers`](super::PreparedForward::release_buffers)
    /// does.
    pub fn release_buffers(&self) {
        self.operation.release_buffers();
    }
}
