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
//! let problem = AttentionProblem::new(AttentionShape::new(batch, num_heads, seqlen, head_dim)).causal();
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
//! Data walks through the modules once, left to right: [`problem`] → [`plan`] → [`shader`] → [`gpu`]. [`mod@reference`]
//! is the slow and obvious oracle that the tests compare with.

#![warn(missing_docs)]

mod error;
pub mod gpu;
mod operand;
pub mod plan;
pub mod problem;
pub mod reference;
pub mod shader;

pub use error::{Error, InvalidProblem};
pub use gpu::{
    BackwardBuffers, BackwardOutput, BackwardSlices, FlashAttention, ForwardBuffers, ForwardOutput, MergeBuffers,
    PreparedBackward, PreparedForward, PreparedMerge,
};
pub use operand::Operand;
pub use plan::{Call, Capabilities, Plan};
pub use problem::{
    Algorithm, Alignment, AttentionLayout, AttentionProblem, AttentionShape, Dropout, Element, ElementType, Mask,
    MergeProblem, ScoreMod, TensorLayout, alibi_slopes,
};

/// The README's programs, as documentation tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
