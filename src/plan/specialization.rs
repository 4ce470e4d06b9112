use super::{Capabilities, Kernel, MAX_HEAD_DIM, Tiles};
use crate::problem::{AttentionProblem, AttentionShape, Element};

/// How the elements of Q, K, V and O are held in WGSL: the slot `shaders/slots/element/`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Storage {
    /// f32
    F32,
    /// f16, on devices that have it in shaders
    F16,
    /// f16 in pairs in a u32, on devices that have not
    F16Packed,
    /// bf16 in pairs in a u32
    Bf16,
}

impl Storage {
    pub(crate) fn of(element: Element, capabilities: &Capabilities) -> Self {
        match element {
            Element::F32 => Storage::F32,
            Element::F16 if capabilities.shader_f16 => Storage::F16,
            Element::F16 => Storage::F16Packed,
            Element::Bf16 => Storage::Bf16,
        }
    }

    /// On cooperative matrices: in how many parts of f16 an element passes.
    pub(crate) const fn matrix_parts(self) -> u32 {
        match self {
            Storage::F32 => 2,
            Storage::F16 | Storage::F16Packed | Storage::Bf16 => 1,
        }
    }

    /// On cooperative matrices: whether each row passes in a unit of its own, for its range does not fit f16.
    pub(crate) const fn has_row_units(self) -> bool {
        matches!(self, Storage::F32 | Storage::Bf16)
    }
}

/// How rows are read and written: the slot `shaders/slots/access/`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Access {
    /// Four elements at a time: every row starts on and is a whole number of quads.
    Quad,
    /// One element at a time.
    Single,
}

/// How the invocations of a row reduce: the slot `shaders/slots/row_reduce/`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RowReduce {
    /// Not at all: one invocation to a row.
    Alone,
    /// Through workgroup memory.
    Workgroup,
    /// By subgroup shuffles.
    Subgroup,
}

/// All that the text of a shader depends on. Two passes with equal specializations share one pipeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Specialization {
    /// The kernel file.
    pub kernel: Kernel,
    /// The element slot.
    pub storage: Storage,
    /// The access slot.
    pub access: Access,
    /// The row_reduce slot.
    pub row_reduce: RowReduce,
    /// The tiles.
    pub tiles: Tiles,
    /// Width of Q and K.
    pub head_dim: u32,
    /// Width of V and O.
    pub head_dim_v: u32,
    /// Whether a row may be unable to see a key that exists: causal or window.
    pub has_window: bool,
    /// Whether probabilities are dropped.
    pub has_dropout: bool,
    /// Whether gradients are stored in f32 though the element is another.
    pub f32_gradients: bool,
    /// Whether partial results are in f32, whatever the element. Only their merge asks.
    pub parts_in_f32: bool,
    /// Whether tiles that need a mask have a loop of their own, so that the loop over the others is free of it. Software
    /// drivers, which compile slowly, do without. Only the kernels with such loops ask.
    pub masked_loop: bool,
    /// Whether the invocations of a subgroup run in lockstep, as they do on software drivers. Only the cooperative
    /// kernel asks.
    pub in_lockstep: bool,
}

impl Specialization {
    /// The same with everything that this kernel does not depend on set to one value, so that it is a cache key.
    pub(crate) fn canonical(mut self) -> Self {
        use super::Operand::{DO, K, O, OParts, Q, V};
        let kernel = self.kernel;
        let binds_any = |operands: &[super::Operand]| operands.iter().any(|&operand| kernel.binds(operand));
        self.in_lockstep &= self.kernel.uses_matrices();
        self.masked_loop &= kernel.has_masked_loop();
        self.has_window &= kernel.masks();
        self.has_dropout &= kernel.drops();
        self.f32_gradients &= kernel.operands().iter().any(|(operand, _)| operand.is_gradient());
        if !kernel.reduces_rows() {
            self.row_reduce = RowReduce::Alone;
        }
        if !binds_any(&[Q, K]) {
            self.head_dim = 1;
        }
        if !binds_any(&[V, O, DO, OParts]) {
            self.head_dim_v = 1;
        }
        self.parts_in_f32 &= kernel == Kernel::Combine;
        if kernel == Kernel::Combine {
            self.tiles = Tiles::NONE;
        }
        if !kernel.operands().iter().any(|(operand, _)| operand.is_tensor()) {
            self.storage = Storage::F32;
            self.access = Access::Quad;
        }
        self
    }

    /// Whether a kernel can be made of it, on some device. Those of plans always can.
    pub(crate) fn is_sound(&self) -> bool {
        let Self { kernel, tiles, head_dim, head_dim_v, .. } = *self;
        let subgroup = if tiles.broadcast > 1 { tiles.broadcast } else { tiles.lanes };
        let anything = Capabilities {
            shader_f16: true,
            subgroups: true,
            subgroup_min_size: subgroup,
            subgroup_max_size: subgroup,
            matrix_side: tiles.matrix_side,
            max_workgroup_storage: u32::MAX - 1,
            max_invocations: 4096,
            ..Capabilities::webgpu_defaults()
        };
        let element = match self.storage {
            Storage::F32 => Element::F32,
            Storage::F16 | Storage::F16Packed => Element::F16,
            Storage::Bf16 => Element::Bf16,
        };
        let shape = AttentionShape::new(1, 1, 1, head_dim).head_dim_v(head_dim_v);
        let has_dims = [head_dim, head_dim_v].iter().all(|dim| (1..=MAX_HEAD_DIM).contains(dim));
        has_dims
            && kernel.uses_matrices() == tiles.matrix_side.is_some()
            && tiles.fit(kernel, &anything, &AttentionProblem::new(shape).element(element))
    }

    /// Bytes of workgroup memory that the shader declares.
    pub fn workgroup_bytes(&self) -> u32 {
        let Self { kernel, head_dim, head_dim_v, storage, row_reduce, has_dropout, .. } = *self;
        self.tiles.workgroup_bytes(kernel, (head_dim, head_dim_v), storage, row_reduce, has_dropout)
    }

    /// The workgroup size.
    pub fn invocations(&self) -> u32 {
        match self.kernel {
            Kernel::StandardSoftmax | Kernel::StandardDs => super::tiles::SOFTMAX_INVOCATIONS,
            Kernel::Combine => super::tiles::COMBINE_INVOCATIONS,
            kernel => self.tiles.invocations_of(kernel),
        }
    }
}
