//! What all prepared operations do: check the caller's buffers, bind them, and record dispatches.

use super::attention::FlashAttention;
use super::bindings::{BindGroups, Binding, Making};
use super::buffers::Slices;
use super::memory;
use super::pipeline::Pipeline;
use super::scope::ErrorScope;
use crate::error::Error;
use crate::plan::{Call, Dispatch, Operand, Origins, Params, Plan, Tensor, Usage, Window};
use std::num::NonZeroU64;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

/// A plan with its pipelines, scratch memory and bind groups.
#[derive(Clone, Debug)]
pub(super) struct Operation {
    attention: FlashAttention,
    pub plan: Plan,
    pipelines: Vec<Arc<Pipeline>>,
    scratch: Vec<(Operand, wgpu::Buffer)>,
    /// Bound in place of tensors without elements, which wgpu refuses to bind.
    nothing: wgpu::Buffer,
    bind_groups: Arc<BindGroups>,
    listed: Arc<Mutex<Option<Listed>>>,
    /// What spans call it.
    #[cfg(feature = "tracing")]
    pub title: Arc<str>,
    /// Of compute passes, if the caller wants to see them.
    label: Option<Arc<str>>,
}

/// The dispatches of the last call that was recorded in parts: whoever records one after the other asks for the same list
/// again and again.
#[derive(Debug)]
struct Listed {
    call: Call,
    origins: Origins,
    dispatches: Arc<[Dispatch]>,
}

impl Operation {
    /// Compiles and allocates.
    pub(super) async fn new(attention: &FlashAttention, plan: Plan) -> Result<Self, Error> {
        spanned!(Self::make(attention, plan), "prepare", operation = %plan.title()).await
    }

    async fn make(attention: &FlashAttention, plan: Plan) -> Result<Self, Error> {
        let specializations = plan.passes().iter().map(|pass| &pass.specialization);
        #[cfg(not(target_arch = "wasm32"))]
        attention.pipelines.compile_missing(attention.compiler(), specializations.clone());
        let mut pipelines = Vec::with_capacity(plan.passes().len());
        for specialization in specializations {
            pipelines.push(attention.pipelines.get(attention.compiler(), specialization).await?);
        }
        let scope = ErrorScope::open(&attention.device, "allocating scratch memory");
        let buffer = |operand: Option<Operand>, size| {
            let is_filled = operand == Some(Operand::Tables);
            let filled = if is_filled { wgpu::BufferUsages::COPY_DST } else { wgpu::BufferUsages::empty() };
            attention.device.create_buffer(&wgpu::BufferDescriptor {
                label: Some(operand.map_or("empty tensor", Operand::name)),
                size,
                usage: wgpu::BufferUsages::STORAGE | filled,
                mapped_at_creation: false,
            })
        };
        let scratch: Vec<_> =
            plan.scratch().iter().map(|&(operand, bytes)| (operand, buffer(Some(operand), bytes))).collect();
        if let Some((_, tables)) = scratch.iter().find(|(operand, _)| *operand == Operand::Tables) {
            attention.queue.write_buffer(tables, 0, bytemuck::cast_slice(&plan.tables()));
        }
        let nothing = buffer(None, 16);
        scope.close().await?;
        if !memory::is_there(attention.backend, &nothing) {
            // No error is raised on a lost device, and nothing can be made.
            return Err(Error::DeviceLost("no buffer can be created".into()));
        }
        let label = attention.label.as_deref().map(|label| format!("{label}: {}", plan.title()).into());
        #[cfg(feature = "tracing")]
        let title = plan.title().into();
        let (bind_groups, listed) = (Arc::default(), Arc::default());
        Ok(Self {
            attention: attention.clone(),
            plan,
            pipelines,
            scratch,
            nothing,
            bind_groups,
            listed,
            label,
            #[cfg(feature = "tracing")]
            title,
        })
    }

    /// See [`FlashAttention::or_lost`].
    pub(super) fn or_lost(&self, error: Error) -> Error {
        self.attention.or_lost(error)
    }

    /// How many dispatches a call makes, wherever its buffers start.
    pub(super) fn num_dispatches(&self, call: &Call) -> Result<usize, Error> {
        let listed = self.listed.lock().unwrap_or_else(PoisonError::into_inner);
        match listed.as_ref().filter(|listed| listed.call == *call) {
            Some(listed) => Ok(listed.dispatches.len()),
            None => Ok(self.plan.dispatches(call, &Origins::default())?.len()),
        }
    }

    /// The dispatches of a call on buffers that start there.
    fn listed(&self, call: &Call, origins: Origins) -> Result<Arc<[Dispatch]>, Error> {
        let is_same = |listed: &&Listed| listed.call == *call && listed.origins == origins;
        let lock = || self.listed.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(listed) = lock().as_ref().filter(is_same) {
            return Ok(listed.dispatches.clone());
        }
        let dispatches: Arc<[Dispatch]> = self.plan.dispatches(call, &origins)?.into();
        *lock() = Some(Listed { call: *call, origins, dispatches: dispatches.clone() });
        Ok(dispatches)
    }

    /// Records some of the dispatches of a call.
    pub(super) fn encode(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        slices: &Slices,
        call: &Call,
        range: Range<usize>,
    ) -> Result<(), Error> {
        let dispatches = self.listed(call, self.origins(slices)?)?;
        let (start, end, count) = (range.start, range.end, dispatches.len());
        let dispatches = dispatches.get(range).ok_or(Error::NoSuchDispatch { start, end, count })?;
        self.record(encoder, slices, dispatches)
    }

    /// Checks the buffers; the dispatches of a call on them.
    pub(super) fn dispatches(&self, slices: &Slices, call: &Call) -> Result<Vec<Dispatch>, Error> {
        self.plan.dispatches(call, &self.origins(slices)?)
    }

    /// Checks the buffers; where they start.
    fn origins(&self, slices: &Slices) -> Result<Origins, Error> {
        let tensors = self.plan.tensors();
        for (operand, _) in Operand::ALL.iter().zip(slices).filter(|(_, slice)| slice.is_some()) {
            if !tensors.iter().any(|tensor| tensor.operand == *operand) {
                return Err(Error::BufferUnexpected { operand: *operand });
            }
        }
        let mut origins = Origins::default();
        for tensor in tensors {
            let (operand, needed) = (tensor.operand, tensor.required_bytes());
            match slices[operand as usize] {
                _ if needed == 0 => {}
                None if tensor.optional => {}
                None => return Err(Error::BufferTooSmall { operand, needed, found: 0 }),
                Some(slice) => {
                    self.check_slice(tensor, slice, slices)?;
                    origins = origins.with(operand, slice.offset());
                }
            }
        }
        Ok(origins)
    }

    /// Whether the slice fits a tensor that has elements.
    fn check_slice(&self, tensor: &Tensor, slice: wgpu::BufferSlice, slices: &Slices) -> Result<(), Error> {
        let (operand, needed) = (tensor.operand, tensor.required_bytes());
        if !slice.buffer().usage().contains(wgpu::BufferUsages::STORAGE) {
            return Err(Error::BufferUsage { operand, needed: "STORAGE" });
        }
        let found = slice.size();
        if found < needed {
            return Err(Error::BufferTooSmall { operand, needed, found });
        }
        if !memory::is_there(self.attention.backend, slice.buffer()) {
            return Err(Error::BufferDestroyed { operand });
        }
        let (needed, found) = (self.plan.slice_alignment(operand), slice.offset());
        if found % needed != 0 {
            return Err(Error::BufferAlignment { operand, needed, found });
        }
        // WebGPU counts what shared buffers are read from as written. wgpu knows better elsewhere.
        let is_written = tensor.usage == Usage::Write || self.plan.shares_buffers() && cfg!(target_arch = "wasm32");
        if is_written {
            for other in self.plan.tensors().iter().filter(|other| other.operand != operand) {
                let Some(shared) = slices[other.operand as usize].filter(|o| o.buffer() == slice.buffer()) else {
                    continue;
                };
                // K and V of a cache may lie in one buffer, but not at one place.
                let is_same = shared.offset() == slice.offset() && other.layout == tensor.layout;
                let may_share = !is_same && self.plan.may_share(operand, other.operand)
                    || (other.usage == Usage::Write || self.plan.shares_buffers())
                        && self.are_apart([tensor, other], slices);
                if other.required_bytes() > 0 && !may_share {
                    return Err(Error::BufferAliased { output: operand, other: other.operand });
                }
            }
        }
        Ok(())
    }

    /// Whether no binding of one tensor touches one of the other, if both have buffers.
    fn are_apart(&self, tensors: [&Tensor; 2], slices: &Slices) -> bool {
        let alignment = u64::from(self.attention.device.limits().min_storage_buffer_offset_alignment).max(1);
        let [one, other] = tensors.map(|tensor| {
            let first = slices[tensor.operand as usize].map_or(0, |slice| slice.offset());
            first / alignment * alignment..first + tensor.required_bytes()
        });
        one.end <= other.start || other.end <= one.start
    }

    /// Records dispatches as one compute pass. Everything that can fail comes before the pass begins, so a refused call
    /// leaves the encoder as it was.
    pub(super) fn record(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        slices: &Slices,
        dispatches: &[Dispatch],
    ) -> Result<(), Error> {
        if dispatches.is_empty() {
            return Ok(());
        }
        let bound = self.bind_all(slices, dispatches)?;
        // If the caller left a pass open in the encoder, this raises an error; the encoder is broken already.
        let scope = ErrorScope::of_validation(&self.attention.device);
        let label = Some(self.label.as_deref().unwrap_or("attention"));
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor { label, timestamp_writes: None });
        self.dispatch_all(&mut pass, dispatches, &bound);
        drop(pass);
        scope.close_now()
    }

    /// As `record`, in a pass that the caller began.
    pub(super) fn record_in_pass(
        &self,
        pass: &mut wgpu::ComputePass<'_>,
        slices: &Slices,
        dispatches: &[Dispatch],
    ) -> Result<(), Error> {
        let bound = self.bind_all(slices, dispatches)?;
        let scope = ErrorScope::of_validation(&self.attention.device);
        self.dispatch_all(pass, dispatches, &bound);
        scope.close_now()
    }

    fn dispatch_all(
        &self,
        pass: &mut wgpu::ComputePass<'_>,
        dispatches: &[Dispatch],
        bound: &[(wgpu::BindGroup, u32)],
    ) {
        let mut current = None;
        for (dispatch, (group, offset)) in dispatches.iter().zip(bound) {
            if self.label.is_some() && current != Some(dispatch.pass) {
                if current.replace(dispatch.pass).is_some() {
                    pass.pop_debug_group();
                }
                pass.push_debug_group(self.plan.passes()[dispatch.pass].kernel.name());
            }
            pass.set_pipeline(&self.pipelines[dispatch.pass].pipeline);
            pass.set_bind_group(0, group, &[*offset]);
            pass.dispatch_workgroups(dispatch.grid[0], dispatch.grid[1], 1);
        }
        if current.is_some() {
            pass.pop_debug_group();
        }
    }

    /// The bind group of each dispatch, and where its uniform begins.
    fn bind_all(&self, slices: &Slices, dispatches: &[Dispatch]) -> Result<Vec<(wgpu::BindGroup, u32)>, Error> {
        for (operand, buffer) in &self.scratch {
            if !memory::is_there(self.attention.backend, buffer) {
                return Err(Error::BufferDestroyed { operand: *operand });
            }
        }
        let mut making = Making::default();
        let bound = dispatches.iter().map(|dispatch| self.bind(slices, dispatch, &mut making)).collect();
        match making.end() {
            Ok(groups) if memory::can_be_seen(self.attention.backend) => self.bind_groups.note(groups),
            // Nothing would show that the buffers of an old bind group were destroyed.
            Ok(_) => {}
            Err(error) => {
                // A uniform may not have been written, and must not be used again.
                self.attention.uniforms.clear();
                return Err(error);
            }
        }
        Ok(bound)
    }

    /// Lets go of the caller's buffers that bind groups hold.
    pub(super) fn release_buffers(&self) {
        self.bind_groups.clear();
    }

    /// Frees the scratch memory, whoever still holds the operation.
    pub(super) fn destroy(&self) {
        self.bind_groups.clear();
        self.scratch.iter().for_each(|(_, buffer)| buffer.destroy());
    }

    fn bind(&self, slices: &Slices, dispatch: &Dispatch, making: &mut Making) -> (wgpu::BindGroup, u32) {
        let layout = &self.pipelines[dispatch.pass].layout;
        let FlashAttention { device, queue, uniforms, .. } = &self.attention;
        let (uniform, offset) = uniforms.place(device, queue, &dispatch.params, making);
        let size = NonZeroU64::new(size_of::<Params>() as u64);
        let mut bindings = Vec::with_capacity(1 + dispatch.windows.len());
        bindings.push(Binding { operand: Operand::Params, buffer: &uniform, offset: 0, size });
        bindings.extend(dispatch.windows.iter().map(|window| self.binding(slices, window)));
        (self.bind_groups.get(device, (dispatch.pass, layout), &bindings, making), offset)
    }

    fn binding<'a>(&'a self, slices: &Slices<'a>, window: &Window) -> Binding<'a> {
        let operand = window.operand;
        let tensor = slices[operand as usize].map(|slice| slice.buffer());
        let scratch = || self.scratch.iter().find(|(other, _)| *other == operand).map(|(_, buffer)| buffer);
        match (tensor.or_else(scratch), NonZeroU64::new(window.size)) {
            (Some(buffer), Some(size)) => Binding { operand, buffer, offset: window.offset, size: Some(size) },
            _ => Binding { operand, buffer: &self.nothing, offset: 0, size: None },
        }
    }
}
