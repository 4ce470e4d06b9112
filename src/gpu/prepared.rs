//! Prepared operations, and their encoding into the caller's command encoder.

use super::attention::FlashAttention;
use super::buffers::{Append, Backward, Buffers, Forward, Merge, Probabilities};
use super::operation::Operation;
use crate::error::Error;
use crate::plan::{Call, Direction, Plan};
use crate::problem::{AppendProblem, AttentionProblem, MergeProblem, ProbabilitiesProblem};
use std::marker::PhantomData;
use std::ops::Range;

/// An operation that is checked, planned and compiled: a [`PreparedForward`], [`PreparedBackward`], [`PreparedMerge`],
/// [`PreparedProbabilities`] or [`PreparedAppend`]. Encode it as often as you like. Calls use uniforms and bind groups of earlier calls again.
/// Clones share pipelines, scratch memory and bind groups.
#[derive(Clone, Debug)]
pub struct Prepared<D> {
    operation: Operation,
    direction: PhantomData<D>,
}

/// A forward operation.
pub type PreparedForward = Prepared<Forward>;

/// A backward operation. Its calls take the seed, offset and lengths of the forward call whose gradients they compute.
pub type PreparedBackward = Prepared<Backward>;

/// A merge of partial results. Its calls have no seed and no keys.
pub type PreparedMerge = Prepared<Merge>;

/// Probabilities of chosen heads and rows. Its calls take the lengths of the forward call whose LSE they read.
pub type PreparedProbabilities = Prepared<Probabilities>;

/// An append to a cache. Its calls may append fewer tokens (`seqlen_q`), or none.
pub type PreparedAppend = Prepared<Append>;

impl FlashAttention {
    /// Checks a problem, plans it, compiles its pipelines and allocates its scratch memory. If the problem is refused, it is
    /// refused here.
    ///
    /// # Errors
    /// Those of [`PlanBuilder::build`](crate::PlanBuilder::build); [`Error::OutOfMemory`], [`Error::DeviceLost`],
    /// [`Error::Shader`] and [`Error::Gpu`] from the device.
    pub async fn prepare_forward(&self, problem: &AttentionProblem) -> Result<PreparedForward, Error> {
        self.prepare_forward_plan(self.plan_forward(problem).build()?).await
    }

    /// As [`prepare_forward`](FlashAttention::prepare_forward), for the gradients of a problem. Its calls read what the
    /// forward call read and wrote, and the gradient of O.
    ///
    /// # Errors
    /// As `prepare_forward`.
    pub async fn prepare_backward(&self, problem: &AttentionProblem) -> Result<PreparedBackward, Error> {
        self.prepare_backward_plan(self.plan_backward(problem).build()?).await
    }

    /// As [`prepare_forward`](FlashAttention::prepare_forward), for a merge of partial results.
    ///
    /// # Errors
    /// As `prepare_forward`.
    pub async fn prepare_merge(&self, merge: &MergeProblem) -> Result<PreparedMerge, Error> {
        self.prepare(self.plan_merge(merge).build()?, Direction::Merge).await
    }

    /// As [`prepare_forward`](FlashAttention::prepare_forward), for the probabilities of chosen heads and rows.
    ///
    /// # Errors
    /// As `prepare_forward`; [`InvalidProblem::Chosen`](crate::InvalidProblem::Chosen) for a range that is empty, or that the
    /// problem has not.
    pub async fn prepare_probabilities(&self, chosen: &ProbabilitiesProblem) -> Result<PreparedProbabilities, Error> {
        self.prepare(self.plan_probabilities(chosen).build()?, Direction::Probabilities).await
    }

    /// As [`prepare_forward`](FlashAttention::prepare_forward), for an append to a cache. One prepared append serves all layers
    /// and steps of a generation: lengths, tables and slots are buffers of each call.
    ///
    /// # Errors
    /// As `prepare_forward`; [`InvalidProblem::Append`](crate::InvalidProblem::Append) for what contradicts itself.
    pub async fn prepare_append(&self, append: &AppendProblem) -> Result<PreparedAppend, Error> {
        self.prepare(self.plan_append(append).build()?, Direction::Append).await
    }

    /// Compiles a forward plan that was made for this device's capabilities.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], [`Error::Shader`] and [`Error::Gpu`] from the device; [`Error::InvalidPlan`] for a plan
    /// made for other capabilities or another direction.
    pub async fn prepare_forward_plan(&self, plan: Plan) -> Result<PreparedForward, Error> {
        self.prepare(plan, Direction::Forward).await
    }

    /// Compiles a backward plan that was made for this device's capabilities.
    ///
    /// # Errors
    /// As [`FlashAttention::prepare_forward_plan`].
    pub async fn prepare_backward_plan(&self, plan: Plan) -> Result<PreparedBackward, Error> {
        self.prepare(plan, Direction::Backward).await
    }

    async fn prepare<D>(&self, plan: Plan, direction: Direction) -> Result<Prepared<D>, Error> {
        let operation = Operation::new(self, self.own(plan, direction)?).await.map_err(|error| self.or_lost(error))?;
        Ok(Prepared { operation, direction: PhantomData })
    }
}

impl<D> Prepared<D> {
    /// Its plan: kernels, tiles, memory.
    pub fn plan(&self) -> &Plan {
        &self.operation.plan
    }

    /// Records the operation. Nothing is submitted and nothing waits.
    ///
    /// # Errors
    /// [`Error::BufferTooSmall`], [`Error::BufferUsage`], [`Error::BufferAlignment`] or [`Error::BufferAliased`] for
    /// buffers that don't fit; [`Error::BufferUnexpected`] for a tensor that the operation does not have;
    /// [`Error::BufferDestroyed`] for buffers without memory, or [`Error::DeviceLost`]; [`Error::OutOfMemory`] if the uniforms cannot be allocated;
    /// [`Error::Gpu`] for buffers of another device. A refused call leaves the encoder as it was. If the encoder itself is
    /// of another device, wgpu reports this only when it is finished. Of a device that was lost a moment ago it says nothing.
    ///
    /// Buffers and encoder must be of the `wgpu::Instance` of this operation's device. wgpu numbers the resources of each
    /// instance by itself and takes one of another instance for its own of the same number, or panics; nothing here can tell.
    pub fn encode(&self, encoder: &mut wgpu::CommandEncoder, buffers: &Buffers<D>) -> Result<(), Error> {
        self.encode_call(encoder, buffers, &Call::default())
    }

    /// As [`encode`](Prepared::encode), with another seed or shorter lengths.
    ///
    /// # Errors
    /// Those of `encode`, and [`Error::LengthExceedsPrepared`].
    pub fn encode_call(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        buffers: &Buffers<D>,
        call: &Call,
    ) -> Result<(), Error> {
        span!("encode", operation = %self.operation.title);
        let dispatches = self.operation.dispatches(&buffers.slices, call);
        let recorded = dispatches.and_then(|dispatches| self.operation.record(encoder, &buffers.slices, &dispatches));
        recorded.map_err(|error| self.operation.or_lost(error))
    }

    /// As [`encode_call`](Prepared::encode_call), into a compute pass that the caller has begun: with timestamps of the caller's
    /// own (`timestamp_writes`), or beside other work. Pipeline and bind group 0 of the pass are others afterwards. A refused call
    /// leaves the pass as it was.
    ///
    /// # Errors
    /// Those of `encode_call`.
    pub fn encode_in_pass(
        &self,
        pass: &mut wgpu::ComputePass<'_>,
        buffers: &Buffers<D>,
        call: &Call,
    ) -> Result<(), Error> {
        span!("encode", operation = %self.operation.title);
        let dispatches = self.operation.dispatches(&buffers.slices, call);
        let recorded =
            dispatches.and_then(|dispatches| self.operation.record_in_pass(pass, &buffers.slices, &dispatches));
        recorded.map_err(|error| self.operation.or_lost(error))
    }

    /// As [`encode_call`](Prepared::encode_call), but with only some of its dispatches. So a long operation can go in several
    /// submissions. They must run in order.
    ///
    /// # Errors
    /// Those of `encode_call`, and [`Error::NoSuchDispatch`].
    pub fn encode_dispatches(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        buffers: &Buffers<D>,
        call: &Call,
        range: Range<usize>,
    ) -> Result<(), Error> {
        span!("encode", operation = %self.operation.title, ?range);
        let recorded = self.operation.encode(encoder, &buffers.slices, call, range);
        recorded.map_err(|error| self.operation.or_lost(error))
    }

    /// How many dispatches a call makes: one for each pass of the plan, or more if limits or
    /// [`with_bounded_work`](crate::AttentionProblem::with_bounded_work) divide it.
    ///
    /// # Errors
    /// [`Error::LengthExceedsPrepared`].
    pub fn num_dispatches(&self, call: &Call) -> Result<usize, Error> {
        self.operation.num_dispatches(call)
    }

    /// Drops the caller's buffers. The operation remembers buffers that came in two or more of the last calls, at most 512
    /// sets, so that it does not make their bind groups again. This keeps their memory until other buffers replace them,
    /// the operation is dropped, or this is called. (`wgpu::Buffer::destroy` frees the memory in any case.)
    pub fn release_buffers(&self) {
        self.operation.release_buffers();
    }

    /// Frees the scratch memory at once. After that, recording an operation that has scratch memory is
    /// [`Error::BufferDestroyed`]. Dropping the last clone frees it too, except in a browser, where the garbage collector
    /// does it later.
    pub fn destroy(&self) {
        self.operation.destroy();
    }
}
