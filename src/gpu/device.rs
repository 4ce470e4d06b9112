//! Adapters, devices, and what they offer.

use crate::error::Error;
use crate::plan::{Capabilities, DeviceClass};
use wgpu::Features;

/// What makes kernels faster, or times them, on any adapter that has it.
const WANTED: Features = Features::SHADER_F16
    .union(Features::SUBGROUP)
    .union(Features::SUBGROUP_BARRIER)
    .union(Features::TIMESTAMP_QUERY)
    .union(Features::TIMESTAMP_QUERY_INSIDE_ENCODERS);

/// What kernels on cooperative matrices need, one of them experimental.
const FOR_MATRICES: Features = Features::EXPERIMENTAL_COOPERATIVE_MATRIX
    .union(Features::SHADER_F16)
    .union(Features::SUBGROUP)
    .union(Features::SUBGROUP_BARRIER);

pub(super) async fn request_adapter() -> Result<wgpu::Adapter, Error> {
    let mut descriptor = wgpu::InstanceDescriptor::new_without_display_handle();
    // Callers who want validation layers make their own instance.
    descriptor.flags = wgpu::InstanceFlags::empty();
    let options =
        wgpu::RequestAdapterOptions { power_preference: wgpu::PowerPreference::HighPerformance, ..Default::default() };
    let adapter = wgpu::Instance::new(descriptor)
        .request_adapter(&options)
        .await
        .map_err(|error| Error::NoAdapter(error.to_string()))?;
    if !adapter.get_downlevel_capabilities().flags.contains(wgpu::DownlevelFlags::COMPUTE_SHADERS) {
        return Err(Error::NoAdapter(format!("{} runs no compute shaders", adapter.get_info().name)));
    }
    Ok(adapter)
}

pub(super) fn descriptor(adapter: &wgpu::Adapter) -> wgpu::DeviceDescriptor<'static> {
    let has_matrices = matrix_side(adapter, adapter.features()).is_some();
    let wanted = if has_matrices { WANTED.union(FOR_MATRICES) } else { WANTED };
    wgpu::DeviceDescriptor {
        label: Some("flash attention"),
        required_features: adapter.features() & wanted,
        required_limits: adapter.limits(),
        experimental_features: if has_matrices { permission() } else { wgpu::ExperimentalFeatures::disabled() },
        ..Default::default()
    }
}

/// wgpu's permission for experimental features.
#[expect(unsafe_code, reason = "wgpu promises less of experimental features, and has this said")]
fn permission() -> wgpu::ExperimentalFeatures {
    // SAFETY: the one experimental feature asked for is cooperative matrices. Their bugs on this path were looked
    // for: the kernels that use them are tested against the oracle like every other.
    unsafe { wgpu::ExperimentalFeatures::enabled() }
}

pub(super) fn capabilities(adapter: &wgpu::Adapter, device: &wgpu::Device) -> Capabilities {
    let info = adapter.get_info();
    let features = device.features();
    let limits = device.limits();
    let timestamps = Features::TIMESTAMP_QUERY | Features::TIMESTAMP_QUERY_INSIDE_ENCODERS;
    Capabilities {
        adapter_name: info.name,
        driver: format!("{} {}", info.driver, info.driver_info).trim().into(),
        backend: info.backend.to_str().into(),
        device_class: match info.device_type {
            wgpu::DeviceType::DiscreteGpu | wgpu::DeviceType::VirtualGpu => DeviceClass::Discrete,
            wgpu::DeviceType::IntegratedGpu => DeviceClass::Integrated,
            wgpu::DeviceType::Cpu => DeviceClass::Cpu,
            wgpu::DeviceType::Other => DeviceClass::Other,
        },
        shader_f16: features.contains(Features::SHADER_F16),
        subgroups: features.contains(Features::SUBGROUP),
        subgroup_min_size: info.subgroup_min_size,
        subgroup_max_size: info.subgroup_max_size,
        matrix_side: matrix_side(adapter, features),
        timestamps: features.contains(timestamps),
        max_workgroup_storage: limits.max_compute_workgroup_storage_size,
        max_invocations: limits.max_compute_invocations_per_workgroup.min(limits.max_compute_workgroup_size_x),
        max_workgroups_per_dimension: limits.max_compute_workgroups_per_dimension,
        max_storage_buffers: limits.max_storage_buffers_per_shader_stage,
        max_uniform: match limits.max_dynamic_uniform_buffers_per_pipeline_layout {
            0 => 0,
            _ => limits.max_uniform_buffer_binding_size,
        },
        max_loop_turns: max_loop_turns(&info.driver, &info.driver_info),
        max_binding: limits.max_storage_buffer_binding_size,
        max_buffer: limits.max_buffer_size,
        binding_alignment: u64::from(limits.min_storage_buffer_offset_alignment),
    }
}

/// Mesa's software driver counted the turns of all loops of a shader and ended it after 65,535: 22.3.6 does, 25.0.7 and
/// 26.1.6 do not. Versions before 25 are treated as if they did.
fn max_loop_turns(driver: &str, driver_info: &str) -> Option<u32> {
    let version = driver_info.split("Mesa ").nth(1)?;
    let major: u32 = version.split('.').next()?.parse().ok()?;
    (driver == "llvmpipe" && major < 25).then_some(65_535)
}

/// The largest square matrices with f16 factors and an f32 sum that WGSL can name, if the adapter has any and these
/// features allow them.
fn matrix_side(adapter: &wgpu::Adapter, features: Features) -> Option<u32> {
    if !features.contains(FOR_MATRICES) {
        return None;
    }
    let offered = adapter.cooperative_matrix_properties();
    [16, 8].into_iter().find(|&side| {
        offered.iter().any(|matrix| {
            [matrix.m_size, matrix.n_size, matrix.k_size] == [side; 3]
                && matrix.ab_type == wgpu::CooperativeScalarType::F16
                && matrix.cr_type == wgpu::CooperativeScalarType::F32
        })
    })
}
