//! Pipelines, compiled once for each specialization.

use super::scope::ErrorScope;
use crate::error::Error;
use crate::plan::{Specialization, Usage};
use crate::shader::{Dialect, ShaderSource};
use std::sync::{Arc, Mutex, PoisonError};

#[derive(Debug)]
pub(super) struct Pipeline {
    pub pipeline: wgpu::ComputePipeline,
    pub layout: wgpu::BindGroupLayout,
}

/// Few enough to be compared one by one, and only when an operation is prepared.
#[derive(Debug, Default)]
pub(super) struct Pipelines(Mutex<Vec<(Specialization, Arc<Pipeline>)>>);

impl Pipelines {
    /// The pipeline of a specialization, compiled if need be; `checked_shaders` is the same at every call.
    pub(super) async fn get(
        &self,
        device: &wgpu::Device,
        checked_shaders: bool,
        specialization: &Specialization,
    ) -> Result<Arc<Pipeline>, Error> {
        let made = find(&self.lock(), specialization);
        if let Some(pipeline) = made {
            return Ok(pipeline);
        }
        let pipeline = Arc::new(compile(device, checked_shaders, specialization).await?);
        // Another call may have compiled it meanwhile; looking and adding are one step, so that it is there once.
        let mut pipelines = self.lock();
        Ok(find(&pipelines, specialization).unwrap_or_else(|| {
            pipelines.push((specialization.clone(), pipeline.clone()));
            pipeline
        }))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<(Specialization, Arc<Pipeline>)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn find(pipelines: &[(Specialization, Arc<Pipeline>)], specialization: &Specialization) -> Option<Arc<Pipeline>> {
    let found = pipelines.iter().find(|(other, _)| other == specialization);
    found.map(|(_, pipeline)| pipeline.clone())
}

async fn compile(
    device: &wgpu::Device,
    checked_shaders: bool,
    specialization: &Specialization,
) -> Result<Pipeline, Error> {
    let kernel = specialization.kernel;
    let dialect = if cfg!(target_arch = "wasm32") { Dialect::Tint } else { Dialect::Naga };
    let source = ShaderSource::new(specialization, dialect)?;

    let scope = ErrorScope::open(device, "compiling a shader");
    let descriptor = wgpu::ShaderModuleDescriptor {
        label: Some(kernel.name()),
        source: wgpu::ShaderSource::Wgsl(source.text().into()),
    };
    let is_checked = checked_shaders || specialization.needs_checks();
    let module = match is_checked {
        true => device.create_shader_module(descriptor),
        false => unchecked_module(device, descriptor, specialization.has_own_wgsl()),
    };
    if let Err(error) = scope.close().await {
        return Err(shader_error(&module, &source, error).await);
    }

    let scope = ErrorScope::open(device, "compiling a shader");
    let layout = bind_group_layout(device, specialization);
    let pipeline_layout = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
        label: Some(kernel.name()),
        bind_group_layouts: &[Some(&layout)],
        immediate_size: 0,
    });
    let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
        label: Some(kernel.name()),
        layout: Some(&pipeline_layout),
        module: &module,
        entry_point: Some("main"),
        compilation_options: wgpu::PipelineCompilationOptions {
            // The kernels write all workgroup memory that they read.
            zero_initialize_workgroup_memory: is_checked,
            ..Default::default()
        },
        cache: None,
    });
    scope.close().await?;
    Ok(Pipeline { pipeline, layout })
}

#[expect(unsafe_code, reason = "wgpu's bounds checks cost 10 % of the speed")]
fn unchecked_module(
    device: &wgpu::Device,
    descriptor: wgpu::ShaderModuleDescriptor,
    has_own_wgsl: bool,
) -> wgpu::ShaderModule {
    let checks = wgpu::ShaderRuntimeChecks { int_div_checks: has_own_wgsl, ..wgpu::ShaderRuntimeChecks::unchecked() };
    // SAFETY: every index of this library's text stays inside its binding: the planner binds windows that hold whole
    // tensors, and the kernels guard rows, keys and dimensions by the same lengths. Every loop ends, and every divisor is at
    // least 1. Text of the caller comes here only without indices that run time tells; `aux` is behind a function that clamps,
    // its loops count their turns, and its divisors are checked.
    unsafe { device.create_shader_module_trusted(descriptor, checks) }
}

/// The compiler's first error, with file and line of its origin.
async fn shader_error(module: &wgpu::ShaderModule, source: &ShaderSource, error: Error) -> Error {
    let info = module.get_compilation_info().await;
    let errors = info.messages.into_iter().filter(|m| m.message_type == wgpu::CompilationMessageType::Error);
    for message in errors {
        if let Some(origin) = message.location.and_then(|location| source.origin(location.line_number)) {
            return Error::Shader { file: origin.file.into(), line: origin.line, message: message.message };
        }
    }
    error
}

fn bind_group_layout(device: &wgpu::Device, specialization: &Specialization) -> wgpu::BindGroupLayout {
    let entries: Vec<_> = specialization
        .operands()
        .map(|(operand, usage)| wgpu::BindGroupLayoutEntry {
            binding: operand.binding(),
            visibility: wgpu::ShaderStages::COMPUTE,
            ty: wgpu::BindingType::Buffer {
                ty: match usage {
                    Usage::Uniform => wgpu::BufferBindingType::Uniform,
                    Usage::Read => wgpu::BufferBindingType::Storage { read_only: true },
                    Usage::Write => wgpu::BufferBindingType::Storage { read_only: false },
                },
                has_dynamic_offset: usage == Usage::Uniform,
                min_binding_size: None,
            },
            count: None,
        })
        .collect();
    let label = Some(specialization.kernel.name());
    device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor { label, entries: &entries })
}
