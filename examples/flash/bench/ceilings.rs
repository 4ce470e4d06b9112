//! What the adapter can do at best, measured: bytes a second of a large copy, f32 operations a second of a loop of
//! fused multiply-adds in registers, and operations a second of its cooperative matrices, where it has them.

use std::time::Duration;

use wgpu_flash_attention::DeviceClass;

use crate::device::Gpu;
use crate::failure::{Failure, Result};
use crate::timing::{self, Effort, Timing};

/// The lines of the roofline.
pub struct Ceilings {
    /// Bytes read and written a second.
    pub bandwidth: f64,
    /// f32 floating-point operations a second.
    pub compute: f64,
    /// Floating-point operations a second of products of matrices, f16 in and f32 summed, where kernels can use them.
    pub matrices: Option<f64>,
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

const EFFORT: Effort = Effort { least: 3, most: 10, budget: Duration::from_secs(1), warm_up: Duration::from_secs(1) };

pub async fn measure(gpu: &Gpu) -> Result<Ceilings> {
    let memory = gpu.attention.device().push_error_scope(wgpu::ErrorFilter::OutOfMemory);
    let ceilings = bandwidth(gpu)
        .and_then(|bandwidth| Ok(Ceilings { bandwidth, compute: compute(gpu)?, matrices: matrices(gpu)? }));
    match memory.pop().await {
        Some(_) => Err(Failure::new("no memory left to measure the adapter's ceilings")),
        None => ceilings,
    }
}

/// Bytes read and written a second by the better of a copy command and a copying kernel: the command runs on an engine
/// of its own on some GPUs, at a fraction of the memory's speed (on an H200 0.85 TB/s of 4.8).
fn bandwidth(gpu: &Gpu) -> Result<f64> {
    const INVOCATIONS: u64 = 256;
    const TIMES: u64 = 8;
    let shader = format!(
        "@group(0) @binding(0) var<storage, read> source: array<vec4<u32>>;
@group(0) @binding(1) var<storage, read_write> copy: array<vec4<u32>>;
@compute @workgroup_size({INVOCATIONS})
fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {{
{}}}
",
        (0..TIMES)
            .map(|time| format!("  let i_{time} = id.x + {time}u * {INVOCATIONS}u * groups.x;\n"))
            .chain((0..TIMES).map(|time| format!("  let value_{time} = source[i_{time}];\n")))
            .chain((0..TIMES).map(|time| format!("  copy[i_{time}] = value_{time};\n")))
            .collect::<String>()
    );
    // Larger than any cache, small enough for a software driver, and a whole number of workgroups.
    let capabilities = gpu.attention.capabilities();
    let wanted = if capabilities.device_class == DeviceClass::Cpu { 128 << 20 } else { 1 << 30 };
    let workgroups = wanted.min(capabilities.max_binding).min(capabilities.max_buffer) / (16 * TIMES * INVOCATIONS);
    let size = workgroups * 16 * TIMES * INVOCATIONS;

    let from = buffer(gpu, size, wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC);
    let to = buffer(gpu, size, wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST);
    let kernel = Kernel::new(gpu, shader, &[&from, &to]);
    let command = timing::measure(gpu, EFFORT, |encoder| {
        encoder.copy_buffer_to_buffer(&from, 0, &to, 0, size);
        Ok(())
    })?;
    let kernel = timing::measure(gpu, EFFORT, |encoder| {
        kernel.encode(encoder, workgroups as u32);
        Ok(())
    })?;
    Ok(2.0 * size as f64 / (command.min().min(kernel.min()) / 1e3))
}

/// f32 operations a second of a loop of multiply-adds. Values stay near 1, and the sum is written so that nothing can
/// be left out.
fn compute(gpu: &Gpu) -> Result<f64> {
    const INVOCATIONS: u32 = 64;
    /// Independent chains of vec4 in each invocation.
    const CHAINS: u32 = 8;
    /// Links of each chain in one pass of the loop, so that the loop itself costs nothing.
    const LINKS: u32 = 8;
    let chains = |line: &dyn Fn(u32) -> String| (0..CHAINS).map(line).collect::<String>();
    let starts = chains(&|c| format!("  var a_{c} = vec4<f32>(start + {c}.0);\n"));
    let links = chains(&|c| format!("    a_{c} = fma(a_{c}, factor, addend);\n")).repeat(LINKS as usize);
    let sum = chains(&|c| format!(" + a_{c}"));
    let shader = format!(
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
    );
    let params = buffer(gpu, 16, wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST);
    let sums = buffer(gpu, 16 * u64::from(INVOCATIONS), wgpu::BufferUsages::STORAGE);
    let kernel = Kernel::new(gpu, shader, &[&params, &sums]);
    let workgroups = if gpu.attention.capabilities().device_class == DeviceClass::Cpu { 64 } else { 16_384 };

    let flops_of_pass = 2.0 * 4.0 * f64::from(CHAINS * LINKS) * f64::from(workgroups * INVOCATIONS);
    let run = |passes: u32, effort: Effort| {
        gpu.attention.queue().write_buffer(&params, 0, bytemuck::cast_slice(&[passes, 999, 1, 0]));
        timing::measure(gpu, effort, |encoder| {
            kernel.encode(encoder, workgroups);
            Ok(())
        })
    };
    rate(run, flops_of_pass)
}

/// Operations a second of a kernel that takes so many passes of a loop.
fn rate(run: impl Fn(u32, Effort) -> Result<Timing>, flops_of_pass: f64) -> Result<f64> {
    // Longer until one run takes 10 ms, which drowns its launch and stays far from any watchdog.
    const ONCE: Effort = Effort { least: 1, most: 1, budget: Duration::ZERO, warm_up: Duration::ZERO };
    let mut passes = 4;
    while passes < 1 << 20 && run(passes, ONCE)?.min() < 10.0 {
        passes *= 4;
    }
    let time = run(passes, EFFORT)?;
    Ok(flops_of_pass * f64::from(passes) / (time.min() / 1e3))
}

/// Operations a second of a loop of products of matrices in registers. Subgroups must have one size: how many a workgroup has
/// would be unknown otherwise.
fn matrices(gpu: &Gpu) -> Result<Option<f64>> {
    /// Independent sums of each subgroup.
    const SUMS: u32 = 8;
    /// Subgroups of a workgroup.
    const SUBGROUPS: u32 = 4;
    let capabilities = gpu.attention.capabilities();
    let lanes = capabilities.subgroup_max_size;
    let (Some(side), true) = (capabilities.matrix_side, capabilities.subgroup_min_size == lanes) else {
        return Ok(None);
    };
    let invocations = SUBGROUPS * lanes;
    let (quads, row_quads) = (side * side / 4, side / 4);
    let each = |line: &dyn Fn(u32) -> String| (0..SUMS).map(line).collect::<String>();
    // Right factors that differ: equal sums would be computed once.
    let starts = each(&|s| {
        let right = format!("coopLoadT<Right>(&factors[{s}u * {quads}u], {row_quads}u)");
        format!("  var sum_{s} = Sum();\n  let right_{s} = {right};\n")
    });
    let products = each(&|s| format!("    sum_{s} = coopMultiplyAdd(left, right_{s}, sum_{s});\n"));
    let total = each(&|s| if s == 0 { "sum_0".to_owned() } else { format!(" + sum_{s}") });
    let shader = format!(
        "enable f16;
enable wgpu_cooperative_matrix;
@group(0) @binding(0) var<uniform> params: vec4<u32>;
@group(0) @binding(1) var<storage, read_write> sums: array<vec4<f32>>;
alias Left = coop_mat{side}x{side}<f16, A>;
alias Right = coop_mat{side}x{side}<f16, B>;
alias Sum = coop_mat{side}x{side}<f32, C>;
var<workgroup> factors: array<vec4<f16>, {SUMS} * {quads}>;
var<workgroup> totals: array<vec4<f32>, {SUBGROUPS} * {quads}>;
@compute @workgroup_size({invocations})
fn main(@builtin(local_invocation_index) index: u32, @builtin(subgroup_id) subgroup: u32) {{
  for (var i = index; i < {SUMS}u * {quads}u; i += {invocations}u) {{
    factors[i] = vec4<f16>(f16(params.y + i / {quads}u) * 0.001h);
  }}
  workgroupBarrier();
  let left = coopLoadT<Left>(&factors[0], {row_quads}u);
{starts}  for (var i = 0u; i < params.x; i++) {{
{products}  }}
  coopStoreT({total}, &totals[subgroup * {quads}u], {row_quads}u);
  workgroupBarrier();
  sums[index] = totals[index % {quads}u];
}}
"
    );
    let params = buffer(gpu, 16, wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST);
    let sums = buffer(gpu, 16 * u64::from(invocations), wgpu::BufferUsages::STORAGE);
    let kernel = Kernel::new(gpu, shader, &[&params, &sums]);
    let workgroups = if capabilities.device_class == DeviceClass::Cpu { 16 } else { 4096 };
    let flops_of_pass = 2.0 * f64::from(side).powi(3) * f64::from(SUMS * SUBGROUPS * workgroups);
    let run = |passes: u32, effort: Effort| {
        gpu.attention.queue().write_buffer(&params, 0, bytemuck::cast_slice(&[passes, 1, 0, 0]));
        timing::measure(gpu, effort, |encoder| {
            kernel.encode(encoder, workgroups);
            Ok(())
        })
    };
    Ok(Some(rate(run, flops_of_pass)?))
}

fn buffer(gpu: &Gpu, size: u64, usage: wgpu::BufferUsages) -> wgpu::Buffer {
    gpu.attention.device().create_buffer(&wgpu::BufferDescriptor {
        label: Some("ceiling"),
        size,
        usage,
        mapped_at_creation: false,
    })
}

/// A shader and its buffers, bound in order.
struct Kernel {
    pipeline: wgpu::ComputePipeline,
    bindings: wgpu::BindGroup,
}

impl Kernel {
    fn new(gpu: &Gpu, shader: String, buffers: &[&wgpu::Buffer]) -> Self {
        let device = gpu.attention.device();
        let module = device.create_shader_module(wgpu::ShaderModuleDescriptor {
            label: Some("ceiling"),
            source: wgpu::ShaderSource::Wgsl(shader.into()),
        });
        let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some("ceiling"),
            layout: None,
            module: &module,
            entry_point: Some("main"),
            compilation_options: wgpu::PipelineCompilationOptions::default(),
            cache: None,
        });
        let entries: Vec<wgpu::BindGroupEntry> = (0..)
            .zip(buffers)
            .map(|(binding, buffer)| wgpu::BindGroupEntry { binding, resource: buffer.as_entire_binding() })
            .collect();
        let layout = pipeline.get_bind_group_layout(0);
        let bindings =
            device.create_bind_group(&wgpu::BindGroupDescriptor { label: None, layout: &layout, entries: &entries });
        Self { pipeline, bindings }
    }

    fn encode(&self, encoder: &mut wgpu::CommandEncoder, workgroups: u32) {
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
        pass.set_pipeline(&self.pipeline);
        pass.set_bind_group(0, &self.bindings, &[]);
        pass.dispatch_workgroups(workgroups, 1, 1);
    }
}
