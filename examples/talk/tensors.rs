//! Named tensors in safetensors files.

use std::path::Path;

use half::{bf16, f16};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};

use crate::case::{State, Tensor, Values};
use crate::failure::{Failure, Result};

/// All tensors of a file that hold floats (as f32) or U32. Others are passed over.
pub fn read(path: &Path) -> Result<State> {
    let failure =
        |reason: &dyn std::fmt::Display| Failure::new(format_args!("cannot read {}: {reason}", path.display()));
    let bytes = std::fs::read(path).map_err(|error| failure(&error))?;
    let tensors = SafeTensors::deserialize(&bytes).map_err(|error| failure(&error))?;
    let mut state = State::new();
    for (name, view) in tensors.iter() {
        let bytes = view.data();
        let two = |b: &[u8]| [b[0], b[1]];
        let four = |b: &[u8]| [b[0], b[1], b[2], b[3]];
        let values = match view.dtype() {
            Dtype::F32 => Values::F32(bytes.chunks_exact(4).map(|b| f32::from_le_bytes(four(b))).collect()),
            Dtype::F16 => Values::F32(bytes.chunks_exact(2).map(|b| f16::from_le_bytes(two(b)).to_f32()).collect()),
            Dtype::BF16 => Values::F32(bytes.chunks_exact(2).map(|b| bf16::from_le_bytes(two(b)).to_f32()).collect()),
            Dtype::U32 => Values::U32(bytes.chunks_exact(4).map(|b| u32::from_le_bytes(four(b))).collect()),
            _ => continue,
        };
        state.insert(name.to_owned(), Tensor { dims: view.shape().to_vec(), values });
    }
    Ok(state)
}

/// The bytes of a file that holds these tensors.
pub fn file(state: &State) -> Result<Vec<u8>> {
    let views: std::result::Result<Vec<_>, _> = state
        .iter()
        .map(|(name, tensor)| {
            let (dtype, bytes): (Dtype, &[u8]) = match &tensor.values {
                Values::F32(values) => (Dtype::F32, bytemuck::cast_slice(values)),
                Values::U32(values) => (Dtype::U32, bytemuck::cast_slice(values)),
            };
            TensorView::new(dtype, tensor.dims.clone(), bytes).map(|view| (name, view))
        })
        .collect();
    let views = views.map_err(|error| Failure::new(format_args!("a tensor cannot be written: {error}")))?;
    safetensors::serialize(views, None).map_err(|error| Failure::new(format_args!("no safetensors file: {error}")))
}
