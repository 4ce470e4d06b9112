use crate::operand::Operand;
use crate::problem::{AuxType, CacheElement, Element, WgslFault, shown};

/// Everything that can go wrong. Each message says what was given, what is allowed and what to do.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The problem contradicts itself or lies outside what the library computes.
    #[error("invalid problem: {0}")]
    InvalidProblem(#[from] InvalidProblem),

    /// A plan that no device can run, or that this call does not take. The problem is sound; a choice beside it is wrong.
    #[error("invalid plan: {what}: {reason}")]
    InvalidPlan {
        /// What was asked for: `tiles`, `num_splits`, `capabilities`, `direction` or `specialization`.
        what: &'static str,
        /// Why it cannot be.
        reason: String,
    },

    /// The problem is sound, but this device cannot run it.
    #[error("not supported by this device: {feature}: {reason}")]
    Unsupported {
        /// What was wanted.
        feature: &'static str,
        /// Why it cannot be had, and what would help.
        reason: String,
    },

    /// A tensor passes a limit of the device, and no split over batches, heads or rows helps.
    #[error(
        "{operand} is too large for this device: it needs {needed} bytes in one piece, {limit} allows {allowed}; ask for \
         a device with a higher limit, split the problem, or (where heads are interleaved) use a layout with contiguous \
         heads, such as bhsd"
    )]
    TooLarge {
        /// The tensor.
        operand: Operand,
        /// Bytes needed in one piece.
        needed: u64,
        /// Bytes the device allows.
        allowed: u64,
        /// The wgpu limit that says so.
        limit: &'static str,
    },

    /// The limits of the device, or the bound on work, cut the operation into more dispatches than one call can hold.
    #[error(
        "the operation takes {found} dispatches, at most {max} are made; allow more work in each \
         (AttentionProblem::with_bounded_work), ask for a device with higher limits, or split the problem"
    )]
    TooManyDispatches {
        /// Dispatches that the operation takes, as far as 64 bits can say.
        found: u64,
        /// The most that are made.
        max: u64,
    },

    /// A buffer (or the given slice of it) is shorter than its tensor.
    #[error("{}", too_short("buffer", "too small", *operand, [*needed, *found], "bytes"))]
    BufferTooSmall {
        /// The tensor.
        operand: Operand,
        /// Bytes that the tensor's layout spans.
        needed: u64,
        /// Bytes that were given.
        found: u64,
    },

    /// A buffer lacks a usage flag.
    #[error("the buffer for {operand} was created without BufferUsages::{needed}")]
    BufferUsage {
        /// The tensor.
        operand: Operand,
        /// The missing flag.
        needed: &'static str,
    },

    /// A buffer without memory: `destroy` was called on it, or the device had no memory when it was created. wgpu shows
    /// this on Vulkan, Metal and DX12. A browser reports it when the commands are submitted.
    #[error("the buffer for {operand} has no memory: it was destroyed, or its creation failed")]
    BufferDestroyed {
        /// The tensor, or the scratch memory of an operation that was destroyed.
        operand: Operand,
    },

    /// A buffer for a tensor that the operation does not have.
    #[error("a buffer for {operand} was given, but the operation has no such tensor")]
    BufferUnexpected {
        /// The tensor.
        operand: Operand,
    },

    /// A buffer offset that the kernel cannot address.
    #[error("the buffer for {operand} starts at byte {found}; its offset must be a multiple of {needed} bytes")]
    BufferAlignment {
        /// The tensor.
        operand: Operand,
        /// The offset must be a multiple of this.
        needed: u64,
        /// The offset that was given.
        found: u64,
    },

    /// An output shares its buffer with an input, which the GPU may not read and write in one dispatch; or two tensors share one
    /// whose ranges are not apart, though one of them is written.
    #[error(
        "{output} and {other} share one buffer; give the output a buffer of its own, or two outputs ranges that start at \
         multiples of min_storage_buffer_offset_alignment and do not overlap, or prepare with with_shared_buffers, which takes \
         inputs at such ranges too"
    )]
    BufferAliased {
        /// The operand written.
        output: Operand,
        /// The other user of the buffer.
        other: Operand,
    },

    /// A host slice is shorter than its tensor.
    #[error("{}", too_short("slice", "too short", *operand, [*needed, *found], "elements"))]
    SliceTooShort {
        /// The tensor.
        operand: Operand,
        /// Elements that the tensor's layout spans.
        needed: u64,
        /// Elements that were given.
        found: u64,
    },

    /// A host slice of another element type than the problem's.
    #[error(
        "the problem stores {expected:?}, the slices hold {found:?}; convert them or call AttentionProblem::with_element"
    )]
    ElementMismatch {
        /// The problem's element.
        expected: Element,
        /// The slices' element.
        found: Element,
    },

    /// A host slice of another type than the cache's.
    #[error("the cache is stored in {expected:?}, the slices hold {found:?}; int8 comes in words, u32")]
    CacheMismatch {
        /// The cache's type.
        expected: CacheElement,
        /// The slices' type.
        found: CacheElement,
    },

    /// Lengths, sums, pages or slots in host memory that do not fit the problem.
    #[error("{operand}: {reason}")]
    InvalidTable {
        /// The table.
        operand: Operand,
        /// Which entry is wrong, and what is allowed.
        reason: String,
    },

    /// A per-call length above the prepared one.
    #[error("{name} = {found} in this call, but the operation was prepared for at most {prepared}; prepare it again")]
    LengthExceedsPrepared {
        /// `seqlen_q` or `seqlen_kv`.
        name: &'static str,
        /// The length in this call.
        found: u32,
        /// The length it was prepared for.
        prepared: u32,
    },

    /// The dispatches asked for do not exist.
    #[error("dispatches {start}..{end} were asked for, but the operation has {count}")]
    NoSuchDispatch {
        /// First dispatch asked for.
        start: usize,
        /// One past the last.
        end: usize,
        /// How many there are.
        count: usize,
    },

    /// A text of the caller's own WGSL that is refused.
    #[error("{0}")]
    Wgsl(#[from] WgslFault),

    /// Data for the caller's own functions, of another type than they read.
    #[error(
        "the functions read aux as {expected:?}, the slice holds {found:?}; convert it, or use WgslOptions::with_aux"
    )]
    AuxMismatch {
        /// What the functions read.
        expected: AuxType,
        /// What the slice holds.
        found: AuxType,
    },

    /// WGSL that does not compile.
    #[error("{file}:{line}: {message}")]
    Shader {
        /// The file of the shader source.
        file: String,
        /// The line in that file, from 1.
        line: u32,
        /// What the compiler said.
        message: String,
    },

    /// wgpu refused what only wgpu can know, such as a buffer of another device. (This library should refuse everything
    /// else itself. Please report it.)
    #[error("wgpu refused the operation: {0}")]
    Gpu(String),

    /// The device has no memory left, or the host for what the slice form returns.
    #[error("out of memory while {0}; free buffers, or make the problem smaller")]
    OutOfMemory(&'static str),

    /// The device was lost: driver reset, unplugged, or destroyed.
    #[error("the GPU device was lost ({0}); make a new device and prepare the operation again")]
    DeviceLost(String),

    /// No adapter runs compute shaders here.
    #[error("no GPU adapter found ({0}); install a Vulkan, Metal or DX12 driver (Debian: mesa-vulkan-drivers)")]
    NoAdapter(String),
}

/// A tensor that is not as long as its layout spans, or that was forgotten.
fn too_short(form: &str, how: &str, operand: Operand, [needed, found]: [u64; 2], unit: &str) -> String {
    let setter = match (found, operand) {
        (0, Operand::Bias) => "with_bias",
        (0, Operand::KeyMask) => "with_key_mask",
        (0, Operand::Sink) => "with_sink",
        (0, Operand::Aux) => "with_aux",
        (0, Operand::SeqlensQ | Operand::SeqlensKv | Operand::CuSeqlensQ | Operand::CuSeqlensKv) => "",
        (0, Operand::PageTable) => "with_page_table",
        (0, Operand::CacheSeqlens) => "with_cache_seqlens",
        (0, Operand::SlotMapping) => "with_slot_mapping",
        (0, Operand::CuSeqlensNew) => "with_cu_seqlens_new",
        (0, Operand::RotaryCos | Operand::RotarySin) => "with_rotary",
        (0, Operand::NewCacheSeqlens | Operand::QRotated) => "",
        _ => return format!("the {form} for {operand} is {how}: the tensor needs {needed} {unit}, {found} were given"),
    };
    let of_attention = matches!(operand, Operand::Bias | Operand::KeyMask | Operand::Sink | Operand::Aux);
    let remedy = match form {
        "slice" if !of_attention => format!("call {setter} of AppendSlices or CacheSlices"),
        "slice" => format!("call forward_with, and {setter} of ForwardSlices or BackwardSlices"),
        _ => format!("call Buffers::with(Operand::{operand:?}, …)"),
    };
    format!("no {form} for {operand} was given, and the problem has one of {needed} {unit}: {remedy}")
}

/// What contradicts itself in an [`AttentionProblem`](crate::AttentionProblem).
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidProblem {
    /// The query heads cannot be divided evenly among the KV heads.
    #[error("num_heads = {num_heads} is not a multiple of num_heads_kv = {num_heads_kv}")]
    HeadsMismatch {
        /// Heads of Q.
        num_heads: u32,
        /// Heads of K and V.
        num_heads_kv: u32,
    },
    /// A range of heads or rows for probabilities that is empty, or of which the problem has not all.
    #[error("{name} {start}..{end} are chosen; the problem has {name} 0..{count}, and at least one must be chosen")]
    Chosen {
        /// `heads` or `rows`.
        name: &'static str,
        /// The first of the range.
        start: u32,
        /// One past its last.
        end: u32,
        /// How many the problem has.
        count: u32,
    },
    /// A head dimension outside 1 to 256.
    #[error("{name} = {found}; kernels exist for 1 to {max}")]
    HeadDim {
        /// `head_dim` or `head_dim_v`.
        name: &'static str,
        /// What was given.
        found: u32,
        /// The largest size that a kernel exists for.
        max: u32,
    },
    /// A length that 32-bit positions cannot address.
    #[error("{name} = {found}; at most {max} is supported")]
    Length {
        /// The dimension.
        name: &'static str,
        /// What was given.
        found: u32,
        /// The largest supported.
        max: u32,
    },
    /// Two elements of an output tensor have the same place.
    #[error("the layout of {0} places two of its elements at one address; outputs must not overlap themselves")]
    LayoutOverlaps(Operand),
    /// A tensor's extent passes 2⁶⁴ bytes.
    #[error("the layout of {0} spans more than 2^64 bytes")]
    LayoutOverflows(Operand),
    /// A dropout chance outside [0, 1).
    #[error("dropout_p = {}; it must be at least 0 and below 1", shown(*.0))]
    DropoutP(f64),
    /// Gradients in a type that is neither that of the inputs nor f32.
    #[error(
        "gradients of {element:?} inputs cannot be stored as {found:?}; they are stored in the inputs' type or in F32"
    )]
    GradientElement {
        /// The type of the inputs.
        element: Element,
        /// The type that was asked for.
        found: Element,
    },
    /// A score modifier that is not valid.
    #[error("{name}: {reason}")]
    ScoreMod {
        /// Its name.
        name: &'static str,
        /// What was given, and what is allowed.
        reason: String,
    },
    /// A mask that cannot be one.
    #[error("{name} mask: {reason}")]
    KeyMask {
        /// Its name.
        name: &'static str,
        /// What was given, and what is allowed.
        reason: String,
    },
    /// Data for functions in the caller's own WGSL that does not fit them.
    #[error("aux: {reason}")]
    Aux {
        /// What was given, and what to do.
        reason: String,
    },
    /// Lengths of sequences that cannot be theirs.
    #[error("{name}: {reason}")]
    Lengths {
        /// `seqlens_q` or `seqlens_kv`.
        name: &'static str,
        /// What was given, and what is allowed.
        reason: String,
    },
    /// A softmax_scale that is not finite, or not finite in f32 once multiplied by log2(e), as kernels have it.
    #[error("softmax_scale = {}; it must be finite, and at most 2.3e38 in size: kernels multiply it by log2(e) in f32", shown(*.0))]
    SoftmaxScale(f64),
    /// An append to a cache that cannot be.
    #[error("{name}: {reason}")]
    Append {
        /// `cache`, `rotary` or `packed tokens`.
        name: &'static str,
        /// What was given, and what is allowed.
        reason: String,
    },
    /// Attention over a cache that cannot be.
    #[error("cache: {reason}")]
    Cache {
        /// What was given, and what is allowed.
        reason: String,
    },
    /// A place in a larger problem that cannot be.
    #[error("shard: {reason}")]
    Shard {
        /// What was given, and what is allowed.
        reason: String,
    },
    /// O in a type that it cannot have.
    #[error("O of {element:?} inputs is asked for in {found:?}: {reason}")]
    OutputElement {
        /// The type of the inputs.
        element: Element,
        /// The type that was asked for.
        found: Element,
        /// Why it cannot be.
        reason: &'static str,
    },
    /// Gradients that are added to others, and are not in f32.
    #[error("gradients in {0:?} are added to others; such sums are in F32: with_added_gradients")]
    AddedGradients(Element),
    /// A running result that is not in f32.
    #[error("a running result in {0:?}; it must be in F32, or each merge would round it")]
    RunningElement(Element),
    /// Partial results that are neither in the type of O nor in f32.
    #[error("the parts are stored in {found:?}; they must be in f32 or in the type of O, {element:?}")]
    PartsElement {
        /// The type of O.
        element: Element,
        /// What was given.
        found: Element,
    },
    /// A bound that forbids all work.
    #[error("max_flops_per_dispatch = 0 allows no work; leave it out for no bound")]
    NoWorkAllowed,
}
