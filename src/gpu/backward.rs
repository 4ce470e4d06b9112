//! A prepared backward operation, and its encoding into the caller's command encoder.

use super::attention::FlashAttention;
use super::operation::{Operation, Tensor};
use crate::error::Error;
use crate::plan::{Call, Direction, Operand, Origins, Plan, Usage};
use crate::problem::AttentionProblem;
use std::ops::Range;

/// The caller's buffers of one backward call. All need `BufferUsages::STORAGE`, and offsets that are multiples of 16
/// bytes. Inputs may share buffers; dQ, dK and dV need buffers of their own.
#[derive(Clone, Copy, Debug)]
pub struct BackwardBuffers<'a> {
    /// Queries.
    pub q: wgpu::BufferSlice<'a>,
    /// Keys; anything if there are none.
    pub k: wgpu::BufferSlice<'a>,
    /// Values; anything if there are none.
    pub v: wgpu::BufferSlice<'a>,
    /// The output of the forward pass.
    pub o: wgpu::BufferSlice<'a>,
    /// The log-sum-exp of the forward pass, f32, `[batch, num_heads, seqlen_q]`.
    pub lse: wgpu::BufferSlice<'a>,
    /// The gradient of O, in the problem's element.
    pub d_o: wgpu::BufferSlice<'a>,
    /// The gradient of LSE, f32, `[batch, num_heads, seqlen_q]`, where LSE was used for more than this.
    pub d_lse: Option<wgpu::BufferSlice<'a>>,
    /// Receives the gradient of Q.
    pub dq: wgpu::BufferSlice<'a>,
    /// Receives the gradient of K, summed over the query heads that share it.
    pub dk: wgpu::BufferSlice<'a>,
    /// Receives the gradient of V, summed likewise.
    pub dv: wgpu::BufferSlice<'a>,
}

impl<'a> BackwardBuffers<'a> {
    fn tensors(&self) -> Vec<Tensor<'a>> {
        let mut tensors = vec![
            (Operand::Q, Usage::Read, self.q),
            (Operand::K, Usage::Read, self.k),
            (Operand::V, Usage::Read, self.v),
            (Operand::O, Usage::Read, self.o),
            (Operand::Lse, Usage::Read, self.lse),
            (Operand::DO, Usage::Read, self.d_o),
            (Operand::Dq, Usage::Write, self.dq),
            (Operand::Dk, Usage::Write, self.dk),
            (Operand::Dv, Usage::Write, self.dv),
        ];
        tensors.extend(self.d_lse.map(|d_lse| (Operand::DLse, Usage::Read, d_lse)));
        tensors
    }
}

/// A backward operation that is checked, planned and compiled. Encode it as often as you like, each time with the seed,
/// offset and lengths of the forward call whose gradients it computes.
#[derive(Clone, Debug)]
pub struct PreparedBackward {
    operation: Operation,
}

impl FlashAttention {
    /// As [`prepare_forward`](FlashAttention::prepare_forward), for the gradients of a problem: what
    /// [`PreparedForward::encode`](super::PreparedForward::encode) computed goes in with the gradient of O.
    ///
    /// # Errors
    /// Those of [`PlanBuilder::build`](crate::PlanBuilder::build); [`Error::OutOfMemory`], [`Error::Shader`] and [`Error::Gpu`] from the device.
    pub async fn prepare_backward(&self, problem: &AttentionProblem) -> Result<PreparedBackward, Error> {
        self.prepare_backward_plan(self.plan_backward(problem).build()?).await
    }

    /// Compiles a backward plan that was made for this device's capabilities.
    ///
    /// # Errors
    /// As [`FlashAttention::prepare_forward_plan`].
    pub async fn prepare_backward_plan(&self, plan: Plan) -> Result<PreparedBackward, Error> {
        PreparedBackward::new(self, self.own(plan, Direction::Backward)?).await
    }
}

impl PreparedBackward {
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
    /// Those of [`PreparedForward::encode`](super::PreparedForward::encode).
    pub fn encode(&self, encoder: &mut wgpu::CommandEncoder, buffers: &BackwardBuffers) -> Result<(), Error> {
        self.encode_call(encoder, buffers, &Call::default())
    }

    /// As [`PreparedBackward::encode`], with another seed or shorter lengths: those of the forward call.
    ///
    /// # Errors
    /// Those of `encode`, and [`Error::LengthExceedsPrepared`].
    pub fn encode_call(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        buffers: &BackwardBuffers,
        call: &Call,
    ) -> Result<(), Error> {
        let tensors = buffers.tensors();
        let dispatches = self.operation.dispatches(&tensors, call)?;
        self.operation.record(encoder, &tensors, &dispatches)
    }

    /// How many dispatches a call makes: one for each pass of the plan, and more where limits or
    /// [`bounded_work`](crate::AttentionProblem::bounded_work) split it.
    ///
    /// # Errors
    /// [`Error::LengthExceedsPrepared`].
    pub fn num_dispatches(&self, call: &Call) -> Result<usize, Error> {
        Ok(self.operation.plan.dispatches(call, &Origins::default())?.len())
    }

    /// As [`PreparedBackward::encode_call`], but only the given ones of its dispatches, to spread a long operation over
    /// several submissions. They must run in order.
    ///
    /// # Errors
    /// Those of `encode_call`, and [`Error::NoSuchDispatch`].
    pub fn encode_dispatches(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        buffers: &BackwardBuffers,
        call: &Call,
        range: Range<usize>,
    ) -> Result<(), Error> {
        self.operation.record_range(encoder, &buffers.tensors(), call, range)
    }

    /// Lets go of the caller's buffers, as [`PreparedForward::release_buffers`](super::PreparedForward::release_buffers).
    pub fn release_buffers(&self) {
        self.operation.release_buffers();
    }

    /// Frees the scratch memory at once, as [`PreparedForward::destroy`](super::PreparedForward::destroy).
    pub fn destroy(&self) {
        self.operation.destroy();
    }
}
