/// What kind of machine the adapter is. The tile table uses it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DeviceClass {
    /// A GPU with its own memory.
    Discrete,
    /// A GPU that shares the processor's memory.
    Integrated,
    /// A software driver.
    Cpu,
    /// Unknown.
    Other,
}

/// What an adapter and device offer. It is read once. It is plain data, so planning needs no GPU.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Capabilities {
    /// The adapter's name.
    pub adapter_name: String,
    /// The driver and its version.
    pub driver: String,
    /// Vulkan, Metal, DX12 or WebGPU.
    pub backend: String,
    /// What kind of machine it is.
    pub device_class: DeviceClass,
    /// Whether shaders may use f16.
    pub shader_f16: bool,
    /// Whether shaders may use subgroup operations.
    pub subgroups: bool,
    /// Smallest subgroup a shader may run with.
    pub subgroup_min_size: u32,
    /// Largest subgroup a shader may run with.
    pub subgroup_max_size: u32,
    /// The side of the square cooperative matrices, with f16 factors and an f32 sum, that kernels may use. `None` if there
    /// are none, or if they are switched off.
    pub matrix_side: Option<u32>,
    /// Whether the device has timestamps around encoder commands.
    pub timestamps: bool,
    /// Bytes of workgroup memory.
    pub max_workgroup_storage: u32,
    /// Invocations of a workgroup.
    pub max_invocations: u32,
    /// Workgroups along one dimension of a dispatch.
    pub max_workgroups_per_dimension: u32,
    /// Storage buffers that one kernel binds.
    pub max_storage_buffers: u32,
    /// Bytes of a uniform that is bound at a dynamic offset; 0 if none can be.
    pub max_uniform: u64,
    /// The number of turns of all loops together after which the driver ends a shader and reports nothing. `None` if it
    /// does not. Mesa's software driver ended shaders after 65,535 turns until some version between 22.3 and 25.0.
    pub max_loop_turns: Option<u32>,
    /// Bytes of one storage binding.
    pub max_binding: u64,
    /// Bytes of one buffer.
    pub max_buffer: u64,
    /// Storage bindings start at multiples of this many bytes.
    pub binding_alignment: u64,
}

impl Capabilities {
    /// The least that WebGPU promises, on an unknown adapter.
    pub fn webgpu_defaults() -> Self {
        Self {
            adapter_name: "WebGPU defaults".into(),
            driver: String::new(),
            backend: String::new(),
            device_class: DeviceClass::Other,
            shader_f16: false,
            subgroups: false,
            subgroup_min_size: 4,
            subgroup_max_size: 128,
            matrix_side: None,
            timestamps: false,
            max_workgroup_storage: 16_384,
            max_invocations: 256,
            max_workgroups_per_dimension: 65_535,
            max_storage_buffers: 8,
            max_uniform: 65_536,
            max_loop_turns: None,
            max_binding: 128 << 20,
            max_buffer: 256 << 20,
            binding_alignment: 256,
        }
    }

    /// The smaller of these and `limits`, in everything.
    pub(crate) fn at_most(mut self, limits: &Self) -> Self {
        self.shader_f16 &= limits.shader_f16;
        self.subgroups &= limits.subgroups;
        self.subgroup_min_size = self.subgroup_min_size.min(limits.subgroup_min_size);
        self.matrix_side = self.matrix_side.and(limits.matrix_side);
        self.timestamps &= limits.timestamps;
        self.max_workgroup_storage = self.max_workgroup_storage.min(limits.max_workgroup_storage);
        self.max_invocations = self.max_invocations.min(limits.max_invocations);
        self.max_workgroups_per_dimension = self.max_workgroups_per_dimension.min(limits.max_workgroups_per_dimension);
        self.max_storage_buffers = self.max_storage_buffers.min(limits.max_storage_buffers);
        self.max_uniform = self.max_uniform.min(limits.max_uniform);
        // `None` is no limit, and the least of options.
        self.max_loop_turns = [self.max_loop_turns, limits.max_loop_turns].into_iter().flatten().min();
        self.max_binding = self.max_binding.min(limits.max_binding);
        self.max_buffer = self.max_buffer.min(limits.max_buffer);
        self.binding_alignment = self.binding_alignment.max(limits.binding_alignment);
        self
    }
}
