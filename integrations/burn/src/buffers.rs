//! Tensors of Burn as buffers of wgpu.

use crate::error::Error;
use burn::tensor::DType;
use burn_cubecl::cubecl::wgpu::{AutoCompiler, WgpuResource, WgpuServer};
use burn_cubecl::cubecl::zspace::metadata::Metadata;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use std::any::Any;
use wgpu_flash_attention::{Element, EntryLayout, TensorLayout, wgpu};

/// Slices of buffers start at such multiples of bytes.
const SLICE_ALIGNMENT: u64 = 16;

/// A tensor and the range of a buffer in which it lies. The range belongs to the tensor until this is dropped.
pub(crate) struct Bound {
    pub tensor: CubeTensor,
    resource: WgpuResource,
    /// Keeps the range where it is.
    _managed: Box<dyn Any>,
}

impl Bound {
    /// The tensor as it lies. All that Burn has recorded for it before is submitted.
    pub fn new(tensor: CubeTensor) -> Self {
        // It runs the tasks of the tensor's stream and of this one, and submits them.
        let managed = tensor.client.get_resource::<WgpuServer<AutoCompiler>>(tensor.handle.clone());
        let managed = managed.unwrap_or_else(|error| panic!("a tensor of attention has no buffer: {error}"));
        Self { tensor, resource: managed.resource().clone(), _managed: Box::new(managed) }
    }

    /// A tensor whose rows are contiguous. Another one is copied.
    pub fn of_rows(tensor: CubeTensor) -> Self {
        let is_contiguous = |tensor: &CubeTensor| {
            let (shape, strides) = (tensor.meta.shape(), tensor.meta.strides());
            shape.last().is_none_or(|&dim| dim <= 1) || strides.last() == Some(&1)
        };
        match !tensor.meta.is_tiled() && is_contiguous(&tensor) {
            true => Self::new(tensor),
            false => Self::new(into_contiguous(tensor)),
        }
    }

    /// A contiguous tensor that starts at a multiple of so many bytes. Another one is copied.
    pub fn contiguous(tensor: CubeTensor, alignment: u64) -> Self {
        let bound = Self::new(into_contiguous(tensor));
        match bound.resource.offset.is_multiple_of(alignment) {
            true => bound,
            false => Self::new(bound.tensor.copy()),
        }
    }

    /// The range, from a multiple of 16 bytes to the end of its last word.
    pub fn slice(&self) -> wgpu::BufferSlice<'_> {
        let WgpuResource { buffer, offset, size, .. } = &self.resource;
        let end = (offset + size).next_multiple_of(4).min(buffer.size());
        buffer.slice(offset / SLICE_ALIGNMENT * SLICE_ALIGNMENT..end)
    }

    /// Elements between the start of the slice and the tensor.
    fn offset(&self) -> u64 {
        self.resource.offset % SLICE_ALIGNMENT / self.tensor.dtype.size() as u64
    }

    /// The layout of `[batch, heads, rows, dim]`.
    pub fn layout(&self) -> TensorLayout {
        let [stride_batch, stride_head, stride_row] = [0, 1, 2].map(|dim| self.stride(dim));
        TensorLayout { offset: self.offset(), stride_batch, stride_row, stride_head }
    }

    /// Elements from one to the next along a dimension; 0 along a dimension of 1, whose stride in Burn may be anything.
    fn stride(&self, dim: usize) -> u64 {
        if self.tensor.meta.shape()[dim] == 1 { 0 } else { self.tensor.meta.strides()[dim] as u64 }
    }

    /// The layout of `[batch or 1, heads or 1, rows or 1, keys or 1]`.
    pub fn entries(&self) -> EntryLayout {
        let [stride_batch, stride_head, stride_row, stride_key] = [0, 1, 2, 3].map(|dim| self.stride(dim));
        EntryLayout { offset: self.offset(), stride_batch, stride_head, stride_row, stride_key }
    }
}

/// A new tensor `[batch, heads, rows, dim]` in the order of memory that another such tensor has: rows of all heads side by side, or
/// heads one behind the other. Models that split heads by `swap_dims` and join them again then need no copy.
pub(crate) fn empty_rows(like: &CubeTensor, shape: [usize; 4], dtype: DType) -> CubeTensor {
    let [_, heads, rows, dim] = shape;
    let strides_of_like = like.meta.strides();
    let strides = match strides_of_like[1] < strides_of_like[2] {
        true => [rows * heads * dim, dim, heads * dim, 1],
        false => [heads * rows * dim, rows * dim, dim, 1],
    };
    empty(like, &shape, &strides, dtype)
}

/// A new contiguous tensor.
pub(crate) fn empty_contiguous(like: &CubeTensor, shape: &[usize], dtype: DType) -> CubeTensor {
    let mut strides = vec![1; shape.len()];
    for dim in (1..shape.len()).rev() {
        strides[dim - 1] = strides[dim] * shape[dim];
    }
    empty(like, shape, &strides, dtype)
}

fn empty(like: &CubeTensor, shape: &[usize], strides: &[usize], dtype: DType) -> CubeTensor {
    let bytes = shape.iter().product::<usize>() * dtype.size();
    // Bindings are whole words.
    let handle = like.client.empty(bytes.next_multiple_of(4).max(4));
    let meta = Metadata::new(shape.to_vec(), strides.to_vec());
    CubeTensor::new(like.client.clone(), handle, meta, like.device.clone(), dtype)
}

/// The type of Q, K and V.
pub(crate) fn element(dtype: DType, tensor: &'static str) -> Result<Element, Error> {
    match dtype {
        DType::F32 | DType::Flex32 => Ok(Element::F32),
        DType::F16 => Ok(Element::F16),
        DType::BF16 => Ok(Element::Bf16),
        found => Err(Error::Type { tensor, found, expected: "f32, f16 or bf16" }),
    }
}
