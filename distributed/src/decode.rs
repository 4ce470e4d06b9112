//! A few rows over keys that stay where they are: each rank attends over its own, and the parts are merged.

use crate::error::Error;
use crate::gpu::{read, storage, submit, upload};
use crate::hello::greet;
use crate::partition::{Scheme, Span, spans};
use crate::tell;
use crate::transport::Transport;
use wgpu_flash_attention::{
    AttentionLayout, AttentionProblem, AttentionShape, Element, FlashAttention, ForwardBuffers, MergeBuffers,
    MergeProblem, Operand, PreparedForward, PreparedMerge, Shard, wgpu,
};

/// One rank of attention over keys that are spread over all ranks, for the few new rows of a generation. Q goes to all ranks, and
/// partial O and LSE come back: nothing of the keys moves.
pub struct DecodeAttention<T: Transport> {
    transport: T,
    attention: FlashAttention,
    keys: Span,
    forward: PreparedForward,
    merge: PreparedMerge,
    element: Element,
    /// Q, K, V; O and LSE of this rank's keys.
    part: [wgpu::Buffer; 5],
    /// Those of all ranks, and the results.
    merged: [wgpu::Buffer; 4],
}

impl<T: Transport> DecodeAttention<T> {
    /// Prepares a rank's part of a problem: `shape.seqlen_q` rows over `shape.seqlen_kv` keys of all ranks together, in the `bshd`
    /// layout. It is the same on all ranks.
    ///
    /// # Errors
    /// [`Error::Mismatch`] if a rank has another problem; those of the library.
    pub fn new(mut transport: T, attention: &FlashAttention, problem: &AttentionProblem) -> Result<Self, Error> {
        let made = Self::prepare(&mut transport, attention, problem);
        let (keys, forward, merge, part, merged) = made.map_err(|error| tell(&mut transport, attention, error))?;
        let (attention, element) = (attention.clone(), problem.element);
        Ok(Self { transport, attention, keys, forward, merge, element, part, merged })
    }

    #[expect(clippy::type_complexity, reason = "the fields of the type, once")]
    fn prepare(
        transport: &mut T,
        attention: &FlashAttention,
        problem: &AttentionProblem,
    ) -> Result<(Span, PreparedForward, PreparedMerge, [wgpu::Buffer; 5], [wgpu::Buffer; 4]), Error> {
        greet(transport, "decode", problem)?;
        let shape = problem.shape;
        let keys = spans(Scheme::Ring, shape.seqlen_kv, transport.ranks(), transport.rank(), u32::MAX)[0];
        let mut part = problem.clone().with_f32_output();
        part.shape = AttentionShape { seqlen_kv: keys.len, ..shape };
        part.layout = AttentionLayout::bshd(&part.shape);
        let part = part.with_shard(Shard::of_lengths(shape.seqlen_q, shape.seqlen_kv).with_first_key(keys.first));
        let merge = MergeProblem::of(&part, transport.ranks() as u32);
        let forward = pollster::block_on(attention.prepare_forward(&part))?;
        let merge = pollster::block_on(attention.prepare_merge(&merge))?;
        let make = |bytes| storage(attention, "decode", bytes);
        let of = |operand| make(forward.plan().required_bytes(operand));
        let of_parts = |operand| make(merge.plan().required_bytes(operand));
        let parts = [of(Operand::Q)?, of(Operand::K)?, of(Operand::V)?, of(Operand::O)?, of(Operand::Lse)?];
        let merged =
            [of_parts(Operand::OParts)?, of_parts(Operand::LseParts)?, of_parts(Operand::O)?, of_parts(Operand::Lse)?];
        Ok((keys, forward, merge, parts, merged))
    }

    /// The keys of the whole that this rank has.
    pub fn keys(&self) -> Span {
        self.keys
    }

    /// Sets K and V of this rank's keys, `[batch, keys, num_heads_kv, head_dim]`.
    ///
    /// # Errors
    /// [`Error::Length`] for another number of bytes.
    pub fn set(&mut self, k: &[u8], v: &[u8]) -> Result<(), Error> {
        self.put(1, Operand::K, k)?;
        self.put(2, Operand::V, v)
    }

    fn put(&self, place: usize, operand: Operand, bytes: &[u8]) -> Result<(), Error> {
        let plan = self.forward.plan();
        let expected = (plan.required_len(operand) * self.element.size()) as usize;
        if bytes.len() != expected {
            return Err(Error::Length { name: operand.name(), found: bytes.len(), expected });
        }
        upload(&self.attention, &self.part[place], 0, bytes)
    }

    /// O `[batch, seqlen_q, num_heads, head_dim_v]` and LSE `[batch, num_heads, seqlen_q]` over the keys of all ranks, on all ranks.
    /// `q` is that of rank 0, which all get; the others give as many bytes of anything.
    ///
    /// # Errors
    /// Why this rank ended, or which other did and why.
    pub fn forward(&mut self, q: &[u8]) -> Result<(Vec<u8>, Vec<u8>), Error> {
        self.run(q).map_err(|error| tell(&mut self.transport, &self.attention, error))
    }

    fn run(&mut self, q: &[u8]) -> Result<(Vec<u8>, Vec<u8>), Error> {
        let q = self.transport.all_gather(q)?.swap_remove(0);
        self.put(0, Operand::Q, &q)?;
        let [q, k, v, o, lse] = self.part.each_ref().map(|buffer| buffer.slice(..));
        submit(&self.attention, "attention", |encoder| {
            Ok(self.forward.encode(encoder, &ForwardBuffers::new(q, k, v, o, lse))?)
        })?;
        let len = |operand| 4 * self.forward.plan().required_len(operand) as usize;
        let (of_o, of_lse) = (len(Operand::O), len(Operand::Lse));
        let mut own = read(&self.attention, &self.part[3])?;
        own.truncate(of_o);
        own.extend_from_slice(&read(&self.attention, &self.part[4])?[..of_lse]);
        for (rank, part) in (0..).zip(self.transport.all_gather(&own)?) {
            upload(&self.attention, &self.merged[0], rank * of_o as u64, &part[..of_o])?;
            upload(&self.attention, &self.merged[1], rank * of_lse as u64, &part[of_o..])?;
        }
        let [o_parts, lse_parts, o, lse] = self.merged.each_ref().map(|buffer| buffer.slice(..));
        submit(&self.attention, "the merge", |encoder| {
            Ok(self.merge.encode(encoder, &MergeBuffers::new(o_parts, lse_parts, o, lse))?)
        })?;
        let mut o = read(&self.attention, &self.merged[2])?;
        let mut lse = read(&self.attention, &self.merged[3])?;
        o.truncate((self.merge.plan().required_len(Operand::O) * self.element.size()) as usize);
        lse.truncate(of_lse);
        Ok((o, lse))
    }
}
