//! A method that is a list of kernels.

use super::{Cost, Prepared};
use crate::case::State;
use crate::device::{Gpu, Kernel};
use crate::failure::Result;

pub struct Ready {
    /// Kernels and their workgroups, in order.
    pub passes: Vec<(Kernel, [u32; 3])>,
    pub o: wgpu::Buffer,
    pub cost: Cost,
    /// What was drawn before it runs.
    pub state: State,
}

impl Prepared for Ready {
    fn encode(&self, encoder: &mut wgpu::CommandEncoder) -> Result<()> {
        self.passes.iter().for_each(|(kernel, workgroups)| kernel.encode(encoder, *workgroups));
        Ok(())
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
