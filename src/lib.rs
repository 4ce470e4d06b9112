//! Exact FlashAttention for every GPU that wgpu reaches, written as WGSL compute shaders.
//!
//! `O = dropout(softmax(mask(softmax_scale · Q Kᵀ))) V`, tiled in workgroup memory with an online softmax: exact, and
//! linear in memory. Vulkan, Metal, DX12, and WebGPU in the browser.
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
//! Programs that own a `wgpu::Device` call [`FlashAttention::new`], [`FlashAttention::prepare_forward`] once and
//! [`PreparedForward::encode`] as often as they like, into their own command encoder and with their own buffers.
//!
//! What a caller needs is exported here. [`mod@reference`] is the slow and obvious oracle that the tests compare with;
//! [`unstable`] is what tools need that look inside, such as one that prints shaders.

#![deny(unsafe_code)]
#![warn(missing_docs)]

mod error;
mod gpu;
mod operand;
mod plan;
mod problem;
pub mod reference;
mod shader;

pub use error::{Error, InvalidProblem};
pub use gpu::{
    Backward, BackwardBuffers, BackwardOutput, BackwardSlices, Buffers, FlashAttention, Forward, ForwardBuffers,
    ForwardOutput, Merge, MergeBuffers, Prepared, PreparedBackward, PreparedForward, PreparedMerge,
};
pub use operand::Operand;
pub use plan::{
    Call, Capabilities, DeviceClass, Direction, MAX_HEAD_DIM, MAX_LENGTH, Plan, PlanBuilder, Tiles, TunedTiles, Tuning,
    Workload,
};
pub use problem::{
    Algorithm, Alignment, AttentionLayout, AttentionProblem, AttentionShape, Dropout, Element, ElementType,
    EntryLayout, KeyMask, Mask, MergeProblem, ScoreMod, TensorLayout, alibi_slopes,
};
/// The versions whose types stand in this crate's interface.
pub use {half, wgpu};

/// What a plan is made of: kernels, their text, and the dispatches of a call. For tools and tests that look inside. Any
/// release may change it.
pub mod unstable {
    pub use crate::operand::Usage;
    pub use crate::plan::{
        Access, Chain, Dispatch, Kernel, Origins, Params, Pass, RowReduce, Specialization, Storage, Window,
    };
    pub use crate::shader::{Dialect, Origin, ShaderSource};
}

/// The README's programs, as documentation tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
