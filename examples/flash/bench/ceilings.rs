//! What the adapter can do at best, measured: bytes a second of a large copy, f32 operations a second of a loop of
//! fused multiply-adds in registers.

use std::time::Duration;

use wgpu_flash_attention::plan::DeviceClass;

use crate::device::Gpu;
use crate::failure::{Failure, Result};
use crate::timing::{self, Effort};

/// The two lines of the roofline.
pub struct Ceilings {
    /// Bytes read and written a second.
    pub bandwidth: f64,
    /// f32 floating-point operations a second.
    pub compute: f64,
}

impl Ceilings {
    /// FLOPs per byte at which the two meet.
    pub fn ridge(&self) -> f64 {
        self.compute / self.bandwidth
    }

    /// The most operations a second at this many FLOPs per byte.
    pub fn at(&self, flops_per_byte: f64) -> f64 {
        self.compute.min(self.bandwidth * flops_per_byte)
    }
}

const EFFORT: Effort = Effort { least: 3, most: 10, budget: Duration::from_secs(1) };

pub async fn measure(gpu: &Gpu) -> Result<Ceilings> {
    let memory = gpu.attention.device().push_error_scope(wgpu::ErrorFilter::OutOfMemory);
    let ceilings = bandwidth(gpu).and_then(|bandwidth| Ok(Ceilings { bandwidth, compute: compute(gpu)? }));
    match memory.pop().await {
        Some(_) => Err(Failure::new("no memory left to measure the adapter's ceilings")),
        None => ceilings,
    }
}

fn bandwidth(gpu: &Gpu) -> Result<f64> {
    // Larger than any cache, and small enough for a software driver.
    let wanted = if gpu.attention.capabilities().device_class == DeviceClass::Cpu { 128 << 20 } else { 512 << 20 };
    let size = (gpu.attention.capabilities().max_buffer & !3).min(wanted);
    let buffer = |usage| {
        gpu.attention.device().create_buffer(&wgpu::BufferDescriptor {
            label: Some("bandwidth"),
            size,
            usage,
            mapped_at_creation: false,
        })
    };
    let (from, to) = (buffer(wgpu::BufferUsages::COPY_SRC), buffer(wgpu::BufferUsages::COPY_DST));
    let time = timing::measure(gpu, EFFORT, |encoder| {
        encoder.copy_buffer_to_buffer(&from, 0, &to, 0, size);
        Ok(())
    })?;
    Ok(2.0 * size as f64 / (time.min() / 1e3))
}

/// Invocations of a workgroup, and independent chains of vec4 in each.
const INVOCATIONS: u32 = 64;
const CHAINS: u32 = 8;
/// Links of each chain in one pass of the loop, so that the loop itself costs nothing.
const LINKS: u32 = 8;

/// The multiply-add loop. Values stay near 1, and the sum is written so that nothing can be left out.
fn shader() -> String {
    let chains = |line: &dyn Fn(u32) -> String| (0..CHAINS).map(line).collect::<String>();
    let starts = chains(&|c| format!("  var a_{c} = vec4<f32>(start + {c}.0);\n"));
    let links = chains(&|c| format!("    a_{c} = fma(a_{c}, factor, addend);\n")).repeat(LINKS as usize);
    let sum = chains(&|c| format!(" + a_{c}"));
    format!(
        "@group(0) @binding(0) var<uniform> params: vec4<u32>;
@group(0) @binding(1) var<storage, read_write> sums: array<vec4<f32>>;
@compute @workgroup_size({INVOCATIONS})
fn main(@builtin(global_invocation_id) id: vec3<u32>) {{
  let start = f32(id.x) * 1e-6;
  let factor = vec4<f32>(f32(params.y) * 1e-3);
  let addend = vec4<f32>(f32(params.z) * 1e-3);
{starts}  for (var i = 0u; i < params.x; i++) {{
{links}  }}
  sums[id.x % {INVOCATIONS}u] = vec4<f32>(0.0){sum};
}}
"
    )
}

fn compute(gpu: &Gpu) -> Result<f64> {
    let device = gpu.attention.device();
    let software = gpu.attention.capabilities().device_class == DeviceClass::Cpu;
    let workgroups: u32 = if software { 64 } else { 16_384 };
    let module = device.create_shader_module(wgpu::ShaderModuleDescriptor {
        label: Some("multiply-add loop"),
        source: wgpu::ShaderSource::Wgsl(shader().into()),
    });
    let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
        label: Some("multiply-add loop"),
        layout: None,
        module: &module,
        entry_point: Some("main"),
        compilation_options: wgpu::PipelineCompilationOptions::default(),
        cache: None,
    });
    let buffer = |size, usage| {
        device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("multiply-add loop"),
            size,
            usage,
            mapped_at_creation: false,
        })
    };
    let params = buffer(16, wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST);
    let sums = buffer(16 * u64::from(INVOCATIONS), wgpu::BufferUsages::STORAGE);
    let bindings = device.create_bind_group(&wgpu::BindGroupDescriptor {
        label: None,
        layout: &pipeline.get_bind_group_layout(0),
        entries: &[
            wgpu::BindGroupEntry { binding: 0, resource: params.as_entire_binding() },
            wgpu::BindGroupEntry { binding: 1, resource: sums.as_entire_binding() },
        ],
    });

    // Longer until one run takes 10 ms, which drowns its launch and stays far from any watchdog.
    let run = |passes: u32, effort: Effort| {
        gpu.attention.queue().write_buffer(&params, 0, bytemuck::cast_slice(&[passes, 999, 1, 0]));
        timing::measure(gpu, effort, |encoder| {
            let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
            pass.set_pipeline(&pipeline);
            pass.set_bind_group(0, &bindings, &[]);
            pass.dispatch_workgroups(workgroups, 1, 1);
            Ok(())
        })
    };
    const ONCE: Effort = Effort { least: 1, most: 1, budget: Duration::ZERO };
    let mut passes = 4;
    while passes < 1 << 20 && run(passes, ONCE)?.min() < 10.0 {
        passes *= 4;
    }
    let time = run(passes, EFFORT)?;
    let flops = 2.0 * 4.0 * f64::from(CHAINS * LINKS) * f64::from(passes) * f64::from(workgroups * INVOCATIONS);
    Ok(flops / (time.min() / 1e3))
}
