use crate::attention::Attention;
use wasm_bindgen::prelude::*;

/// A storage buffer of the TypeScript side, as wgpu sees it.
#[wasm_bindgen]
pub struct Tensor(pub(crate) wgpu::Buffer);

#[wasm_bindgen]
impl Tensor {
    /// wgpu has no way to take a `GPUBuffer` over. It calls `createBuffer` on the device once here, and nothing else;
    /// the caller sees to it that this call returns the buffer that is meant.
    pub fn adopt(attention: &Attention, bytes: f64) -> Self {
        Self(attention.0.device().create_buffer(&wgpu::BufferDescriptor {
            label: None,
            size: bytes as u64,
            usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        }))
    }
}
