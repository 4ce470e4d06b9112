//! An adapter with its device, for every program.

use std::sync::{Arc, Mutex};

use wgpu_flash_attention::{Error, FlashAttention};

use crate::failure::{Failure, Result};
use crate::timing;

/// An adapter with a device of its own. Timestamps are on where the adapter has them.
pub struct Gpu {
    pub attention: FlashAttention,
    /// What wgpu reported outside any error scope; without a handler it would panic.
    faults: Arc<Mutex<Option<String>>>,
}

impl Gpu {
    /// A device on this adapter.
    pub async fn on(adapter: &wgpu::Adapter) -> Result<Self> {
        let mut descriptor = FlashAttention::device_descriptor(adapter);
        descriptor.required_features |= adapter.features() & timing::CLOCK_FEATURES;
        let (device, queue) = adapter
            .request_device(&descriptor)
            .await
            .map_err(|error| Failure::new(format_args!("{} gives no device: {error}", adapter.get_info().name)))?;

        let faults = Arc::new(Mutex::new(None));
        let handler_faults = Arc::clone(&faults);
        device.on_uncaptured_error(Arc::new(move |error: wgpu::Error| {
            if let Ok(mut fault) = handler_faults.lock() {
                fault.get_or_insert_with(|| error.to_string());
            }
        }));
        Ok(Self { attention: FlashAttention::new(adapter, &device, &queue), faults })
    }

    /// Name, driver and backend in one line.
    pub fn describe(&self) -> String {
        let capabilities = self.attention.capabilities();
        format!("{}, {} ({})", capabilities.adapter_name, capabilities.driver, capabilities.backend)
    }

    /// Fails if the device has reported an error since the last call.
    pub fn fault(&self) -> Result<()> {
        let fault = self.faults.lock().map_or(None, |mut fault| fault.take());
        fault.map_or(Ok(()), |fault| Err(Failure::new(format_args!("the GPU reported an error: {fault}"))))
    }

    /// Waits for all submitted work.
    pub fn wait(&self) -> Result<()> {
        self.attention
            .device()
            .poll(wgpu::PollType::wait_indefinitely())
            .map_err(|error| Failure::new(format_args!("waiting for the GPU failed: {error}")))?;
        self.fault()
    }
}

/// All adapters that can compute, in the order of `flash info`.
pub async fn adapters() -> Vec<wgpu::Adapter> {
    let backends = wgpu::Backends::VULKAN | wgpu::Backends::METAL | wgpu::Backends::DX12;
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor {
        backends,
        flags: wgpu::InstanceFlags::empty(),
        ..wgpu::InstanceDescriptor::new_without_display_handle()
    });
    let mut adapters = instance.enumerate_adapters(backends).await;
    adapters
        .retain(|adapter| adapter.get_downlevel_capabilities().flags.contains(wgpu::DownlevelFlags::COMPUTE_SHADERS));
    adapters
}

/// The adapter with this number or name, or one of the fastest kind there is.
pub fn select<'a>(adapters: &'a [wgpu::Adapter], selector: Option<&str>) -> Result<&'a wgpu::Adapter> {
    let fastest = adapters.iter().min_by_key(|adapter| slowness(adapter.get_info().device_type));
    let fastest = fastest.ok_or_else(|| Error::NoAdapter("none offers compute shaders".to_owned()))?;
    match selector {
        Some(selector) => Ok(&adapters[position(adapters, selector)?]),
        None => Ok(fastest),
    }
}

/// The position of the adapter that `selector` names. A number is a position.
pub fn position(adapters: &[wgpu::Adapter], selector: &str) -> Result<usize> {
    let wanted = selector.trim().to_lowercase();
    let found = match wanted.parse::<usize>() {
        Ok(index) => Some(index).filter(|index| *index < adapters.len()),
        Err(_) if wanted.is_empty() => None,
        Err(_) => adapters.iter().position(|adapter| adapter.get_info().name.to_lowercase().contains(&wanted)),
    };
    found.ok_or_else(|| {
        let known: Vec<String> =
            adapters.iter().enumerate().map(|(i, adapter)| format!("{i}: {}", adapter.get_info().name)).collect();
        Failure::new(format_args!("there is no adapter '{selector}', only {}", known.join(", ")))
    })
}

fn slowness(device_type: wgpu::DeviceType) -> u32 {
    match device_type {
        wgpu::DeviceType::DiscreteGpu => 0,
        wgpu::DeviceType::IntegratedGpu => 1,
        wgpu::DeviceType::VirtualGpu => 2,
        wgpu::DeviceType::Other => 3,
        wgpu::DeviceType::Cpu => 4,
    }
}
