//! The device, its buffers, and kernels from plain WGSL.

use std::borrow::Cow;

use crate::failure::{Failure, Result};
use crate::gpu;

pub use crate::gpu::Gpu;

/// The adapter with this number or name, or the fastest kind there is.
pub fn open(selector: Option<&str>) -> Result<Gpu> {
    pollster::block_on(async { Gpu::on(gpu::select(&gpu::adapters().await, selector)?).await })
}

impl Gpu {
    /// A storage buffer for so many bytes, of zeros. Fails where the device has no memory left, or no buffer so large.
    pub fn buffer(&self, name: &str, bytes: u64) -> Result<wgpu::Buffer> {
        let size = bytes.max(16).next_multiple_of(16);
        let capabilities = self.attention.capabilities();
        if size > capabilities.max_buffer.min(capabilities.max_binding) {
            return Err(Failure::new(format_args!(
                "{name} ({bytes} bytes) does not fit into one buffer of this device"
            )));
        }
        let device = self.attention.device();
        let memory = device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
        let buffer = device.create_buffer(&wgpu::BufferDescriptor {
            label: Some(name),
            size,
            usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST | wgpu::BufferUsages::COPY_SRC,
            mapped_at_creation: false,
        });
        match pollster::block_on(memory.pop()) {
            Some(_) => Err(Failure::new(format_args!("the device has no memory left for {name} ({bytes} bytes)"))),
            None => Ok(buffer),
        }
    }

    /// A storage buffer that holds these bytes.
    pub fn filled(&self, name: &str, bytes: &[u8]) -> Result<wgpu::Buffer> {
        let buffer = self.buffer(name, bytes.len() as u64)?;
        crate::resident::upload(self, &buffer, 0, bytes.to_vec())?;
        Ok(buffer)
    }

    /// A kernel: `main` of this WGSL, its `params` as uniform at binding 0, and its buffers from binding 1 on, in order.
    /// Every binding must be used.
    pub fn kernel(&self, name: &str, wgsl: String, params: &[u32], buffers: &[&wgpu::Buffer]) -> Result<Kernel> {
        let device = self.attention.device();
        let scope = device.push_error_scope(wgpu::ErrorFilter::Validation);
        let descriptor =
            wgpu::ShaderModuleDescriptor { label: Some(name), source: wgpu::ShaderSource::Wgsl(Cow::Owned(wgsl)) };
        // SAFETY: the kernels in `shaders/` clamp or bound every index by the sizes of their buffers, which the methods
        // allocate, and all their loops end. The library compiles its own kernels in the same way; checks would slow these
        // methods beside it.
        let module = unsafe { device.create_shader_module_trusted(descriptor, wgpu::ShaderRuntimeChecks::unchecked()) };
        let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(name),
            layout: None,
            module: &module,
            entry_point: Some("main"),
            compilation_options: wgpu::PipelineCompilationOptions {
                zero_initialize_workgroup_memory: false,
                ..Default::default()
            },
            cache: None,
        });
        let mut words = params.to_vec();
        words.resize(params.len().next_multiple_of(4).max(4), 0);
        let uniform = device.create_buffer(&wgpu::BufferDescriptor {
            label: Some(name),
            size: 4 * words.len() as u64,
            usage: wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        self.attention.queue().write_buffer(&uniform, 0, bytemuck::cast_slice(&words));
        let entries: Vec<wgpu::BindGroupEntry> = (0..)
            .zip([&uniform].iter().chain(buffers))
            .map(|(binding, buffer)| wgpu::BindGroupEntry { binding, resource: buffer.as_entire_binding() })
            .collect();
        let layout = pipeline.get_bind_group_layout(0);
        let bindings = device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: Some(name),
            layout: &layout,
            entries: &entries,
        });
        match pollster::block_on(scope.pop()) {
            Some(error) => Err(Failure::new(format_args!("the kernel {name} does not compile: {error}"))),
            None => Ok(Kernel { pipeline, bindings }),
        }
    }
}

/// A compiled kernel with its buffers.
pub struct Kernel {
    pipeline: wgpu::ComputePipeline,
    bindings: wgpu::BindGroup,
}

impl Kernel {
    /// Records so many workgroups in a pass of its own.
    pub fn encode(&self, encoder: &mut wgpu::CommandEncoder, [x, y, z]: [u32; 3]) {
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
        pass.set_pipeline(&self.pipeline);
        pass.set_bind_group(0, &self.bindings, &[]);
        pass.dispatch_workgroups(x, y, z);
    }
}
