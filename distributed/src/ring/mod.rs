//! Attention in which K and V pass from rank to rank: each rank keeps its rows, and sees every block of keys once.

mod add;
mod backward;
mod forward;
mod modifiers;
mod part;

use crate::error::Error;
use crate::gpu::{read, storage, upload};
use crate::hello::greet;
use crate::partition::{GRAIN, Scheme, Span, spans};
use crate::recut::refuse;
use crate::staging::Staging;
use crate::tell;
use crate::timeline::Timeline;
use crate::transport::Transport;
use backward::Gradients;
use forward::Forward;
use modifiers::Modifiers;
use part::{Parts, largest_span};
use wgpu_flash_attention::{AttentionProblem, Element, FlashAttention, Operand, wgpu};

/// K and V of a rank's keys: a buffer of each for every span.
struct Block {
    k: Vec<wgpu::Buffer>,
    v: Vec<wgpu::Buffer>,
}

impl Block {
    fn new(attention: &FlashAttention, parts: &Parts) -> Result<Self, Error> {
        let make = |label, bytes| -> Result<Vec<_>, Error> {
            (0..parts.num_key_spans()).map(|_| storage(attention, label, bytes)).collect()
        };
        Ok(Self { k: make("K", parts.bytes(Operand::K))?, v: make("V", parts.bytes(Operand::V))? })
    }

    fn buffers(&self) -> Vec<&wgpu::Buffer> {
        self.k.iter().chain(&self.v).collect()
    }
}

/// One rank of attention in a ring, by [`Scheme::Ring`] or [`Scheme::Zigzag`]. Tensors of a rank are those of its spans, one
/// behind the other: Q, O and dO are `[spans][batch, rows of the span, num_heads, head_dim]`, K and V the same of keys, LSE
/// `[spans][batch, num_heads, rows of the span]` in f32.
///
/// All ranks make the same calls in the same order. Causal masks, windows, softcap, ALiBi, dropout and the caller's own WGSL go by
/// positions of the whole problem. A boolean mask, or one in own WGSL, saves no work: all pairs are computed.
///
/// A bias and a boolean mask are contiguous in the whole problem. A rank has the entries of its rows for all keys: `[spans][batch or
/// 1, num_heads or 1, rows of the span or 1, seqlen_kv or 1]`, those of a mask in packed bits, with a 1 where the whole repeats
/// them. Sinks are those of all heads on all ranks, f32 `[num_heads]`.
pub struct RingAttention<T: Transport> {
    transport: T,
    attention: FlashAttention,
    parts: Parts,
    q: Vec<wgpu::Buffer>,
    own: Block,
    /// Of another rank: the last one was read when the next is written, since a device takes commands in order.
    passing: Option<Block>,
    staging: Staging,
    forward: Forward,
    modifiers: Modifiers,
    gradients: Option<Gradients>,
}

impl<T: Transport> RingAttention<T> {
    /// Prepares a rank's part of a problem. `problem` is the whole, in the `bshd` layout, and the same on all ranks.
    ///
    /// # Errors
    /// [`Error::Mismatch`] if a rank has another problem; [`Error::Unsupported`] for problems with lengths of sequences, caches,
    /// block masks, data for own WGSL, or the gradient of a bias that repeats along rows or keys; those of the library.
    pub fn new(
        mut transport: T,
        attention: &FlashAttention,
        scheme: Scheme,
        problem: &AttentionProblem,
    ) -> Result<Self, Error> {
        let made = Self::parts(&mut transport, scheme, problem).and_then(|parts| {
            let buffers = |label, operand| -> Result<Vec<_>, Error> {
                parts.rows.iter().map(|_| storage(attention, label, parts.bytes(operand))).collect()
            };
            let q = buffers("Q", Operand::Q)?;
            let own = Block::new(attention, &parts)?;
            let passing = (transport.ranks() > 1).then(|| Block::new(attention, &parts)).transpose()?;
            let sizes: Vec<u64> = passing.iter().flat_map(Block::buffers).map(wgpu::Buffer::size).collect();
            let staging = Staging::new(attention, &sizes)?;
            let forward = Forward::new(attention, &parts)?;
            let modifiers = Modifiers::new(attention, &parts)?;
            Ok((parts, q, own, passing, staging, forward, modifiers))
        });
        match made {
            Ok((parts, q, own, passing, staging, forward, modifiers)) => {
                let attention = attention.clone();
                let gradients = None;
                Ok(Self { transport, attention, parts, q, own, passing, staging, forward, modifiers, gradients })
            }
            Err(error) => Err(tell(&mut transport, attention, error)),
        }
    }

    fn parts(transport: &mut T, scheme: Scheme, problem: &AttentionProblem) -> Result<Parts, Error> {
        greet(transport, scheme.name(), problem)?;
        refuse(problem)?;
        let most = largest_span(problem)?;
        let shape = &problem.shape;
        let of = |seqlen, rank| spans(scheme, seqlen, transport.ranks(), rank, most);
        let rows = of(shape.seqlen_q, transport.rank());
        let keys = (0..transport.ranks()).map(|rank| of(shape.seqlen_kv, rank)).collect();
        Parts::new(problem, rows, keys)
    }

    /// The rows of the whole problem that this rank has, span after span.
    pub fn rows(&self) -> &[Span] {
        &self.parts.rows
    }

    /// The keys of the whole problem that this rank has at the start.
    pub fn keys(&self) -> &[Span] {
        &self.parts.keys[self.transport.rank()]
    }

    /// The transport.
    pub fn transport(&mut self) -> &mut T {
        &mut self.transport
    }

    /// Buffers that a rank holds, in bytes.
    pub fn device_bytes(&self) -> u64 {
        let blocks = self.passing.iter().chain([&self.own]);
        let blocks: u64 = blocks.flat_map(Block::buffers).map(wgpu::Buffer::size).sum();
        let q: u64 = self.q.iter().map(wgpu::Buffer::size).sum();
        blocks + q + self.forward.bytes() + self.modifiers.bytes() + self.gradients.as_ref().map_or(0, Gradients::bytes)
    }

    /// Sets a tensor of this rank: [`Operand::Q`], [`Operand::K`], [`Operand::V`], and for the gradients [`Operand::DO`]; where the
    /// problem has them, [`Operand::Sink`], those of all heads, [`Operand::Bias`] and [`Operand::KeyMask`].
    ///
    /// # Errors
    /// [`Error::Length`] for another number of bytes than the rank's part has; [`Error::Unsupported`] for other tensors;
    /// [`Error::Gpu`].
    pub fn set(&mut self, operand: Operand, bytes: &[u8]) -> Result<(), Error> {
        if self.modifiers.set(&self.attention, &self.parts, operand, bytes)? {
            return Ok(());
        }
        let spans = self.spans(operand)?.to_vec();
        let expected: usize = spans.iter().map(|span| self.parts.bytes_of(operand, *span)).sum();
        if bytes.len() != expected {
            return Err(Error::Length { name: operand.name(), found: bytes.len(), expected });
        }
        self.make_room(operand)?;
        let (mut rest, groups) = (bytes, self.parts.groups(operand));
        for (number, span) in spans.iter().enumerate() {
            let of_sequence = self.parts.bytes_of(operand, *span) / groups.max(1);
            for sequence in 0..groups {
                let (own, behind) = rest.split_at(of_sequence);
                rest = behind;
                self.set_rows(operand, number, sequence as u32, 0, own)?;
            }
        }
        Ok(())
    }

    /// Sets some rows of such a tensor, `[rows, num_heads, head_dim]`: of one span, of one sequence, from the row `first` of the
    /// span on. So a rank needs no memory of the host for its whole part.
    ///
    /// # Errors
    /// [`Error::Length`] for bytes that are not whole rows, or more than the span has from there on; [`Error::Unsupported`] for
    /// other tensors, and where `first` is no multiple of 4; [`Error::Gpu`].
    pub fn set_rows(
        &mut self,
        operand: Operand,
        span: usize,
        sequence: u32,
        first: u32,
        bytes: &[u8],
    ) -> Result<(), Error> {
        let len = self.spans(operand)?.get(span).map_or(0, |span| span.len);
        self.make_room(operand)?;
        let row = self.parts.row_bytes(operand);
        let expected = (u64::from(len.saturating_sub(first)) * row) as usize;
        let is_in_batch = (sequence as usize) < self.parts.groups(operand);
        if bytes.len() > expected
            || !(bytes.len() as u64).is_multiple_of(row.max(1))
            || !(is_in_batch || bytes.is_empty())
        {
            let expected = if is_in_batch { expected } else { 0 };
            return Err(Error::Length { name: operand.name(), found: bytes.len(), expected });
        }
        if !first.is_multiple_of(GRAIN) {
            let reason = format!("it is {first}; it must be a multiple of {GRAIN}");
            return Err(Error::Unsupported { what: "this first row", reason });
        }
        let d_o = self.gradients.as_ref().map_or(&[][..], |gradients| gradients.d_o());
        let buffers = match operand {
            Operand::K => &self.own.k,
            Operand::V => &self.own.v,
            Operand::DO => d_o,
            _ => &self.q[..],
        };
        // A buffer has room for the longest span in each sequence.
        let at = u64::from(sequence) * self.parts.stride(operand) + u64::from(first) * row;
        buffers.get(span).map_or(Ok(()), |buffer| upload(&self.attention, buffer, at, bytes))
    }

    /// Gradients take memory only where dO is set.
    fn make_room(&mut self, operand: Operand) -> Result<(), Error> {
        if operand == Operand::DO && self.gradients.is_none() {
            self.gradients = Some(Gradients::new(&self.attention, &self.parts, self.transport.ranks())?);
        }
        Ok(())
    }

    /// The spans of a tensor that is set.
    fn spans(&self, operand: Operand) -> Result<&[Span], Error> {
        match operand {
            Operand::Q | Operand::DO => Ok(self.rows()),
            Operand::K | Operand::V => Ok(self.keys()),
            _ => Err(not_here(operand)),
        }
    }

    /// A tensor of this rank: [`Operand::O`] and [`Operand::Lse`] after a forward call, [`Operand::Dq`], [`Operand::Dk`] and
    /// [`Operand::Dv`] after a backward call, these in f32. With a sink also [`Operand::DSink`], f32 `[num_heads]`, the sum over all
    /// ranks; with the gradient of a bias [`Operand::DBias`], which lies as the bias does on this rank, in its type.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for other tensors; [`Error::Gpu`].
    pub fn get(&self, operand: Operand) -> Result<Vec<u8>, Error> {
        if let (Operand::DSink | Operand::DBias, Some(gradients)) = (operand, &self.gradients) {
            let found = gradients.of_modifier(&self.attention, &self.parts, operand)?;
            return found.ok_or_else(|| not_here(operand));
        }
        let of_gradients = self.gradients.as_ref().and_then(|gradients| gradients.buffers(operand));
        let buffers = self.forward.results(operand).or(of_gradients).ok_or_else(|| not_here(operand))?;
        let is_of_keys = matches!(operand, Operand::Dk | Operand::Dv);
        let spans = if is_of_keys { self.keys() } else { self.rows() };
        let mut bytes = Vec::new();
        for (buffer, span) in buffers.iter().zip(spans) {
            let all = read(&self.attention, buffer)?;
            let (stride, groups) = (self.parts.stride(operand) as usize, self.parts.groups(operand));
            let own = self.parts.bytes_of(operand, *span) / groups.max(1);
            (0..groups).for_each(|group| bytes.extend_from_slice(&all[group * stride..][..own]));
        }
        Ok(bytes)
    }

    /// O and LSE of this rank's rows over all keys.
    ///
    /// # Errors
    /// Why this rank ended, or which other did and why.
    pub fn forward(&mut self) -> Result<Timeline, Error> {
        let result = self.run_forward();
        result.map_err(|error| tell(&mut self.transport, &self.attention, error))
    }

    /// After a forward call: dQ of this rank's rows, dK and dV of its keys, in f32. Q, K, V and dO must be set.
    ///
    /// # Errors
    /// As `forward`.
    pub fn backward(&mut self) -> Result<Timeline, Error> {
        let result = self.run_backward();
        result.map_err(|error| tell(&mut self.transport, &self.attention, error))
    }

    /// The block of keys that this rank has at a step, and whose it is.
    fn block_at(&self, step: usize) -> (&Block, usize) {
        let (rank, ranks) = (self.transport.rank(), self.transport.ranks());
        let of_rank = (rank + ranks - step) % ranks;
        (self.block_of(of_rank), of_rank)
    }

    /// Where the keys of a rank are while this rank has them.
    fn block_of(&self, of_rank: usize) -> &Block {
        let passing = self.passing.as_ref().filter(|_| of_rank != self.transport.rank());
        passing.unwrap_or(&self.own)
    }
}

fn not_here(operand: Operand) -> Error {
    Error::Unsupported { what: "this tensor", reason: format!("{operand} is none of this rank's, or not yet computed") }
}

/// Whether partial results need a rounding at the end.
fn rounds(problem: &AttentionProblem) -> bool {
    problem.element != Element::F32
}
