use burn::tensor::DType;
use burn::tensor::wgpu::WgpuInitError;

/// Why a call is refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Nobody said where the wgpu handles of the tensor's device are.
    #[error(
        "no attention is installed on the device of {0}; make the device with wgpu_flash_attention_burn::init, or give its \
         wgpu handles to wgpu_flash_attention_burn::install"
    )]
    NotInstalled(&'static str),

    /// The device is of another runtime than wgpu.
    #[error("{0} is no device of Burn's wgpu runtime")]
    NotWgpu(String),

    /// A tensor has another shape than the others need.
    #[error("{tensor} has the shape {found:?}; expected {expected}")]
    Shape {
        /// The tensor.
        tensor: &'static str,
        /// Its shape.
        found: Vec<usize>,
        /// What it should be.
        expected: String,
    },

    /// A tensor has a type that attention does not take there.
    #[error("{tensor} is {found:?}; expected {expected}")]
    Type {
        /// The tensor.
        tensor: &'static str,
        /// Its type.
        found: DType,
        /// What it should be.
        expected: &'static str,
    },

    /// A cache has no room for the new tokens.
    #[error("{new} tokens do not fit behind {len} in a cache of {capacity}")]
    CacheFull {
        /// Tokens of the longest sequence in the cache.
        len: usize,
        /// New tokens of each sequence.
        new: usize,
        /// Tokens that each sequence may have.
        capacity: usize,
    },

    /// Burn could not make the device.
    #[error(transparent)]
    Device(#[from] WgpuInitError),

    /// The problem is refused, or the device failed.
    #[error(transparent)]
    Attention(#[from] wgpu_flash_attention::Error),
}
