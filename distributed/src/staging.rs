//! Memory of the host through which blocks leave a device and reach it.

use crate::error::Error;
use crate::gpu::{buffer, copy, map};
use crate::transport::{Bytes, Transport};
use std::sync::Arc;
use wgpu_flash_attention::{FlashAttention, wgpu};

/// Staging for some buffers that pass to the next rank while others come from the one before.
pub(crate) struct Staging {
    down: Vec<wgpu::Buffer>,
    up: Vec<wgpu::Buffer>,
}

impl Staging {
    /// For buffers of these sizes.
    pub fn new(attention: &FlashAttention, sizes: &[u64]) -> Result<Self, Error> {
        let make = |label, usage| -> Result<Vec<_>, Error> {
            sizes.iter().map(|bytes| buffer(attention, label, *bytes, usage)).collect()
        };
        Ok(Self {
            down: make("staging to the host", wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST)?,
            up: make("staging to the device", wgpu::BufferUsages::MAP_WRITE | wgpu::BufferUsages::COPY_SRC)?,
        })
    }

    /// Submits copies of these buffers to the host.
    pub fn send(&self, attention: &FlashAttention, from: &[&wgpu::Buffer]) -> Result<wgpu::SubmissionIndex, Error> {
        copy(attention, from.iter().copied().zip(&self.down))
    }

    /// Waits until they are there, and passes them on.
    pub fn exchange(
        &self,
        attention: &FlashAttention,
        transport: &mut impl Transport,
        sent: wgpu::SubmissionIndex,
    ) -> Result<(), Error> {
        let down = self.down.iter().map(|buffer| (buffer, wgpu::MapMode::Read));
        let up = self.up.iter().map(|buffer| (buffer, wgpu::MapMode::Write));
        map(attention, &down.chain(up).collect::<Vec<_>>(), Some(sent))?;
        let (rank, ranks) = (transport.rank(), transport.ranks());
        let (next, previous) = ((rank + 1) % ranks, (rank + ranks - 1) % ranks);
        let unmapped = |error: wgpu::MapRangeError| Error::Gpu(error.to_string());
        for (down, up) in self.down.iter().zip(&self.up) {
            let bytes: Bytes = Arc::new(down.get_mapped_range(..).map_err(unmapped)?);
            let mut received = up.get_mapped_range_mut(..).map_err(unmapped)?;
            transport.exchange(next, bytes, previous, received.slice(..))?;
        }
        self.down.iter().chain(&self.up).for_each(wgpu::Buffer::unmap);
        Ok(())
    }

    /// Submits copies of what came to these buffers.
    pub fn receive(&self, attention: &FlashAttention, to: &[&wgpu::Buffer]) -> Result<(), Error> {
        copy(attention, self.came().zip(to.iter().copied())).map(drop)
    }

    /// What came, for commands of the device.
    pub fn came(&self) -> impl Iterator<Item = &wgpu::Buffer> {
        self.up.iter()
    }
}
