//! A few rows over keys that stay where they are: each rank attends over its own, and the parts are merged.

use crate::entries::Entries;
use crate::error::Error;
use crate::gpu::{read, storage, submit, upload};
use crate::hello::greet;
use crate::partition::{Scheme, Span, spans};
use crate::recut::{recut, refuse};
use crate::tell;
use crate::transport::Transport;
use wgpu_flash_attention::{
    AttentionProblem, AttentionShape, Element, FlashAttention, ForwardBuffers, MergeBuffers, MergeProblem, Operand,
    PreparedForward, PreparedMerge, Shard, wgpu,
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
    /// Of a bias and of a boolean mask, for this rank's keys.
    entries: Vec<(Operand, wgpu::Buffer)>,
    /// O and LSE of all ranks, and of the sink if there is one; the results.
    merged: [wgpu::Buffer; 4],
    has_sink: bool,
    /// Not yet set.
    awaited: Vec<Operand>,
}

/// What a rank has, but for its transport.
struct Made {
    keys: Span,
    forward: PreparedForward,
    merge: PreparedMerge,
    part: [wgpu::Buffer; 5],
    entries: Vec<(Operand, wgpu::Buffer)>,
    merged: [wgpu::Buffer; 4],
}

impl<T: Transport> DecodeAttention<T> {
    /// Prepares a rank's part of a problem: `shape.seqlen_q` rows over `shape.seqlen_kv` keys of all ranks together, in the `bshd`
    /// layout. It is the same on all ranks.
    ///
    /// # Errors
    /// [`Error::Mismatch`] if a rank has another problem; [`Error::Unsupported`] for sequences with lengths of their own, caches,
    /// block masks, data for own WGSL, other layouts; those of the library.
    pub fn new(mut transport: T, attention: &FlashAttention, problem: &AttentionProblem) -> Result<Self, Error> {
        let made = Self::prepare(&mut transport, attention, problem);
        let made = made.map_err(|error| tell(&mut transport, attention, error))?;
        let Made { keys, forward, merge, part, entries, merged } = made;
        let has_sink = problem.has_sink();
        let sink = has_sink.then_some(Operand::Sink);
        let awaited = [Operand::K, Operand::V].into_iter().chain(entries.iter().map(|(of, _)| *of)).chain(sink);
        let (attention, element, awaited) = (attention.clone(), problem.element, awaited.collect());
        Ok(Self { transport, attention, keys, forward, merge, element, part, entries, merged, has_sink, awaited })
    }

    fn prepare(transport: &mut T, attention: &FlashAttention, problem: &AttentionProblem) -> Result<Made, Error> {
        greet(transport, "decode", problem)?;
        refuse(problem)?;
        let shape = problem.shape;
        let keys = spans(Scheme::Ring, shape.seqlen_kv, transport.ranks(), transport.rank(), u32::MAX)[0];
        let all = Entries::all(problem)?;
        let of_keys = AttentionShape { seqlen_kv: keys.len, ..shape };
        let part = recut(problem, of_keys, (&all, [shape.seqlen_q, keys.len]), <[f32]>::to_vec).with_f32_output();
        let part = part.with_shard(Shard::of_lengths(shape.seqlen_q, shape.seqlen_kv).with_first_key(keys.first));
        // A sink is one more part, of no keys.
        let num_parts = transport.ranks() as u32 + u32::from(problem.has_sink());
        let merge = MergeProblem::of(&part, num_parts);
        let forward = pollster::block_on(attention.prepare_forward(&part))?;
        let merge = pollster::block_on(attention.prepare_merge(&merge))?;
        let make = |bytes| storage(attention, "decode", bytes);
        let of = |operand| make(forward.plan().required_bytes(operand));
        let of_parts = |operand| make(merge.plan().required_bytes(operand));
        let part = [of(Operand::Q)?, of(Operand::K)?, of(Operand::V)?, of(Operand::O)?, of(Operand::Lse)?];
        let merged =
            [of_parts(Operand::OParts)?, of_parts(Operand::LseParts)?, of_parts(Operand::O)?, of_parts(Operand::Lse)?];
        let of_entries = |entries: &Entries| Ok::<_, Error>((entries.operand, of(entries.operand)?));
        let entries = all.iter().map(of_entries).collect::<Result<_, _>>()?;
        Ok(Made { keys, forward, merge, part, entries, merged })
    }

    /// The keys of the whole that this rank has.
    pub fn keys(&self) -> Span {
        self.keys
    }

    /// Sets [`Operand::K`] and [`Operand::V`] of this rank's keys, `[batch, keys, num_heads_kv, head_dim]`; where the problem has
    /// them, [`Operand::Bias`] and [`Operand::KeyMask`] for its keys, `[batch or 1, num_heads or 1, seqlen_q or 1, keys or 1]`, those
    /// of a mask in packed bits, and [`Operand::Sink`] of all heads, f32 `[num_heads]`.
    ///
    /// # Errors
    /// [`Error::Length`] for another number of bytes; [`Error::Unsupported`] for other tensors.
    pub fn set(&mut self, operand: Operand, bytes: &[u8]) -> Result<(), Error> {
        match operand {
            Operand::K => self.put(&self.part[1], operand, bytes)?,
            Operand::V => self.put(&self.part[2], operand, bytes)?,
            Operand::Sink if self.has_sink => self.put_sink(bytes)?,
            _ => {
                let buffer = self.entries.iter().find(|(other, _)| *other == operand);
                let reason = || format!("the part of a rank has no {operand} to set");
                let unknown = || Error::Unsupported { what: "this tensor", reason: reason() };
                self.put(&buffer.ok_or_else(unknown)?.1, operand, bytes)?
            }
        }
        self.awaited.retain(|other| *other != operand);
        Ok(())
    }

    fn put(&self, buffer: &wgpu::Buffer, operand: Operand, bytes: &[u8]) -> Result<(), Error> {
        let plan = self.forward.plan();
        let size = plan.element(operand).map_or(0, |element| element.size());
        let expected = (plan.required_len(operand) * size) as usize;
        if bytes.len() != expected {
            return Err(Error::Length { name: operand.name(), found: bytes.len(), expected });
        }
        upload(&self.attention, buffer, 0, bytes)
    }

    /// The part of no keys, behind those of all ranks: O is 0, as new buffers are, and LSE the sink.
    fn put_sink(&self, bytes: &[u8]) -> Result<(), Error> {
        let shape = &self.forward.plan().problem().shape;
        let expected = 4 * shape.num_heads as usize;
        if bytes.len() != expected {
            return Err(Error::Length { name: Operand::Sink.name(), found: bytes.len(), expected });
        }
        let of_rows = |logit: &[u8]| logit.repeat(shape.seqlen_q as usize);
        let lse: Vec<u8> = bytes.chunks_exact(4).flat_map(of_rows).collect();
        let lse = lse.repeat(shape.batch as usize);
        upload(&self.attention, &self.merged[1], (self.transport.ranks() * lse.len()) as u64, &lse)
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
        if let Some(operand) = self.awaited.first() {
            let reason = format!("call set with {operand} first");
            return Err(Error::Unsupported { what: "a tensor that is not set", reason });
        }
        let q = self.transport.all_gather(q)?.swap_remove(0);
        self.put(&self.part[0], Operand::Q, &q)?;
        let [q, k, v, o, lse] = self.part.each_ref().map(|buffer| buffer.slice(..));
        submit(&self.attention, "attention", |encoder| {
            let buffers = ForwardBuffers::new(q, k, v, o, lse);
            let entries = self.entries.iter();
            let buffers = entries.fold(buffers, |buffers, (of, buffer)| buffers.with(*of, buffer.slice(..)));
            Ok(self.forward.encode(encoder, &buffers)?)
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
