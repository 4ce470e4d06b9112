//! Exact FlashAttention for every GPU that wgpu reaches, written as WGSL compute shaders.
//!
//! `O = dropout(softmax(mask(softmax_scale · Q Kᵀ))) V`, tiled in workgroup memory with an online softmax. The result is
//! exact, and memory grows with the sequence length, not with its square. It runs on Vulkan, Metal, DX12, and WebGPU in the
//! browser.
//!
//! ```no_run
//! use wgpu_flash_attention::{AttentionProblem, AttentionShape, FlashAttention};
//!
//! # async fn run() -> Result<(), wgpu_flash_attention::Error> {
//! let (batch, num_heads, seqlen, head_dim) = (1, 8, 1024, 64);
//! let attention = FlashAttention::request().await?;
//! let problem = AttentionProblem::new(AttentionShape::new(batch, num_heads, seqlen, head_dim)).with_causal();
//! let q = vec![0.5f32; (batch * seqlen * num_heads * head_dim) as usize];
//! let output = attention.forward(&problem, &q, &q, &q).await?;
//! println!("{} values, first log-sum-exp {}", output.o.len(), output.lse[0]);
//! # Ok(())
//! # }
//! ```
//!
//! Programs that own a `wgpu::Device` call [`FlashAttention::new`] and [`FlashAttention::prepare_forward`] once. Then they
//! call [`PreparedForward::encode`] many times, with their own command encoder and buffers. Gradients go the same way:
//! [`FlashAttention::prepare_backward`] and [`PreparedBackward::encode`].
//!
//! The root exports everything that a caller needs. [`mod@reference`] is the slow and obvious oracle that the tests compare
//! with. [`unstable`] is for tools that look inside, for example to print shaders.

#![deny(unsafe_code)]
#![warn(missing_docs)]

#[macro_use]
mod spans;
mod error;
mod gpu;
mod operand;
mod plan;
mod problem;
pub mod reference;
mod shader;

pub use error::{Error, InvalidProblem};
pub use gpu::{
    Append, AppendBuffers, AppendOutput, AppendSlices, Backward, BackwardBuffers, BackwardOutput, BackwardSlices,
    Buffers, CacheSlices, FlashAttention, Forward, ForwardBuffers, ForwardOutput, ForwardSlices, Merge, MergeBuffers,
    Prepared, PreparedAppend, PreparedBackward, PreparedForward, PreparedMerge, PreparedProbabilities, Probabilities,
    ProbabilitiesBuffers, ProbabilitiesSlices, Statistics,
};
pub use operand::Operand;
pub use plan::{
    Call, Capabilities, DeviceClass, Direction, MAX_HEAD_DIM, MAX_LENGTH, Plan, PlanBuilder, Tiles, TunedTiles, Tuning,
    Workload,
};
pub use problem::{
    Algorithm, Alignment, AppendProblem, AttentionLayout, AttentionProblem, AttentionShape, AuxType, BlockKind,
    BlockMask, CacheElement, CacheType, Dropout, Element, ElementType, EntryLayout, KeyMask, KvCache, Mask, MaskWgsl,
    MergeProblem, Pages, ProbabilitiesProblem, Rotary, RotaryPairs, ScoreMod, ScoreWgsl, Shard, TensorLayout,
    WgslFault, WgslOptions, alibi_slopes, pack_bits,
};
/// The crates whose types are part of this crate's interface.
pub use {half, wgpu};

/// The parts of a plan: kernels, their text, and the dispatches of a call. It is for tools and tests that look inside. Any
/// release may change it.
pub mod unstable {
    pub use crate::gpu::run_out_of_memory_after;
    pub use crate::operand::Usage;
    pub use crate::plan::{
        Access, Chain, Dispatch, Kernel, LengthsAtCall, Origins, Params, Pass, RowReduce, Specialization, Storage,
        Window,
    };
    pub use crate::problem::{fault_in_browsers, fault_of_compiler};
    pub use crate::shader::{Dialect, Origin, ShaderSource};
}

/// The README's programs, as documentation tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

#[cfg(doctest)]
#[doc = include_str!("../docs/flex-attention.md")]
struct FlexAttention;

#[cfg(doctest)]
#[doc = include_str!("../docs/caches.md")]
struct Caches;
