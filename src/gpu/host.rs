//! The form for people who only have slices: upload, run, read back.

use super::scope::ErrorScope;
use super::{FlashAttention, ForwardBuffers, PreparedForward};
use crate::error::Error;
use crate::plan::{Call, Operand, Plan};
use crate::problem::{AttentionProblem, ElementType};
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

/// What the slice form returns.
#[derive(Clone, Debug, PartialEq)]
pub struct ForwardOutput<T> {
    /// O in the problem's layout; places between its rows are 0.
    pub o: Vec<T>,
    /// The log-sum-exp of each row, `[batch, num_heads, seqlen_q]`.
    pub lse: Vec<f32>,
}

impl FlashAttention {
    /// Uploads Q, K and V, runs the operation and reads O and LSE back. Slices are in the problem's layouts and may be
    /// longer than needed. Pipelines are kept for the next call; buffers are not.
    ///
    /// # Errors
    /// [`Error::ElementMismatch`] and [`Error::SliceTooShort`] for the slices, those of
    /// [`FlashAttention::prepare_forward`], and [`Error::OutOfMemory`], [`Error::DeviceLost`] and [`Error::Gpu`] from
    /// the device.
    pub async fn forward<T: ElementType>(
        &self,
        problem: &AttentionProblem,
        q: &[T],
        k: &[T],
        v: &[T],
    ) -> Result<ForwardOutput<T>, Error> {
        if T::ELEMENT != problem.element {
            return Err(Error::ElementMismatch { expected: problem.element, found: T::ELEMENT });
        }
        let plan = Plan::new(problem, &self.capabilities)?;
        for (operand, slice) in [(Operand::Q, q), (Operand::K, k), (Operand::V, v)] {
            let (needed, found) = (plan.required_len(operand), slice.len() as u64);
            if found < needed {
                return Err(Error::SliceTooShort { operand, needed, found });
            }
        }
        let prepared = PreparedForward::new(self, plan).await?;
        let scope = ErrorScope::open(&self.device, "uploading, running or reading back");
        let result = self.run(&prepared, q, k, v);
        scope.close().await?;
        let (o, lse) = result?;
        let (o, lse) = (o.bytes(&self.device).await?, lse.bytes(&self.device).await?);
        let plan = prepared.plan();
        Ok(ForwardOutput {
            o: elements(&o, plan.required_len(Operand::O)),
            lse: elements(&lse, plan.required_len(Operand::Lse)),
        })
    }

    fn run<T: ElementType>(
        &self,
        prepared: &PreparedForward,
        q: &[T],
        k: &[T],
        v: &[T],
    ) -> Result<(Readback, Readback), Error> {
        let plan = prepared.plan();
        let input = |operand: Operand, slice: &[T]| {
            let bytes = bytemuck::cast_slice(&slice[..plan.required_len(operand) as usize]);
            buffer_with(&self.device, operand.name(), bytes, wgpu::BufferUsages::STORAGE)
        };
        let (q, k, v) = (input(Operand::Q, q)?, input(Operand::K, k)?, input(Operand::V, v)?);
        let output = |operand: Operand, usage| {
            self.device.create_buffer(&wgpu::BufferDescriptor {
                label: Some(operand.name()),
                size: plan.required_bytes(operand).max(16),
                usage,
                mapped_at_creation: false,
            })
        };
        let storage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC;
        let (o, lse) = (output(Operand::O, storage), output(Operand::Lse, storage));
        let buffers =
            ForwardBuffers { q: q.slice(..), k: k.slice(..), v: v.slice(..), o: o.slice(..), lse: lse.slice(..) };

        let encoder = || self.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        let call = Call::default();
        let mut last = encoder();
        if plan.problem().max_flops_per_dispatch.is_some() {
            // A watchdog counts submissions, so each part goes alone.
            for index in 0..prepared.num_dispatches(&call)? {
                let mut encoder = encoder();
                prepared.encode_dispatches(&mut encoder, &buffers, &call, index..index + 1)?;
                self.queue.submit([encoder.finish()]);
            }
        } else {
            prepared.encode(&mut last, &buffers)?;
        }
        let readback = wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST;
        let (o_host, lse_host) = (output(Operand::O, readback), output(Operand::Lse, readback));
        last.copy_buffer_to_buffer(&o, 0, &o_host, 0, None);
        last.copy_buffer_to_buffer(&lse, 0, &lse_host, 0, None);
        self.queue.submit([last.finish()]);
        Ok((Readback::start(o_host), Readback::start(lse_host)))
    }
}

fn elements<T: bytemuck::Pod>(bytes: &[u8], len: u64) -> Vec<T> {
    let mut elements = vec![T::zeroed(); len as usize];
    let target: &mut [u8] = bytemuck::cast_slice_mut(&mut elements);
    target.copy_from_slice(&bytes[..target.len()]);
    elements
}

/// A buffer that holds `bytes`, padded with zeros to whole words and at least 16 bytes.
pub(super) fn buffer_with(
    device: &wgpu::Device,
    label: &'static str,
    bytes: &[u8],
    usage: wgpu::BufferUsages,
) -> Result<wgpu::Buffer, Error> {
    let size = (bytes.len() as u64).next_multiple_of(4).max(16);
    let buffer =
        device.create_buffer(&wgpu::BufferDescriptor { label: Some(label), size, usage, mapped_at_creation: true });
    // Without memory there is nothing mapped either, but then the scope around knows, and its error goes first.
    let mut mapped =
        buffer.slice(..).get_mapped_range_mut().map_err(|_| Error::DeviceLost("no buffer can be created".into()))?;
    mapped.slice(..bytes.len()).copy_from_slice(bytes);
    drop(mapped);
    buffer.unmap();
    Ok(buffer)
}

/// A buffer on its way to the host.
struct Readback {
    buffer: wgpu::Buffer,
    mapped: Mapped,
}

impl Readback {
    fn start(buffer: wgpu::Buffer) -> Self {
        let mapped = Mapped::default();
        let state = mapped.0.clone();
        buffer.slice(..).map_async(wgpu::MapMode::Read, move |result| {
            let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
            state.result = Some(result.is_ok());
            if let Some(waker) = state.waker.take() {
                waker.wake();
            }
        });
        Self { buffer, mapped }
    }

    async fn bytes(self, device: &wgpu::Device) -> Result<Vec<u8>, Error> {
        drive(device);
        if !self.mapped.await {
            return Err(Error::DeviceLost("a result buffer could not be mapped".into()));
        }
        let range = self.buffer.slice(..).get_mapped_range().map_err(|error| Error::Gpu(error.to_string()))?;
        Ok(range.to_vec())
    }
}

/// Makes callbacks arrive: a thread waits for the device, so that the caller's executor does not.
#[cfg(not(target_arch = "wasm32"))]
fn drive(device: &wgpu::Device) {
    let wait = {
        let device = device.clone();
        // An error here is a lost device, which the callback reports too.
        move || drop(device.poll(wgpu::PollType::wait_indefinitely()))
    };
    if std::thread::Builder::new().name("wgpu poll".into()).spawn(wait).is_err() {
        drop(device.poll(wgpu::PollType::wait_indefinitely()));
    }
}

/// A browser makes callbacks arrive by itself.
#[cfg(target_arch = "wasm32")]
fn drive(_: &wgpu::Device) {}

#[derive(Default)]
struct MapState {
    result: Option<bool>,
    waker: Option<Waker>,
}

/// Whether the mapping succeeded, once that is known.
#[derive(Default)]
struct Mapped(Arc<Mutex<MapState>>);

impl Future for Mapped {
    type Output = bool;

    fn poll(self: Pin<&mut Self>, context: &mut Context) -> Poll<bool> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match state.result {
            Some(result) => Poll::Ready(result),
            None => {
                state.waker = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }
}
