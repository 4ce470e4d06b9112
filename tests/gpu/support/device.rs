use std::sync::OnceLock;

use wgpu_flash_attention::FlashAttention;
use wgpu_flash_attention::plan::{Capabilities, DeviceClass};

/// The device that all tests share.
pub struct Gpu {
    pub adapter: wgpu::Adapter,
    pub device: wgpu::Device,
    pub queue: wgpu::Queue,
}

/// Panics without an adapter: a test that cannot run must not pass.
pub fn gpu() -> &'static Gpu {
    static GPU: OnceLock<Gpu> = OnceLock::new();
    GPU.get_or_init(|| {
        let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle_from_env());
        let options = wgpu::RequestAdapterOptions {
            power_preference: wgpu::PowerPreference::HighPerformance,
            ..Default::default()
        };
        let adapter = pollster::block_on(instance.request_adapter(&options))
            .expect("these tests need a GPU adapter; Mesa's software driver (Debian: mesa-vulkan-drivers) is enough");
        let descriptor = FlashAttention::device_descriptor(&adapter);
        let (device, queue) =
            pollster::block_on(adapter.request_device(&descriptor)).expect("the adapter has a device");
        println!("adapter: {:?}", adapter.get_info());
        Gpu { adapter, device, queue }
    })
}

/// The same device with all or only part of what it offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variant {
    /// As the library would use it.
    Full,
    /// f16 in storage, but not in the shader language.
    NoShaderF16,
    /// Rows are reduced through workgroup memory.
    NoSubgroups,
    /// What every WebGPU browser grants: default limits, no optional feature.
    WebGpuDefaults,
    /// Bounds-checked shader modules, as in browsers.
    Checked,
    /// Shader modules without bounds checks.
    Unchecked,
    /// Too little workgroup memory for any but the smallest tiles.
    SmallTiles,
    /// The tiles of GPUs with memory of their own, even on a software driver.
    LargeTiles,
}

impl Variant {
    pub const ALL: [Variant; 8] = [
        Variant::Full,
        Variant::NoShaderF16,
        Variant::NoSubgroups,
        Variant::WebGpuDefaults,
        Variant::Checked,
        Variant::Unchecked,
        Variant::SmallTiles,
        Variant::LargeTiles,
    ];

    /// Those that differ in the sides of their tiles.
    pub const TILES: [Variant; 3] = [Variant::Full, Variant::SmallTiles, Variant::LargeTiles];
}

/// Clones share one cache of pipelines.
fn new_attention() -> FlashAttention {
    static ATTENTION: OnceLock<FlashAttention> = OnceLock::new();
    let gpu = gpu();
    ATTENTION.get_or_init(|| FlashAttention::new(&gpu.adapter, &gpu.device, &gpu.queue)).clone()
}

/// The library on a variant of the device. Each variant is made once, so that pipelines are compiled once.
pub fn attention(variant: Variant) -> &'static FlashAttention {
    static VARIANTS: [OnceLock<FlashAttention>; Variant::ALL.len()] = [const { OnceLock::new() }; Variant::ALL.len()];
    VARIANTS[variant as usize].get_or_init(|| match variant {
        Variant::Full => new_attention(),
        Variant::NoShaderF16 => limited(|capabilities| capabilities.shader_f16 = false),
        Variant::NoSubgroups => limited(|capabilities| capabilities.subgroups = false),
        Variant::WebGpuDefaults => limited(|capabilities| {
            capabilities.shader_f16 = false;
            capabilities.subgroups = false;
            capabilities.max_workgroup_storage = 16384;
            capabilities.max_invocations = 256;
            capabilities.max_binding = 128 << 20;
            capabilities.max_buffer = 256 << 20;
        })
        .with_checked_shaders(true),
        Variant::Checked => new_attention().with_checked_shaders(true),
        Variant::Unchecked => new_attention().with_checked_shaders(false),
        Variant::SmallTiles => limited(|capabilities| capabilities.max_workgroup_storage = 8192),
        Variant::LargeTiles => limited(|capabilities| capabilities.device_class = DeviceClass::Discrete),
    })
}

/// The library on a device with less than it has.
pub fn limited(change: impl FnOnce(&mut Capabilities)) -> FlashAttention {
    let attention = new_attention();
    let mut capabilities = attention.capabilities().clone();
    change(&mut capabilities);
    attention.with_capabilities(capabilities)
}
