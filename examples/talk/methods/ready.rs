//! A method that is a list of steps.

use super::sparse::{self, Attention, Step};
use super::{Cost, Prepared};
use crate::case::State;
use crate::device::Gpu;
use crate::failure::Result;

pub struct Ready {
    pub steps: Vec<Step>,
    pub o: wgpu::Buffer,
    pub cost: Cost,
    /// What was drawn before it runs.
    pub state: State,
}

impl Ready {
    /// Exact attention in parts, each of other rows.
    pub fn of_parts(parts: Vec<Attention>, o: wgpu::Buffer, cost: Cost, state: State) -> Self {
        let extra_bytes = parts.iter().map(Attention::extra_bytes).sum();
        let steps = parts.into_iter().map(|part| Step::Attention(Box::new(part))).collect();
        Self { steps, o, cost: Cost { extra_bytes, ..cost }, state }
    }
}

impl Prepared for Ready {
    fn encode(&self, encoder: &mut wgpu::CommandEncoder) -> Result<()> {
        sparse::encode(&self.steps, encoder)
    }

    fn output(&self) -> &wgpu::Buffer {
        &self.o
    }

    fn cost(&self) -> Cost {
        self.cost
    }

    fn state(&self, _: &Gpu) -> Result<State> {
        Ok(self.state.clone())
    }
}
