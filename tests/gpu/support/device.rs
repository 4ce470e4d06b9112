use std::sync::OnceLock;

use wgpu_flash_attention::FlashAttention;
use wgpu_flash_attention::plan::{Capabilities, DeviceClass};

/// Panics without an adapter: a test that cannot run must not pass.
pub fn adapter() -> &'static wgpu::Adapter {
    static ADAPTER: OnceLock<wgpu::Adapter> = OnceLock::new();
    ADAPTER.get_or_init(|| {
        let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle_from_env());
        let options = wgpu::RequestAdapterOptions {
            power_preference: wgpu::PowerPreference::HighPerformance,
            ..Default::default()
        };
        let adapter = pollster::block_on(instance.request_adapter(&options))
            .expect("these tests need a GPU adapter; Mesa's software driver (Debian: mesa-vulkan-drivers) is enough");
        println!("adapter: {:?}", adapter.get_info());
        adapter
    })
}

/// A new device, with everything that the library can use.
fn whole_device() -> FlashAttention {
    pollster::block_on(FlashAttention::from_adapter(adapter())).expect("the adapter has a device")
}

/// A new device with WebGPU's default limits and no feature.
fn default_device() -> FlashAttention {
    let device = pollster::block_on(adapter().request_device(&wgpu::DeviceDescriptor::default()));
    let (device, queue) = device.expect("the adapter has a device");
    FlashAttention::new(adapter(), &device, &queue)
}

/// The same device with all or only part of what it offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variant {
    /// As the library would use it: everything that the adapter has, shader modules without bounds checks.
    Full,
    /// f16 in storage, but not in the shader language.
    NoShaderF16,
    /// Rows are reduced through workgroup memory.
    NoSubgroups,
    /// A device like every browser's: default limits, no optional feature, bounds-checked shader modules.
    WebGpuDefaults,
    /// As the library would use it, but with bounds-checked shader modules.
    Checked,
    /// Too little workgroup memory for any but the smallest tiles.
    SmallTiles,
    /// The tiles of GPUs with memory of their own, even on a software driver.
    LargeTiles,
}

impl Variant {
    pub const ALL: [Variant; 7] = [
        Variant::Full,
        Variant::NoShaderF16,
        Variant::NoSubgroups,
        Variant::WebGpuDefaults,
        Variant::Checked,
        Variant::SmallTiles,
        Variant::LargeTiles,
    ];

    /// Those that differ in the sides of their tiles.
    pub const TILES: [Variant; 3] = [Variant::Full, Variant::SmallTiles, Variant::LargeTiles];
}

/// The library on a variant of the device. Each variant is made once, so that pipelines are compiled once; variants
/// share a device where they share pipelines, and no other, because a software driver compiles on one thread per device.
pub fn attention(variant: Variant) -> &'static FlashAttention {
    static VARIANTS: [OnceLock<FlashAttention>; Variant::ALL.len()] = [const { OnceLock::new() }; Variant::ALL.len()];
    VARIANTS[variant as usize].get_or_init(|| match variant {
        Variant::Full => whole_device(),
        Variant::NoShaderF16 => limited(|capabilities| capabilities.shader_f16 = false),
        Variant::NoSubgroups => limited(|capabilities| capabilities.subgroups = false),
        Variant::WebGpuDefaults => default_device().with_checked_shaders(true),
        Variant::Checked => whole_device().with_checked_shaders(true),
        Variant::SmallTiles => limited(|capabilities| capabilities.max_workgroup_storage = 8192),
        Variant::LargeTiles => limited(|capabilities| capabilities.device_class = DeviceClass::Discrete),
    })
}

/// The library as if the device had less than it has. Clones share one device and its pipelines.
pub fn limited(change: impl FnOnce(&mut Capabilities)) -> FlashAttention {
    let attention = attention(Variant::Full).clone();
    let mut capabilities = attention.capabilities().clone();
    change(&mut capabilities);
    attention.with_capabilities(capabilities)
}
