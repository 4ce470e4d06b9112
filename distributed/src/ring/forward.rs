//! The forward pass of a ring.

use super::modifiers::with_all;
use super::part::Parts;
use super::{RingAttention, rounds};
use crate::error::Error;
use crate::gpu::{storage, submit};
use crate::partition::Span;
use crate::timeline::{Clock, Timeline};
use crate::transport::Transport;
use std::time::Instant;
use wgpu_flash_attention::{
    Call, FlashAttention, ForwardBuffers, MergeBuffers, MergeProblem, Operand, PreparedForward, PreparedMerge, wgpu,
};

/// Operations and results of the forward pass.
pub(super) struct Forward {
    operation: PreparedForward,
    fold: PreparedMerge,
    /// From f32 to the problem's element.
    round: Option<PreparedMerge>,
    /// Running results of each span of rows, f32.
    o: Vec<wgpu::Buffer>,
    lse: Vec<wgpu::Buffer>,
    /// The result of one call.
    o_part: wgpu::Buffer,
    lse_part: wgpu::Buffer,
    /// O in the problem's element, and LSE once more.
    rounded: Option<(Vec<wgpu::Buffer>, wgpu::Buffer)>,
}

impl Forward {
    pub fn new(attention: &FlashAttention, parts: &Parts) -> Result<Self, Error> {
        let part = parts.longest.clone().with_f32_output();
        let fold = MergeProblem::of(&part, 1).into_running();
        let round = rounds(&part).then(|| MergeProblem::of(&part, 1));
        let buffers = |label, operand| -> Result<Vec<_>, Error> {
            parts.rows.iter().map(|_| storage(attention, label, parts.bytes(operand))).collect()
        };
        let of_lse = parts.bytes(Operand::Lse);
        let rounded = match &round {
            Some(_) => Some((buffers("O", Operand::O)?, storage(attention, "LSE", of_lse)?)),
            None => None,
        };
        Ok(Self {
            operation: pollster::block_on(attention.prepare_forward(&part))?,
            fold: pollster::block_on(attention.prepare_merge(&fold))?,
            round: round.map(|round| pollster::block_on(attention.prepare_merge(&round))).transpose()?,
            o: buffers("running O", Operand::OParts)?,
            lse: buffers("running LSE", Operand::Lse)?,
            o_part: storage(attention, "partial O", parts.bytes(Operand::OParts))?,
            lse_part: storage(attention, "partial LSE", of_lse)?,
            rounded,
        })
    }

    pub fn bytes(&self) -> u64 {
        let rounded = self.rounded.iter().flat_map(|(o, lse)| o.iter().chain([lse]));
        let all = self.o.iter().chain(&self.lse).chain([&self.o_part, &self.lse_part]).chain(rounded);
        all.map(wgpu::Buffer::size).sum::<u64>() + self.operation.plan().scratch_bytes()
    }

    /// O in the problem's element, or LSE.
    pub fn results(&self, operand: Operand) -> Option<&[wgpu::Buffer]> {
        match operand {
            Operand::O => Some(self.rounded.as_ref().map_or(&self.o, |(o, _)| o)),
            Operand::Lse => Some(&self.lse),
            _ => None,
        }
    }

    /// Attention of a span of rows over a span of keys: the first of the rows becomes their running result, the others are folded
    /// into it.
    fn encode(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        call: &Call,
        row: usize,
        ([q, k, v], entries): ([&wgpu::Buffer; 3], &[(Operand, &wgpu::Buffer)]),
        is_first: bool,
    ) -> Result<(), Error> {
        let (o, lse) = (&self.o[row], &self.lse[row]);
        let (o_part, lse_part) = if is_first { (o, lse) } else { (&self.o_part, &self.lse_part) };
        let [q, k, v, o_part, lse_part] = [q, k, v, o_part, lse_part].map(|buffer| buffer.slice(..));
        let buffers = with_all(ForwardBuffers::new(q, k, v, o_part, lse_part), entries);
        self.operation.encode_call(encoder, &buffers, call)?;
        if !is_first {
            let mut rows = Call::new();
            rows.seqlen_q = call.seqlen_q;
            self.fold.encode_call(encoder, &MergeBuffers::new(o_part, lse_part, o.slice(..), lse.slice(..)), &rows)?;
        }
        Ok(())
    }

    /// Running results of rows that have seen no key: O is 0, LSE their sink.
    fn encode_start(&self, encoder: &mut wgpu::CommandEncoder, start: &wgpu::Buffer) {
        for (o, lse) in self.o.iter().zip(&self.lse) {
            encoder.clear_buffer(o, 0, None);
            encoder.copy_buffer_to_buffer(start, 0, lse, 0, start.size());
        }
    }

    /// O in the problem's element.
    fn encode_rounding(&self, encoder: &mut wgpu::CommandEncoder, rows: &[Span]) -> Result<(), Error> {
        let Some((round, (rounded, lse_again))) = self.round.as_ref().zip(self.rounded.as_ref()) else { return Ok(()) };
        for (((o, lse), rounded), span) in self.o.iter().zip(&self.lse).zip(rounded).zip(rows) {
            let [o, lse, rounded, again] = [o, lse, rounded, lse_again].map(|buffer| buffer.slice(..));
            let rows = Call::new().with_seqlen_q(span.len);
            round.encode_call(encoder, &MergeBuffers::new(o, lse, rounded, again), &rows)?;
        }
        Ok(())
    }
}

impl<T: Transport> RingAttention<T> {
    pub(super) fn run_forward(&mut self) -> Result<Timeline, Error> {
        self.modifiers.check()?;
        self.transport.barrier()?;
        let ranks = self.transport.ranks();
        let mut clock = Clock::new(&self.attention, ranks)?;
        // A sink is a result before the first key.
        let mut has_result = vec![self.parts.has_sink; self.parts.rows.len()];
        for step in 0..ranks {
            let passes_on = step + 1 < ranks;
            let sent = passes_on.then(|| self.staging.send(&self.attention, &self.block_at(step).0.buffers()));
            let sent = sent.transpose()?;
            self.submit_forward(step, &mut has_result, &clock)?;
            // While that computes, the next block comes.
            if let Some(sent) = sent {
                let begin = Instant::now();
                self.staging.exchange(&self.attention, &mut self.transport, sent)?;
                clock.transferred(step, begin);
                self.staging.receive(&self.attention, &self.block_at(step + 1).0.buffers())?;
            }
        }
        clock.finish(&self.attention)
    }

    /// Submits the kernels of a step: this rank's rows over the block that it has.
    fn submit_forward(&self, step: usize, has_result: &mut [bool], clock: &Clock) -> Result<(), Error> {
        let (block, of_rank) = self.block_at(step);
        submit(&self.attention, "the forward pass", |encoder| {
            clock.begin(encoder, step);
            if let Some(start) = self.modifiers.start().filter(|_| step == 0) {
                self.forward.encode_start(encoder, start);
            }
            for (row, rows) in self.parts.rows.iter().enumerate() {
                for (key, keys) in self.visible(*rows, of_rank) {
                    let call = self.parts.call(*rows, keys);
                    let tensors = [&self.q[row], &block.k[key], &block.v[key]];
                    let entries = self.modifiers.of_pair(row, of_rank, key);
                    self.forward.encode(encoder, &call, row, (tensors, &entries), !has_result[row])?;
                    has_result[row] = true;
                }
                // Rows that have seen nothing have a result too, of no keys.
                if step + 1 == self.transport.ranks() && !has_result[row] {
                    let call = self.parts.call(*rows, Span { first: 0, len: 0 });
                    let tensors = [&self.q[row], &block.k[0], &block.v[0]];
                    let entries = self.modifiers.of_pair(row, of_rank, 0);
                    self.forward.encode(encoder, &call, row, (tensors, &entries), true)?;
                    has_result[row] = true;
                }
            }
            if step + 1 == self.transport.ranks() {
                self.forward.encode_rounding(encoder, &self.parts.rows)?;
            }
            clock.end(encoder, step);
            Ok(())
        })
        .map(drop)
    }

    /// The spans of a rank's keys that some of these rows see, with their numbers.
    pub(super) fn visible(&self, rows: Span, of_rank: usize) -> impl Iterator<Item = (usize, Span)> {
        let keys = self.parts.keys[of_rank].iter().copied().enumerate();
        keys.filter(move |(_, keys)| self.parts.visible_pairs(rows, *keys) > 0)
    }
}
