//! Attention on one device. It prepares operations.

use super::bindings::Uniforms;
use super::device;
use super::memory;
use super::pipeline::{Compiler, Pipelines};
use super::scope::ErrorScope;
use crate::error::Error;
use crate::plan::{Capabilities, Direction, Plan, PlanBuilder, Tuning};
use crate::problem::{AppendProblem, AttentionProblem, MergeProblem, ProbabilitiesProblem};
use std::sync::Arc;

/// Attention on one device: its capabilities, and the pipelines and uniforms made so far. Clones share them.
#[derive(Clone, Debug)]
#[must_use]
pub struct FlashAttention {
    pub(super) device: wgpu::Device,
    pub(super) queue: wgpu::Queue,
    pub(super) backend: wgpu::Backend,
    pub(super) capabilities: Arc<Capabilities>,
    /// The side of the device's matrices, which `capabilities` holds unless they are switched off.
    matrix_side: Option<u32>,
    pub(super) pipelines: Arc<Pipelines>,
    pub(super) uniforms: Arc<Uniforms>,
    tuning: Arc<Tuning>,
    pub(super) checked_shaders: bool,
    pipeline_cache: Option<wgpu::PipelineCache>,
    pub(super) label: Option<Arc<str>>,
    shares_buffers: bool,
}

/// What an attention has made so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Statistics {
    /// Pipelines that are kept, for all operations.
    pub pipelines: usize,
    /// Compilations so far. It grows only where an operation is prepared that needs a new kernel.
    pub compilations: u64,
}

impl FlashAttention {
    /// Attention on the caller's device. The kernels use the features and limits that the device was created with.
    /// [`FlashAttention::device_descriptor`] asks for all that help.
    pub fn new(adapter: &wgpu::Adapter, device: &wgpu::Device, queue: &wgpu::Queue) -> Self {
        let capabilities = device::capabilities(adapter, device);
        Self {
            device: device.clone(),
            queue: queue.clone(),
            backend: adapter.get_info().backend,
            matrix_side: capabilities.matrix_side,
            capabilities: Arc::new(capabilities),
            pipelines: Arc::default(),
            uniforms: Arc::default(),
            tuning: Arc::default(),
            checked_shaders: false,
            pipeline_cache: None,
            label: None,
            shares_buffers: false,
        }
    }

    /// Attention on a new device, on the fastest adapter.
    ///
    /// # Errors
    /// [`Error::NoAdapter`] where nothing runs compute shaders; [`Error::Gpu`] if the adapter gives no device.
    pub async fn request() -> Result<Self, Error> {
        Self::from_adapter(&device::request_adapter().await?).await
    }

    /// Attention on a new device, on the given adapter.
    ///
    /// # Errors
    /// [`Error::Gpu`] if the adapter gives no device.
    pub async fn from_adapter(adapter: &wgpu::Adapter) -> Result<Self, Error> {
        let (device, queue) = adapter
            .request_device(&Self::device_descriptor(adapter))
            .await
            .map_err(|error| Error::Gpu(error.to_string()))?;
        Ok(Self::new(adapter, &device, &queue))
    }

    /// The features and limits with which a device runs everything this library has on this adapter. It asks for nothing
    /// that the adapter lacks. Add the features and limits that you need before you create a device.
    ///
    /// If the adapter lists cooperative matrices that the kernels can use, the descriptor asks for
    /// `Features::EXPERIMENTAL_COOPERATIVE_MATRIX` and holds wgpu's permission for experimental features. wgpu gives this
    /// permission by an unsafe function, because such features may have bugs that are undefined behaviour. The permission
    /// is for all of them, including those that you add. On other adapters the descriptor asks for no experimental feature
    /// and holds no permission. To exclude matrices, remove the feature and set `ExperimentalFeatures::disabled()`.
    pub fn device_descriptor(adapter: &wgpu::Adapter) -> wgpu::DeviceDescriptor<'static> {
        device::descriptor(adapter)
    }

    /// Plans as if the device had only these capabilities, to test what a smaller device would run. It adds nothing that the
    /// device lacks.
    pub fn with_capabilities(mut self, capabilities: Capabilities) -> Self {
        self.capabilities = Arc::new(capabilities.at_most(&self.capabilities));
        self
    }

    /// Whether problems run on cooperative matrices (tensor cores), if the device has them. They are up to seven times as
    /// fast. On by default.
    ///
    /// In f16 and bf16, P is then rounded to f16 before its product with V, as in CUDA's flash attention. f32 passes in two
    /// parts of f16, 23 bits together, and is summed in f32. Where f32 would give an infinity in O, f32 on matrices may give
    /// NaN.
    pub fn with_matrices(mut self, matrices: bool) -> Self {
        let mut capabilities = (*self.capabilities).clone();
        capabilities.matrix_side = self.matrix_side.filter(|_| matrices);
        self.capabilities = Arc::new(capabilities);
        self
    }

    /// Says that the caller's device was created with the browser's `subgroups` feature. wgpu 30 neither asks a browser for
    /// it nor sees it, so JavaScript must have asked. On a device without it, the browser refuses every kernel that uses
    /// subgroups.
    #[cfg(target_arch = "wasm32")]
    pub fn with_browser_subgroups(mut self) -> Self {
        let mut capabilities = (*self.capabilities).clone();
        // A browser that does not tell the sizes lets no plan rely on them.
        capabilities.subgroups = capabilities.subgroup_min_size > 0;
        self.capabilities = Arc::new(capabilities);
        self
    }

    /// Whether wgpu adds bounds checks to every access. Off by default, because WGSL of this library is in bounds by construction.
    /// Kernels with functions in the caller's own WGSL have them if those index their own variables with numbers that only run time
    /// tells.
    pub fn with_checked_shaders(mut self, checked_shaders: bool) -> Self {
        if checked_shaders != self.checked_shaders {
            self.checked_shaders = checked_shaders;
            self.pipelines = Arc::default();
        }
        self
    }

    /// Compiles through this cache, which the caller made on the same device (with `Features::PIPELINE_CACHE`) from the data that
    /// an earlier run of the program got from it. The driver then compiles nothing that it finds there. Translating WGSL stays.
    pub fn with_pipeline_cache(mut self, pipeline_cache: wgpu::PipelineCache) -> Self {
        self.pipeline_cache = Some(pipeline_cache);
        self
    }

    /// Names what is recorded, for debuggers and profilers: compute passes get this label, with direction, shape and element, and
    /// a debug group for each kernel. Without a label there are no groups, and encoding is a little faster. Operations have the
    /// label with which they were prepared.
    pub fn with_label(mut self, label: &str) -> Self {
        self.label = Some(label.into());
        self
    }

    /// Whether tensors that are read and tensors that are written may lie in one buffer, as ranges that do not overlap. Frameworks
    /// take many tensors from one buffer. Off by default: wgpu lets a dispatch use a buffer in one way alone, so the kernels
    /// of such operations declare all that they read as `read_write`, and are compiled apart.
    ///
    /// Operations have this as it was when they were prepared. In a browser, tensors that are read may not overlap each other
    /// either: WebGPU takes all bindings of `read_write` for written.
    pub fn with_shared_buffers(mut self, shared_buffers: bool) -> Self {
        self.shares_buffers = shared_buffers;
        self
    }

    /// What was made so far, by all clones that share pipelines.
    pub fn statistics(&self) -> Statistics {
        Statistics { pipelines: self.pipelines.count(), compilations: self.pipelines.compilations() }
    }

    pub(super) fn compiler(&self) -> Compiler<'_> {
        let (device, cache) = (&self.device, self.pipeline_cache.as_ref());
        Compiler { device, checked_shaders: self.checked_shaders, cache }
    }

    /// Takes tiles that were measured on this adapter (by `flash tune`), not those of the table.
    pub fn with_tuning(mut self, tuning: Tuning) -> Self {
        self.tuning = Arc::new(tuning);
        self
    }

    /// Plans the forward pass of a problem for this device, with its tuning.
    pub fn plan_forward<'a>(&'a self, problem: &'a AttentionProblem) -> PlanBuilder<'a> {
        self.ask(Plan::forward(problem, &self.capabilities)).with_tuning(&self.tuning)
    }

    /// Plans the gradients of a problem for this device.
    pub fn plan_backward<'a>(&'a self, problem: &'a AttentionProblem) -> PlanBuilder<'a> {
        self.ask(Plan::backward(problem, &self.capabilities))
    }

    /// Plans a merge of partial results for this device.
    pub fn plan_merge<'a>(&'a self, merge: &'a MergeProblem) -> PlanBuilder<'a> {
        self.ask(Plan::merge(merge, &self.capabilities))
    }

    /// Plans the probabilities of chosen heads and rows for this device.
    pub fn plan_probabilities<'a>(&'a self, chosen: &'a ProbabilitiesProblem) -> PlanBuilder<'a> {
        self.ask(Plan::probabilities(chosen, &self.capabilities))
    }

    /// Plans an append to a cache for this device.
    pub fn plan_append<'a>(&'a self, append: &'a AppendProblem) -> PlanBuilder<'a> {
        self.ask(Plan::append(append, &self.capabilities))
    }

    /// What all plans of this attention have.
    fn ask<'a>(&self, plan: PlanBuilder<'a>) -> PlanBuilder<'a> {
        plan.with_shared_buffers(self.shares_buffers)
    }

    /// What planning knows of the device.
    pub fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    /// The device it runs on.
    pub fn device(&self) -> &wgpu::Device {
        &self.device
    }

    /// The queue that the slice form submits to.
    pub fn queue(&self) -> &wgpu::Queue {
        &self.queue
    }

    /// The error, or that the device was lost, of which wgpu says nothing: what is made on a lost device is not there.
    pub(super) fn or_lost(&self, error: Error) -> Error {
        if !matches!(error, Error::Gpu(_) | Error::BufferDestroyed { .. }) {
            return error;
        }
        let scope = ErrorScope::open(&self.device, "looking for the device");
        let usage = wgpu::BufferUsages::STORAGE;
        let descriptor = wgpu::BufferDescriptor { label: None, size: 16, usage, mapped_at_creation: false };
        let probe = self.device.create_buffer(&descriptor);
        match scope.close_now().is_ok() && !memory::is_there(self.backend, &probe) {
            true => Error::DeviceLost("no buffer can be created".into()),
            false => error,
        }
    }

    /// The plan, if it was made for this device and direction.
    pub(super) fn own(&self, plan: Plan, direction: Direction) -> Result<Plan, Error> {
        if plan.capabilities() != self.capabilities() {
            let reason = "it was made for another device; plan with FlashAttention::plan_forward and its like".into();
            return Err(Error::InvalidPlan { what: "capabilities", reason });
        }
        if plan.direction() != direction {
            let reason = format!("the plan is {:?}, {direction:?} was prepared", plan.direction());
            return Err(Error::InvalidPlan { what: "direction", reason });
        }
        Ok(plan)
    }
}
