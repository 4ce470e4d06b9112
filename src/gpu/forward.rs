//! A prepared forward operation, and its encoding into the caller's command encoder.

use super::FlashAttention;
use super::pipeline::Pipeline;
use super::scope::ErrorScope;
use crate::error::Error;
use crate::plan::{Call, Dispatch, Operand, Origins, Params, Plan, Usage, Window};
use std::num::NonZeroU64;
use std::ops::Range;
use std::sync::Arc;

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
    fn operands(&self) -> [(Operand, Usage, wgpu::BufferSlice<'a>); 5] {
        [
            (Operand::Q, Usage::Read, self.q),
            (Operand::K, Usage::Read, self.k),
            (Operand::V, Usage::Read, self.v),
            (Operand::O, Usage::Write, self.o),
            (Operand::Lse, Usage::Write, self.lse),
        ]
    }

    fn get(&self, operand: Operand) -> Option<wgpu::BufferSlice<'a>> {
        self.operands().into_iter().find(|(other, ..)| *other == operand).map(|(.., slice)| slice)
    }
}

/// Buffers start at multiples of this, so that four elements of any type are aligned.
const BUFFER_ALIGNMENT: u64 = 16;

/// A forward operation that is checked, planned and compiled. Encode it as often as you like.
#[derive(Clone, Debug)]
pub struct PreparedForward {
    attention: FlashAttention,
    plan: Plan,
    pipelines: Vec<Arc<Pipeline>>,
    scratch: Option<wgpu::Buffer>,
    /// Bound in place of tensors without elements, which wgpu refuses to bind.
    nothing: wgpu::Buffer,
}

impl PreparedForward {
    pub(super) async fn new(attention: &FlashAttention, plan: Plan) -> Result<Self, Error> {
        let mut pipelines = Vec::with_capacity(plan.passes().len());
        for pass in plan.passes() {
            pipelines.push(attention.pipelines.get(attention, &pass.specialization).await?);
        }
        let scope = ErrorScope::open(&attention.device, "allocating the score matrix");
        let buffer = |label, size| {
            let usage = wgpu::BufferUsages::STORAGE;
            attention.device.create_buffer(&wgpu::BufferDescriptor {
                label: Some(label),
                size,
                usage,
                mapped_at_creation: false,
            })
        };
        let scratch = (plan.scratch_bytes() > 0).then(|| buffer("attention scores", plan.scratch_bytes()));
        let nothing = buffer("empty tensor", 16);
        scope.close().await?;
        Ok(Self { attention: attention.clone(), plan, pipelines, scratch, nothing })
    }

    /// Its plan: kernels, tiles, memory.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Records the operation. Nothing is submitted and nothing waits.
    ///
    /// # Errors
    /// [`Error::BufferTooSmall`], [`Error::BufferUsage`], [`Error::BufferAlignment`] or [`Error::BufferAliased`] for
    /// buffers that don't fit; [`Error::OutOfMemory`] if the uniforms cannot be allocated.
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
        let dispatches = self.dispatches(buffers, call)?;
        self.record(encoder, buffers, &dispatches)
    }

    /// How many dispatches a call makes: 1 for flash, 3 for standard attention, and as many times more as limits or
    /// [`bounded_work`](crate::AttentionProblem::bounded_work) split it.
    ///
    /// # Errors
    /// [`Error::LengthExceedsPrepared`].
    pub fn num_dispatches(&self, call: &Call) -> Result<usize, Error> {
        Ok(self.plan.dispatches(call, &Origins::default())?.len())
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
        let dispatches = self.dispatches(buffers, call)?;
        let (start, end, count) = (range.start, range.end, dispatches.len());
        let dispatches = dispatches.get(range).ok_or(Error::NoSuchDispatch { start, end, count })?;
        self.record(encoder, buffers, dispatches)
    }

    fn dispatches(&self, buffers: &ForwardBuffers, call: &Call) -> Result<Vec<Dispatch>, Error> {
        let mut origins = Origins::default();
        for (operand, usage, slice) in buffers.operands() {
            let needed = self.plan.required_bytes(operand);
            if needed == 0 {
                continue;
            }
            if !slice.buffer().usage().contains(wgpu::BufferUsages::STORAGE) {
                return Err(Error::BufferUsage { operand, needed: "STORAGE" });
            }
            let found = slice.size();
            if found < needed {
                return Err(Error::BufferTooSmall { operand, needed, found });
            }
            let found = slice.offset();
            if found % BUFFER_ALIGNMENT != 0 {
                return Err(Error::BufferAlignment { operand, needed: BUFFER_ALIGNMENT, found });
            }
            if usage == Usage::Write {
                for (other, _, slice_other) in buffers.operands() {
                    let is_used = other != operand && self.plan.required_bytes(other) > 0;
                    if is_used && slice_other.buffer() == slice.buffer() {
                        return Err(Error::BufferAliased { output: operand, other });
                    }
                }
            }
            origins[operand as usize] = slice.offset();
        }
        self.plan.dispatches(call, &origins)
    }

    fn record(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        buffers: &ForwardBuffers,
        dispatches: &[Dispatch],
    ) -> Result<(), Error> {
        if dispatches.is_empty() {
            return Ok(());
        }
        let scope = ErrorScope::open(&self.attention.device, "encoding");
        let result = self.record_in_scope(encoder, buffers, dispatches);
        scope.close_now().and(result)
    }

    fn record_in_scope(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        buffers: &ForwardBuffers,
        dispatches: &[Dispatch],
    ) -> Result<(), Error> {
        let (uniforms, stride) = self.uniforms(dispatches)?;
        let mut pass = encoder
            .begin_compute_pass(&wgpu::ComputePassDescriptor { label: Some("attention"), timestamp_writes: None });
        for (index, dispatch) in dispatches.iter().enumerate() {
            let pipeline = &self.pipelines[dispatch.pass];
            let mut entries = vec![wgpu::BindGroupEntry {
                binding: Operand::Params.binding(),
                resource: wgpu::BindingResource::Buffer(wgpu::BufferBinding {
                    buffer: &uniforms,
                    offset: index as u64 * stride,
                    size: NonZeroU64::new(size_of::<Params>() as u64),
                }),
            }];
            entries.extend(dispatch.windows.iter().map(|window| self.entry(buffers, window)));
            let bind_group = self.attention.device.create_bind_group(&wgpu::BindGroupDescriptor {
                label: Some("attention"),
                layout: &pipeline.layout,
                entries: &entries,
            });
            pass.set_pipeline(&pipeline.pipeline);
            pass.set_bind_group(0, &bind_group, &[]);
            pass.dispatch_workgroups(dispatch.grid[0], dispatch.grid[1], 1);
        }
        Ok(())
    }

    fn entry<'a>(&'a self, buffers: &ForwardBuffers<'a>, window: &Window) -> wgpu::BindGroupEntry<'a> {
        let scratch = || self.scratch.as_ref().filter(|_| window.operand == Operand::S);
        let buffer = buffers.get(window.operand).map(|slice| slice.buffer()).or_else(scratch);
        let resource = match (buffer, NonZeroU64::new(window.size)) {
            (Some(buffer), Some(size)) => wgpu::BufferBinding { buffer, offset: window.offset, size: Some(size) },
            _ => wgpu::BufferBinding { buffer: &self.nothing, offset: 0, size: None },
        };
        wgpu::BindGroupEntry { binding: window.operand.binding(), resource: wgpu::BindingResource::Buffer(resource) }
    }

    /// One buffer with the uniform of every dispatch, and their distance. It is filled before the GPU ever sees it and
    /// never changes, so that each encoded call keeps its own values.
    fn uniforms(&self, dispatches: &[Dispatch]) -> Result<(wgpu::Buffer, u64), Error> {
        let stride = (size_of::<Params>() as u64).next_multiple_of(self.attention.capabilities.uniform_alignment);
        let mut bytes = vec![0; stride as usize * dispatches.len()];
        for (place, dispatch) in bytes.chunks_mut(stride as usize).zip(dispatches) {
            place[..size_of::<Params>()].copy_from_slice(bytemuck::bytes_of(&dispatch.params));
        }
        let usage = wgpu::BufferUsages::UNIFORM;
        Ok((super::host::buffer_with(&self.attention.device, "attention params", &bytes, usage)?, stride))
    }
}
