//! A prepared forward operation, and its encoding into the caller's command encoder.

use super::attention::FlashAttention;
use super::operation::{Operation, Tensor};
use crate::error::Error;
use crate::plan::{Call, Direction, Operand, Origins, Plan, Usage};
use crate::problem::AttentionProblem;
use std::ops::Range;

/// The caller's buffers of one forward call. All need `BufferUsages::STORAGE`, and offsets that are multiples of 16
/// bytes. K and V may be one buffer with Q (packed layouts); O and LSE need buffers of their own.
#[derive(Clone, Copy, Debug)]
pub struct ForwardBuffers<'a> {
    /// Queries.
    pub q: wgpu::BufferSlice<'a>,
    /// Keys; anything if there are none.
    pub k: wgpu::BufferSlice<'a>,
    /// Values; anything if there are none.
    pub v: wgpu::BufferSlice<'a>,
    /// Receives the output.
    pub o: wgpu::BufferSlice<'a>,
    /// Receives the log-sum-exp of each row, f32, `[batch, num_heads, seqlen_q]`.
    pub lse: wgpu::BufferSlice<'a>,
}

impl<'a> ForwardBuffers<'a> {
    fn tensors(&self) -> [Tensor<'a>; 5] {
        [
            (Operand::Q, Usage::Read, self.q),
            (Operand::K, Usage::Read, self.k),
            (Operand::V, Usage::Read, self.v),
            (Operand::O, Usage::Write, self.o),
            (Operand::Lse, Usage::Write, self.lse),
        ]
    }
}

/// A forward operation that is checked, planned and compiled. Encode it as often as you like: what a call shares with
/// calls before it (uniforms, bind groups) is used again.
#[derive(Clone, Debug)]
pub struct PreparedForward {
    operation: Operation,
}

impl FlashAttention {
    /// Checks a problem, plans it, compiles its pipelines and allocates its scratch memory. Every refusal of the
    /// problem comes from here.
    ///
    /// # Errors
    /// Those of [`PlanBuilder::build`](crate::PlanBuilder::build); [`Error::OutOfMemory`], [`Error::Shader`] and [`Error::Gpu`] from the device.
    pub async fn prepare_forward(&self, problem: &AttentionProblem) -> Result<PreparedForward, Error> {
        self.prepare_forward_plan(self.plan_forward(problem).build()?).await
    }

    /// Compiles a forward plan that was made for this device's capabilities.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], [`Error::Shader`] and [`Error::Gpu`] from the device; [`Error::InvalidPlan`] for a plan
    /// made for other capabilities or another direction.
    pub async fn prepare_forward_plan(&self, plan: Plan) -> Result<PreparedForward, Error> {
        PreparedForward::new(self, self.own(plan, Direction::Forward)?).await
    }
}

impl PreparedForward {
    pub(super) async fn new(attention: &FlashAttention, plan: Plan) -> Result<Self, Error> {
        Ok(Self { operation: Operation::new(attention, plan).await? })
    }

    /// Its plan: kernels, tiles, memory.
    pub fn plan(&self) -> &Plan {
        &self.operation.plan
    }

    /// Records the operation. Nothing is submitted and nothing waits.
    ///
    /// # Errors
    /// [`Error::BufferTooSmall`], [`Error::BufferUsage`], [`Error::BufferAlignment`] or [`Error::BufferAliased`] for
    /// buffers that don't fit; [`Error::BufferDestroyed`] for those without memory; [`Error::OutOfMemory`] if the uniforms
    /// cannot be allocated; [`Error::Gpu`] for buffers of another device. A refused call leaves the encoder as it was.
    /// That the encoder itself is of another device wgpu does not tell before it is finished.
    pub fn encode(&self, encoder: &mut wgpu::CommandEncoder, buffers: &ForwardBuffers) -> Result<(), Error> {
        self.encode_call(encoder, buffers, &Call::default())
    }

    /// As [`PreparedForward::encode`], with another seed or shorter lengths.
    ///
    /// # Errors
    /// Those of `encode`, and [`Error::LengthExceedsPrepared`].
    pub fn encode_call(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        buffers: &ForwardBuffers,
        call: &Call,
    ) -> Result<(), Error> {
        let tensors = buffers.tensors();
        let dispatches = self.operation.dispatches(&tensors, call)?;
        self.operation.record(encoder, &tensors, &dispatches)
    }

    /// How many dispatches a call makes: 1 for flash, 3 for standard attention, and as many times more as limits or
    /// [`bounded_work`](crate::AttentionProblem::bounded_work) split it.
    ///
    /// # Errors
    /// [`Error::LengthExceedsPrepared`].
    pub fn num_dispatches(&self, call: &Call) -> Result<usize, Error> {
        Ok(self.operation.plan.dispatches(call, &Origins::default())?.len())
    }

    /// As [`PreparedForward::encode_call`], but only the given ones of its dispatches, to spread a long operation over
    /// several submissions. They must run in order.
    ///
    /// # Errors
    /// Those of `encode_call`, and [`Error::NoSuchDispatch`].
    pub fn encode_dispatches(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        buffers: &ForwardBuffers,
        call: &Call,
        range: Range<usize>,
    ) -> Result<(), Error> {
        self.operation.record_range(encoder, &buffers.tensors(), call, range)
    }

    /// Lets go of the caller's buffers. Buffers that came in two or more of the last calls are remembered, at most 128 sets
    /// of them, so that their bind groups are not made again; that keeps their memory taken until others push them out,
    /// the operation is dropped, or this is called. (`wgpu::Buffer::destroy` frees the memory in any case.)
    pub fn release_buffers(&self) {
        self.operation.release_buffers();
    }

    /// Frees the scratch memory at once; recording an operation that has any is [`Error::BufferDestroyed`] afterwards.
    /// Dropping the last clone does as much, except in a browser, which frees what its garbage collector finds.
    pub fn destroy(&self) {
        self.operation.destroy();
    }
}
