use crate::attention::{Attention, operand};
use crate::error::Failure;
use wasm_bindgen::prelude::*;
use wgpu_flash_attention::{BackwardBuffers, Buffers, ForwardBuffers, Operand, ProbabilitiesBuffers, wgpu};

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

/// The tensors of one call.
#[wasm_bindgen]
#[derive(Default)]
pub struct Tensors(Vec<(Operand, wgpu::Buffer)>);

#[wasm_bindgen]
impl Tensors {
    #[wasm_bindgen(constructor)]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds the tensor of the crate's name `name`.
    pub fn add(&mut self, name: &str, tensor: &Tensor) -> Result<(), Failure> {
        let operand = operand(name).ok_or_else(|| Failure::new("Buffer", format!("there is no tensor {name}")))?;
        self.0.push((operand, tensor.0.clone()));
        Ok(())
    }
}

impl Tensors {
    fn get<const N: usize>(&self, operands: [Operand; N]) -> Result<[wgpu::BufferSlice<'_>; N], Failure> {
        let find = |operand: &Operand| self.0.iter().find(|(other, _)| other == operand);
        if let Some(missing) = operands.iter().find(|operand| find(operand).is_none()) {
            return Err(Failure::new("Buffer", format!("{missing} is missing")));
        }
        Ok(operands.map(|operand| find(&operand).map_or(self.0[0].1.slice(..), |(_, buffer)| buffer.slice(..))))
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

    /// Those that only some problems have, too.
    fn with_all<'a, D>(&'a self, buffers: Buffers<'a, D>) -> Buffers<'a, D> {
        self.0.iter().fold(buffers, |buffers, (operand, buffer)| buffers.with(*operand, buffer.slice(..)))
    }
}
