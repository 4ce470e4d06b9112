#![doc = include_str!("../README.md")]
#![warn(missing_docs)]

mod attention;
mod backend;
mod buffers;
mod cache;
mod device;
mod error;
mod options;
mod run;

pub use attention::{AttentionOutput, attention};
pub use cache::{KvCache, Rotary};
pub use device::{init, install, release_memory};
pub use error::Error;
pub use options::AttentionOptions;
/// The library, whose types are a part of this interface.
pub use wgpu_flash_attention;
pub use wgpu_flash_attention::{BlockMask, CacheElement, RotaryPairs, ScoreMod};

/// The programs of docs/autograd.md, as documentation tests.
#[cfg(doctest)]
#[doc = include_str!("../../../docs/autograd.md")]
struct Autograd;
