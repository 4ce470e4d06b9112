use crate::attention::Attention;
use crate::error::Failure;
use wasm_bindgen::prelude::*;
use wgpu_flash_attention::{BackwardBuffers, ForwardBuffers, Operand, wgpu};

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

/// The tensors of one call, by the crate's names.
#[wasm_bindgen]
#[derive(Default)]
pub struct Tensors(Vec<(String, wgpu::Buffer)>);

#[wasm_bindgen]
impl Tensors {
    #[wasm_bindgen(constructor)]
    pub fn new() -> Self {
        Self::default()
    }

    pub fn add(&mut self, name: String, tensor: &Tensor) {
        self.0.push((name, tensor.0.clone()));
    }
}

impl Tensors {
    fn find(&self, name: &str) -> Option<wgpu::BufferSlice<'_>> {
        self.0.iter().find(|(other, _)| other == name).map(|(_, buffer)| buffer.slice(..))
    }

    fn get(&self, name: &str) -> Result<wgpu::BufferSlice<'_>, Failure> {
        self.find(name).ok_or_else(|| Failure::new("Buffer", format!("{name} is missing")))
    }

    pub(crate) fn forward(&self) -> Result<ForwardBuffers<'_>, Failure> {
        Ok(ForwardBuffers::new(self.get("q")?, self.get("k")?, self.get("v")?, self.get("o")?, self.get("lse")?))
    }

    pub(crate) fn backward(&self) -> Result<BackwardBuffers<'_>, Failure> {
        let (d_o, dq, dk, dv) = (self.get("d_o")?, self.get("dq")?, self.get("dk")?, self.get("dv")?);
        let buffers = BackwardBuffers::new(self.forward()?, d_o, dq, dk, dv);
        Ok(buffers.with(Operand::DLse, self.find("d_lse")))
    }
}
