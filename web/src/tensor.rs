use crate::attention::{Attention, operand};
use crate::error::Failure;
use std::ops::Range;
use wasm_bindgen::prelude::*;
use wgpu_flash_attention::{
    AppendBuffers, BackwardBuffers, Buffers, ForwardBuffers, Operand, ProbabilitiesBuffers, wgpu,
};

/// A storage buffer of the TypeScript side, as wgpu sees it.
#[wasm_bindgen]
pub struct Tensor(pub(crate) wgpu::Buffer);

#[wasm_bindgen]
impl Tensor {
    /// wgpu has no way to take a `GPUBuffer` over. It calls `createBuffer` on its view of the device once here, and nothing
    /// else; the view answers with the buffer that is meant.
    pub fn adopt(attention: &Attention, bytes: f64) -> Self {
        Self(attention.0.device().create_buffer(&wgpu::BufferDescriptor {
            label: None,
            size: bytes as u64,
            usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        }))
    }
}

/// The tensors of one call.
#[wasm_bindgen]
#[derive(Default)]
pub struct Tensors(Vec<(Operand, wgpu::Buffer, Range<u64>)>);

#[wasm_bindgen]
impl Tensors {
    #[wasm_bindgen(constructor)]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds the tensor of the crate's name `name`, which lies in these bytes of its buffer.
    pub fn add(&mut self, name: &str, tensor: &Tensor, first: f64, end: f64) -> Result<(), Failure> {
        let operand = operand(name).ok_or_else(|| Failure::new("Buffer", format!("there is no tensor {name}")))?;
        self.0.push((operand, tensor.0.clone(), first as u64..end as u64));
        Ok(())
    }
}

impl Tensors {
    fn get<const N: usize>(&self, operands: [Operand; N]) -> Result<[wgpu::BufferSlice<'_>; N], Failure> {
        if let Some(missing) = operands.iter().find(|operand| self.find(**operand).is_none()) {
            return Err(Failure::new("Buffer", format!("{missing} is missing")));
        }
        // Those that are missing were refused.
        Ok(operands.map(|operand| slice(self.find(operand).unwrap_or(&self.0[0]))))
    }

    fn find(&self, operand: Operand) -> Option<&(Operand, wgpu::Buffer, Range<u64>)> {
        self.0.iter().find(|(other, ..)| *other == operand)
    }

    pub(crate) fn forward(&self) -> Result<ForwardBuffers<'_>, Failure> {
        let [q, k, v, o, lse] = self.get([Operand::Q, Operand::K, Operand::V, Operand::O, Operand::Lse])?;
        Ok(self.with_all(ForwardBuffers::new(q, k, v, o, lse)))
    }

    pub(crate) fn backward(&self) -> Result<BackwardBuffers<'_>, Failure> {
        let [d_o, dq, dk, dv] = self.get([Operand::DO, Operand::Dq, Operand::Dk, Operand::Dv])?;
        Ok(BackwardBuffers::new(self.forward()?, d_o, dq, dk, dv))
    }

    pub(crate) fn probabilities(&self) -> Result<ProbabilitiesBuffers<'_>, Failure> {
        let [q, k, lse, probabilities] = self.get([Operand::Q, Operand::K, Operand::Lse, Operand::Probabilities])?;
        Ok(self.with_all(ProbabilitiesBuffers::new(q, k, lse, probabilities)))
    }

    pub(crate) fn append(&self) -> Result<AppendBuffers<'_>, Failure> {
        let [k, v, k_cache, v_cache] = self.get([Operand::K, Operand::V, Operand::KCache, Operand::VCache])?;
        Ok(self.with_all(AppendBuffers::new(k, v, k_cache, v_cache)))
    }

    /// Those that only some problems have, too.
    fn with_all<'a, D>(&'a self, buffers: Buffers<'a, D>) -> Buffers<'a, D> {
        self.0.iter().fold(buffers, |buffers, tensor| buffers.with(tensor.0, slice(tensor)))
    }
}

fn slice((_, buffer, bytes): &(Operand, wgpu::Buffer, Range<u64>)) -> wgpu::BufferSlice<'_> {
    buffer.slice(bytes.clone())
}
