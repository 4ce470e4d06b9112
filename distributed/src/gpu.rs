//! Devices for ranks, and what is done with their buffers.

use crate::error::Error;
use std::sync::mpsc;
use std::time::Duration;
use wgpu_flash_attention::{Error as AttentionError, FlashAttention, wgpu};

/// Uploads go in pieces of this size, so that staging memory stays small.
const PIECE: usize = 32 << 20;

/// The adapters that ranks use if nobody says which: all GPUs, or the software driver where there is none.
///
/// # Errors
/// [`Error::Gpu`] without any.
pub fn adapters() -> Result<Vec<wgpu::Adapter>, Error> {
    let backends = wgpu::Backends::VULKAN | wgpu::Backends::METAL | wgpu::Backends::DX12;
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor {
        backends,
        flags: wgpu::InstanceFlags::empty(),
        ..wgpu::InstanceDescriptor::new_without_display_handle()
    });
    let mut all = pollster::block_on(instance.enumerate_adapters(backends));
    all.retain(|adapter| adapter.get_downlevel_capabilities().flags.contains(wgpu::DownlevelFlags::COMPUTE_SHADERS));
    let is_gpu = |adapter: &wgpu::Adapter| adapter.get_info().device_type != wgpu::DeviceType::Cpu;
    if all.iter().any(is_gpu) {
        all.retain(is_gpu);
    }
    if all.is_empty() { Err(Error::Gpu("no adapter computes here".into())) } else { Ok(all) }
}

/// A device for each of `ranks` ranks, one after another on each of the adapters. Ranks that share an adapter share its device.
///
/// # Errors
/// Those of [`FlashAttention::from_adapter`].
pub fn devices(adapters: &[wgpu::Adapter], ranks: usize) -> Result<Vec<FlashAttention>, Error> {
    let used = adapters.iter().take(ranks);
    let opened = used.map(|adapter| pollster::block_on(FlashAttention::from_adapter(adapter)));
    let opened = opened.collect::<Result<Vec<_>, _>>()?;
    Ok((0..ranks).map(|rank| opened[rank % opened.len()].clone()).collect())
}

/// A buffer for tensors of kernels.
pub(crate) fn storage(attention: &FlashAttention, label: &'static str, bytes: u64) -> Result<wgpu::Buffer, Error> {
    let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST;
    buffer(attention, label, bytes, usage)
}

/// A buffer, of 16 bytes at least.
pub(crate) fn buffer(
    attention: &FlashAttention,
    label: &'static str,
    bytes: u64,
    usage: wgpu::BufferUsages,
) -> Result<wgpu::Buffer, Error> {
    let size = bytes.max(16).next_multiple_of(4);
    let descriptor = wgpu::BufferDescriptor { label: Some(label), size, usage, mapped_at_creation: false };
    caught(attention, &format!("{label} of {size} bytes"), || attention.device().create_buffer(&descriptor))
}

/// What wgpu calls return, or the error that they raise: without a scope, wgpu panics.
pub(crate) fn caught<R>(attention: &FlashAttention, what: &str, calls: impl FnOnce() -> R) -> Result<R, Error> {
    let filters = [wgpu::ErrorFilter::Internal, wgpu::ErrorFilter::OutOfMemory, wgpu::ErrorFilter::Validation];
    let scopes = filters.map(|filter| attention.device().push_error_scope(filter));
    let returned = calls();
    // Closed in the opposite order.
    let errors = scopes.into_iter().rev().map(|scope| pollster::block_on(scope.pop()));
    match errors.fold(None, Option::or) {
        Some(error) => Err(Error::Gpu(format!("{what}: {error}"))),
        None => Ok(returned),
    }
}

/// Writes bytes to a buffer, from `offset` on, which is a multiple of 4.
pub(crate) fn upload(
    attention: &FlashAttention,
    buffer: &wgpu::Buffer,
    offset: u64,
    bytes: &[u8],
) -> Result<(), Error> {
    for (piece, bytes) in (0..).zip(bytes.chunks(PIECE)) {
        let at = offset + piece * PIECE as u64;
        caught(attention, "an upload", || match bytes.len() % 4 {
            0 => attention.queue().write_buffer(buffer, at, bytes),
            // Whole words; tensors of two-byte elements may end in the middle of one.
            rest => {
                let mut padded = bytes.to_vec();
                padded.resize(bytes.len() + 4 - rest, 0);
                attention.queue().write_buffer(buffer, at, &padded);
            }
        })?;
        if bytes.len() == PIECE {
            // wgpu gives staging memory back when a later submission has passed.
            wait(attention, Some(attention.queue().submit([])))?;
        }
    }
    Ok(())
}

/// Submits copies from buffers to others, as far as both reach.
pub(crate) fn copy<'a>(
    attention: &FlashAttention,
    pairs: impl IntoIterator<Item = (&'a wgpu::Buffer, &'a wgpu::Buffer)>,
) -> Result<wgpu::SubmissionIndex, Error> {
    submit(attention, "copying", |encoder| {
        for (from, to) in pairs {
            encoder.copy_buffer_to_buffer(from, 0, to, 0, from.size().min(to.size()));
        }
        Ok(())
    })
}

/// Submits what `record` records.
pub(crate) fn submit(
    attention: &FlashAttention,
    what: &str,
    record: impl FnOnce(&mut wgpu::CommandEncoder) -> Result<(), Error>,
) -> Result<wgpu::SubmissionIndex, Error> {
    caught(attention, what, || {
        let mut encoder = attention.device().create_command_encoder(&Default::default());
        record(&mut encoder)?;
        Ok(attention.queue().submit([encoder.finish()]))
    })?
}

/// Waits for a submission, or for all.
pub(crate) fn wait(attention: &FlashAttention, submission: Option<wgpu::SubmissionIndex>) -> Result<(), Error> {
    let poll = wgpu::PollType::Wait { submission_index: submission, timeout: None };
    attention.device().poll(poll).map(|_| ()).map_err(|error| Error::Gpu(format!("waiting for the device: {error}")))
}

/// Maps buffers, whose last use is in this submission or before it.
pub(crate) fn map(
    attention: &FlashAttention,
    buffers: &[(&wgpu::Buffer, wgpu::MapMode)],
    submission: Option<wgpu::SubmissionIndex>,
) -> Result<(), Error> {
    let (sender, mapped) = mpsc::channel();
    caught(attention, "mapping staging memory", || {
        for (buffer, mode) in buffers {
            let sender = sender.clone();
            // Nobody waits any more if this cannot be sent.
            buffer.map_async(*mode, .., move |result| drop(sender.send(result)));
        }
    })?;
    wait(attention, submission)?;
    for _ in buffers {
        // Where ranks share a device, the thread of another one may be about to say so.
        let result = mapped.recv_timeout(Duration::from_secs(10));
        let result = result.map_err(|_| Error::Gpu("a buffer was not mapped: the device is lost".into()))?;
        result.map_err(|error| Error::Gpu(format!("mapping staging memory: {error}")))?;
    }
    Ok(())
}

/// The error, or that the device was lost: wgpu says nothing of that, and later calls fail for other reasons.
pub(crate) fn or_lost(attention: &FlashAttention, error: Error) -> Error {
    let usage = wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST;
    let (Error::Gpu(reason), Ok(probe)) = (&error, buffer(attention, "probe", 16, usage)) else { return error };
    // A buffer that was made on a lost device is not there, which wgpu tells whoever uses it.
    match caught(attention, "probe", || probe.map_async(wgpu::MapMode::Read, .., drop)) {
        Ok(()) => error,
        Err(_) => AttentionError::DeviceLost(reason.clone()).into(),
    }
}

/// The first bytes of a buffer.
pub(crate) fn read(attention: &FlashAttention, from: &wgpu::Buffer) -> Result<Vec<u8>, Error> {
    let usage = wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST;
    let staging = buffer(attention, "readback", from.size(), usage)?;
    let copied = copy(attention, [(from, &staging)])?;
    map(attention, &[(&staging, wgpu::MapMode::Read)], Some(copied))?;
    let view = staging.get_mapped_range(..).map_err(|error| Error::Gpu(error.to_string()))?;
    Ok(view.to_vec())
}
