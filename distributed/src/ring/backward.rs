//! The backward pass of a ring: dQ stays with its rows, dK and dV travel with their keys.

use super::RingAttention;
use super::part::Parts;
use crate::error::Error;
use crate::gpu::{buffer, copy, map, storage, upload};
use crate::timeline::{Clock, Timeline};
use crate::transport::{Transport, WriteOnly};
use std::sync::Arc;
use std::time::Instant;
use wgpu_flash_attention::{BackwardBuffers, FlashAttention, ForwardBuffers, Operand, PreparedBackward, wgpu};

/// Operations and results of the backward pass, all in f32.
pub(super) struct Gradients {
    operation: PreparedBackward,
    d_o: Vec<wgpu::Buffer>,
    dq: Vec<wgpu::Buffer>,
    /// Of the block that this rank has; at the end, of its own keys.
    dk: Vec<wgpu::Buffer>,
    dv: Vec<wgpu::Buffer>,
    /// dK and dV on their way to the host.
    down: Vec<wgpu::Buffer>,
    sums: Sums,
}

/// Memory of the host for dK and dV as they go round, kept from call to call: new memory costs more than the sums.
#[derive(Default)]
struct Sums {
    /// Those of the block that comes next.
    carried: Vec<Vec<u8>>,
    /// As much for what is received while those are sent.
    spare: Vec<Vec<u8>>,
}

impl Sums {
    /// Sums of nothing yet, of these sizes.
    fn clear(&mut self, sizes: impl Iterator<Item = u64>) {
        let sizes: Vec<usize> = sizes.map(|bytes| bytes as usize).collect();
        for sums in [&mut self.carried, &mut self.spare] {
            sums.resize_with(sizes.len(), Vec::new);
            sums.iter_mut().zip(&sizes).for_each(|(sums, bytes)| sums.resize(*bytes, 0));
        }
        self.carried.iter_mut().for_each(|sums| sums.fill(0));
    }
}

impl Gradients {
    pub fn new(attention: &FlashAttention, parts: &Parts) -> Result<Self, Error> {
        let part = parts.longest.clone().with_added_gradients();
        let of_rows = |label, operand| -> Result<Vec<_>, Error> {
            parts.rows.iter().map(|_| storage(attention, label, parts.bytes(operand))).collect()
        };
        let of_keys = |label, operand| -> Result<Vec<_>, Error> {
            (0..parts.num_key_spans()).map(|_| storage(attention, label, parts.bytes(operand))).collect()
        };
        let (dk, dv) = (of_keys("dK", Operand::Dk)?, of_keys("dV", Operand::Dv)?);
        let usage = wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST;
        let down = dk.iter().chain(&dv).map(|from| buffer(attention, "gradients to the host", from.size(), usage));
        Ok(Self {
            operation: pollster::block_on(attention.prepare_backward(&part))?,
            d_o: of_rows("dO", Operand::DO)?,
            dq: of_rows("dQ", Operand::Dq)?,
            down: down.collect::<Result<_, _>>()?,
            sums: Sums::default(),
            dk,
            dv,
        })
    }

    pub fn bytes(&self) -> u64 {
        let all = [&self.d_o, &self.dq, &self.dk, &self.dv].into_iter().flatten();
        all.map(wgpu::Buffer::size).sum::<u64>() + self.operation.plan().scratch_bytes()
    }

    pub fn d_o(&self) -> &[wgpu::Buffer] {
        &self.d_o
    }

    pub fn buffers(&self, operand: Operand) -> Option<&[wgpu::Buffer]> {
        match operand {
            Operand::Dq => Some(&self.dq),
            Operand::Dk => Some(&self.dk),
            Operand::Dv => Some(&self.dv),
            _ => None,
        }
    }

    fn of_keys(&self) -> impl Iterator<Item = &wgpu::Buffer> {
        self.dk.iter().chain(&self.dv)
    }

    /// Submits a copy of dK and dV to the host.
    fn send(&self, attention: &FlashAttention) -> wgpu::SubmissionIndex {
        copy(attention, self.of_keys().zip(&self.down))
    }

    /// Adds what was sent to what came with the block, and passes the sums on for those of the next block.
    fn pass_on(
        &self,
        attention: &FlashAttention,
        transport: &mut impl Transport,
        sent: wgpu::SubmissionIndex,
        sums: &mut Sums,
    ) -> Result<(), Error> {
        let down: Vec<_> = self.down.iter().map(|buffer| (buffer, wgpu::MapMode::Read)).collect();
        map(attention, &down, Some(sent))?;
        let (rank, ranks) = (transport.rank(), transport.ranks());
        let of_buffers = sums.carried.iter_mut().zip(&mut sums.spare);
        for (down, (carried, spare)) in self.down.iter().zip(of_buffers) {
            let view = down.get_mapped_range(..).map_err(|error| Error::Gpu(error.to_string()))?;
            add_f32(carried, &view);
            drop(view);
            down.unmap();
            let sent = Arc::new(std::mem::replace(carried, std::mem::take(spare)));
            let received = WriteOnly::from_mut(&mut carried[..]);
            transport.exchange((rank + 1) % ranks, sent.clone(), (rank + ranks - 1) % ranks, received)?;
            // Transports keep nothing of what they have sent.
            *spare = Arc::try_unwrap(sent).unwrap_or_else(|kept| vec![0; kept.len()]);
        }
        Ok(())
    }
}

/// Adds f32 to f32, in the order of little-endian bytes.
fn add_f32(sums: &mut [u8], terms: &[u8]) {
    for (sum, term) in sums.as_chunks_mut::<4>().0.iter_mut().zip(terms.as_chunks::<4>().0) {
        *sum = (f32::from_le_bytes(*sum) + f32::from_le_bytes(*term)).to_le_bytes();
    }
}

impl<T: Transport> RingAttention<T> {
    pub(super) fn run_backward(&mut self) -> Result<Timeline, Error> {
        let mut sums = self.gradients.as_mut().map(|gradients| std::mem::take(&mut gradients.sums)).unwrap_or_default();
        let timeline = self.run_backward_with(&mut sums);
        self.gradients.iter_mut().for_each(|gradients| gradients.sums = std::mem::take(&mut sums));
        timeline
    }

    fn run_backward_with(&mut self, sums: &mut Sums) -> Result<Timeline, Error> {
        self.transport.barrier()?;
        let ranks = self.transport.ranks();
        let Some(gradients) = &self.gradients else {
            let reason = "dO is not set: call set(Operand::DO, …) first".into();
            return Err(Error::Unsupported { what: "gradients", reason });
        };
        let mut clock = Clock::new(&self.attention, ranks)?;
        sums.clear(gradients.down.iter().map(wgpu::Buffer::size));
        let mut of_last = None;
        for step in 0..ranks {
            let passes_on = step + 1 < ranks;
            let sent = passes_on.then(|| self.staging.send(&self.attention, &self.block_at(step).0.buffers()));
            self.submit_backward(gradients, step, &clock)?;
            // While that computes, the next block comes, and the gradients of the last one go on.
            let begin = Instant::now();
            if let Some(sent) = sent {
                self.staging.exchange(&self.attention, &mut self.transport, sent)?;
            }
            if let Some(sent) = of_last.take() {
                gradients.pass_on(&self.attention, &mut self.transport, sent, sums)?;
            }
            clock.transferred(step, begin);
            if passes_on {
                self.staging.receive(&self.attention, &self.block_at(step + 1).0.buffers());
            }
            of_last = Some(gradients.send(&self.attention));
        }
        if let Some(sent) = of_last {
            let begin = Instant::now();
            gradients.pass_on(&self.attention, &mut self.transport, sent, sums)?;
            clock.transferred(ranks, begin);
        }
        for (buffer, sums) in gradients.of_keys().zip(&sums.carried) {
            upload(&self.attention, buffer, 0, sums);
        }
        self.attention.queue().submit([]);
        clock.finish(&self.attention)
    }

    /// Submits the kernels of a step: the gradients that this rank's rows and the block that it has give each other.
    fn submit_backward(&self, gradients: &Gradients, step: usize, clock: &Clock) -> Result<(), Error> {
        let (block, of_rank) = self.block_at(step);
        let mut encoder = self.attention.device().create_command_encoder(&Default::default());
        clock.begin(&mut encoder, step);
        gradients.of_keys().for_each(|buffer| encoder.clear_buffer(buffer, 0, None));
        if step == 0 {
            gradients.dq.iter().for_each(|buffer| encoder.clear_buffer(buffer, 0, None));
        }
        let [o, lse] = [Operand::O, Operand::Lse].map(|operand| self.forward.results(operand).unwrap_or(&[]));
        for (row, rows) in self.parts.rows.iter().enumerate() {
            for (key, keys) in self.visible(*rows, of_rank) {
                let given = [&self.q[row], &block.k[key], &block.v[key], &o[row], &lse[row]];
                let [q, k, v, o, lse] = given.map(|buffer| buffer.slice(..));
                let written = [&gradients.d_o[row], &gradients.dq[row], &gradients.dk[key], &gradients.dv[key]];
                let [d_o, dq, dk, dv] = written.map(|buffer| buffer.slice(..));
                let buffers = BackwardBuffers::new(ForwardBuffers::new(q, k, v, o, lse), d_o, dq, dk, dv);
                gradients.operation.encode_call(&mut encoder, &buffers, &self.parts.call(*rows, keys))?;
            }
        }
        clock.end(&mut encoder, step);
        self.attention.queue().submit([encoder.finish()]);
        Ok(())
    }
}
