//! Pipelines, compiled once for each specialization.

use super::scope::ErrorScope;
use crate::error::Error;
use crate::plan::{Specialization, Usage};
use crate::shader::{Dialect, ShaderSource};
#[cfg(not(target_arch = "wasm32"))]
use crate::spans;
use std::future::poll_fn;
#[cfg(not(target_arch = "wasm32"))]
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

/// What a compilation needs beside the text.
#[derive(Clone, Copy)]
pub(super) struct Compiler<'a> {
    pub device: &'a wgpu::Device,
    /// The same for all pipelines that are kept together.
    pub checked_shaders: bool,
    pub cache: Option<&'a wgpu::PipelineCache>,
}

#[derive(Debug)]
pub(super) struct Pipeline {
    pub pipeline: wgpu::ComputePipeline,
    pub layout: wgpu::BindGroupLayout,
}

/// Few enough to be compared one by one, and only when an operation is prepared.
#[derive(Debug, Default)]
pub(super) struct Pipelines {
    states: Mutex<Vec<(Specialization, State)>>,
    compilations: AtomicU64,
}

/// Each is compiled once, however many ask for it at the same time.
#[derive(Debug)]
enum State {
    /// Somebody compiles it, and wakes those who wait.
    Claimed(Vec<Waker>),
    Made(Arc<Pipeline>),
}

/// The right and the duty to compile a pipeline. Dropped without one, it goes to the next who asks: the compilation failed, or
/// its future was dropped.
struct Claim<'a> {
    pipelines: &'a Pipelines,
    specialization: &'a Specialization,
    made: Option<Arc<Pipeline>>,
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        let mut pipelines = self.pipelines.lock();
        let position = pipelines.iter().position(|(other, _)| other == self.specialization);
        let claimed = position.map(|position| pipelines.swap_remove(position).1);
        if let Some(made) = self.made.take() {
            pipelines.push((self.specialization.clone(), State::Made(made)));
        }
        drop(pipelines);
        if let Some(State::Claimed(wakers)) = claimed {
            wakers.into_iter().for_each(Waker::wake);
        }
    }
}

impl Pipelines {
    /// The pipeline of a specialization, compiled if need be.
    pub(super) async fn get(
        &self,
        compiler: Compiler<'_>,
        specialization: &Specialization,
    ) -> Result<Arc<Pipeline>, Error> {
        let mut claim = match poll_fn(|context| self.find_or_claim(specialization, context)).await {
            Ok(pipeline) => return Ok(pipeline),
            Err(claim) => claim,
        };
        self.compilations.fetch_add(1, Ordering::Relaxed);
        let compiled = spanned!(
            compile(compiler, specialization),
            "compile",
            kernel = specialization.kernel.name(),
            tiles = %specialization.tiles
        );
        let pipeline = Arc::new(compiled.await?);
        claim.made = Some(pipeline.clone());
        Ok(pipeline)
    }

    /// Compiles those that are missing side by side, for a driver compiles while it is called. A failure is left to `get`, which
    /// tries again and reports it.
    #[cfg(not(target_arch = "wasm32"))]
    pub(super) fn compile_missing<'a>(
        &self,
        compiler: Compiler<'_>,
        specializations: impl Iterator<Item = &'a Specialization>,
    ) {
        let mut missing: Vec<&Specialization> = Vec::new();
        for specialization in specializations {
            if !missing.contains(&specialization) && !self.lock().iter().any(|(other, _)| other == specialization) {
                missing.push(specialization);
            }
        }
        if missing.len() < 2 {
            return;
        }
        std::thread::scope(|scope| {
            for specialization in missing {
                let compile = move || {
                    // On native backends a future is pending only if another call compiles this pipeline meanwhile.
                    let _ = pin!(self.get(compiler, specialization)).poll(&mut Context::from_waker(Waker::noop()));
                };
                // Without another thread it is compiled in its turn.
                let builder = std::thread::Builder::new().name("attention compiler".into());
                let _ = builder.spawn_scoped(scope, spans::continued(compile));
            }
        });
    }

    /// The pipeline, or the right to compile it. Pending while somebody else does.
    fn find_or_claim<'a>(
        &'a self,
        specialization: &'a Specialization,
        context: &mut Context<'_>,
    ) -> Poll<Result<Arc<Pipeline>, Claim<'a>>> {
        let mut pipelines = self.lock();
        match pipelines.iter_mut().find(|(other, _)| other == specialization) {
            Some((_, State::Made(pipeline))) => Poll::Ready(Ok(pipeline.clone())),
            Some((_, State::Claimed(wakers))) => {
                if !wakers.iter().any(|waker| waker.will_wake(context.waker())) {
                    wakers.push(context.waker().clone());
                }
                Poll::Pending
            }
            None => {
                pipelines.push((specialization.clone(), State::Claimed(Vec::new())));
                Poll::Ready(Err(Claim { pipelines: self, specialization, made: None }))
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<(Specialization, State)>> {
        self.states.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Pipelines that are kept.
    pub(super) fn count(&self) -> usize {
        self.lock().iter().filter(|(_, state)| matches!(state, State::Made(_))).count()
    }

    /// Compilations so far, those that failed too.
    pub(super) fn compilations(&self) -> u64 {
        self.compilations.load(Ordering::Relaxed)
    }
}

async fn compile(compiler: Compiler<'_>, specialization: &Specialization) -> Result<Pipeline, Error> {
    let Compiler { device, checked_shaders, cache } = compiler;
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
        cache,
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
                    Usage::Read => {
                        wgpu::BufferBindingType::Storage { read_only: !specialization.is_declared_writable(operand) }
                    }
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
