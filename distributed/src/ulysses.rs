//! Attention in which ranks exchange heads for rows: each computes some heads of the whole sequence.

use crate::entries::Entries;
use crate::error::Error;
use crate::gpu::{read, storage, submit, upload};
use crate::hello::greet;
use crate::partition::{Scheme, Span, spans};
use crate::recut::{recut, refuse};
use crate::tell;
use crate::timeline::{Clock, Timeline};
use crate::transport::{Bytes, Transport, WriteOnly};
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;
use wgpu_flash_attention::{
    AttentionProblem, AttentionShape, BackwardBuffers, Element, FlashAttention, ForwardBuffers, InvalidProblem,
    Operand, PreparedBackward, PreparedForward, Shard, wgpu,
};

/// One rank of all-to-all attention (DeepSpeed-Ulysses): Q, K and V go from rows of all heads to all rows of some heads, and O
/// comes back. There is no merge, and each rank must have a KV head. Tensors of a rank are those of its rows:
/// `[batch, rows, num_heads, head_dim]`, LSE `[batch, num_heads, rows]`.
///
/// A bias and a boolean mask are contiguous in the whole problem. A rank has the entries of its rows for all keys: `[batch or 1,
/// num_heads or 1, rows or 1, seqlen_kv or 1]`, those of a mask in packed bits, with a 1 where the whole repeats them. Sinks are
/// those of all heads on all ranks, f32 `[num_heads]`.
///
/// Set tensors are in memory of the host, and the exchange comes before and after the kernels, not beside them.
pub struct UlyssesAttention<T: Transport> {
    transport: T,
    attention: FlashAttention,
    /// The whole, and this rank's heads of it.
    whole: AttentionProblem,
    part: AttentionProblem,
    /// Rows and keys of each rank.
    rows: Vec<Span>,
    keys: Vec<Span>,
    /// KV heads of each rank.
    heads_kv: Vec<Range<u32>>,
    forward: PreparedForward,
    backward: Option<PreparedBackward>,
    /// What was set: Q, K, V and dO of this rank's rows.
    given: [Vec<u8>; 4],
    /// Q, K, V, O, LSE and dO of this rank's heads.
    buffers: [wgpu::Buffer; 6],
    /// Of a bias and of a boolean mask.
    entries: Vec<OfHeads>,
    /// The logits of this rank's heads.
    sink: Option<wgpu::Buffer>,
    /// The sink, until it is set.
    awaits_sink: bool,
    /// O, LSE, dQ, dK and dV of this rank's rows; dSink of all heads.
    results: [Vec<u8>; 6],
}

/// Entries of a bias or a boolean mask.
struct OfHeads {
    /// Of the whole.
    entries: Entries,
    /// What was set: those of this rank's rows.
    given: Vec<u8>,
    /// Those of this rank's heads.
    buffer: wgpu::Buffer,
}

const GIVEN: [Operand; 4] = [Operand::Q, Operand::K, Operand::V, Operand::DO];
const RESULTS: [Operand; 6] = [Operand::O, Operand::Lse, Operand::Dq, Operand::Dk, Operand::Dv, Operand::DSink];

impl<T: Transport> UlyssesAttention<T> {
    /// Prepares a rank's part of a problem. `problem` is the whole, in the `bshd` layout, and the same on all ranks.
    ///
    /// # Errors
    /// [`Error::Mismatch`] if a rank has another problem; [`Error::Unsupported`] for more ranks than KV heads, sequences with lengths
    /// of their own, caches, block masks, data for own WGSL, and the gradient of a bias; those of the library.
    pub fn new(mut transport: T, attention: &FlashAttention, problem: &AttentionProblem) -> Result<Self, Error> {
        let made = Self::parts(&mut transport, problem).and_then(|(heads_kv, part)| {
            let forward = pollster::block_on(attention.prepare_forward(&part))?;
            let bytes = |operand| forward.plan().required_bytes(operand);
            let of = [Operand::Q, Operand::K, Operand::V, Operand::O, Operand::Lse, Operand::O];
            let made = of.into_iter().map(|operand| storage(attention, operand.name(), bytes(operand)));
            let buffers: Vec<_> = made.collect::<Result<_, _>>()?;
            let buffers = buffers.try_into().map_err(|_| Error::Gpu("a buffer is missing".into()))?;
            let of_heads = |entries: Entries| {
                let buffer = storage(attention, entries.operand.name(), bytes(entries.operand))?;
                Ok::<_, Error>(OfHeads { entries, given: Vec::new(), buffer })
            };
            let entries = Entries::all(problem)?.into_iter().map(of_heads).collect::<Result<Vec<_>, _>>()?;
            let sink = part.has_sink().then(|| storage(attention, "sink", bytes(Operand::Sink))).transpose()?;
            Ok((heads_kv, part, forward, buffers, entries, sink))
        });
        let (heads_kv, part, forward, buffers, entries, sink) =
            made.map_err(|error| tell(&mut transport, attention, error))?;
        let ranks = transport.ranks();
        let of = |seqlen| (0..ranks).map(|rank| spans(Scheme::Ring, seqlen, ranks, rank, u32::MAX)[0]).collect();
        Ok(Self {
            rows: of(problem.shape.seqlen_q),
            keys: of(problem.shape.seqlen_kv),
            transport,
            attention: attention.clone(),
            whole: problem.clone(),
            part,
            heads_kv,
            forward,
            backward: None,
            given: Default::default(),
            buffers,
            entries,
            awaits_sink: sink.is_some(),
            sink,
            results: Default::default(),
        })
    }

    fn parts(transport: &mut T, whole: &AttentionProblem) -> Result<(Vec<Range<u32>>, AttentionProblem), Error> {
        greet(transport, "ulysses", whole)?;
        let (rank, ranks) = (transport.rank() as u64, transport.ranks() as u64);
        let shape = &whole.shape;
        if ranks > u64::from(shape.num_heads_kv) {
            let reason = format!("num_heads_kv = {}; use fewer ranks, or RingAttention", shape.num_heads_kv);
            return Err(Error::Unsupported { what: "more ranks than KV heads", reason });
        }
        if !shape.num_heads.is_multiple_of(shape.num_heads_kv) {
            let (num_heads, num_heads_kv) = (shape.num_heads, shape.num_heads_kv);
            let refused = InvalidProblem::HeadsMismatch { num_heads, num_heads_kv };
            return Err(Error::Attention(refused.into()));
        }
        let first = |rank: u64| (u64::from(shape.num_heads_kv) * rank / ranks) as u32;
        let heads_kv: Vec<_> = (0..ranks).map(|rank| first(rank)..first(rank + 1)).collect();
        let part = heads_of(whole, heads_kv[rank as usize].clone())?;
        Ok((heads_kv, part))
    }

    /// The rows of the whole that this rank has.
    pub fn rows(&self) -> Span {
        self.rows[self.transport.rank()]
    }

    /// The keys of the whole that this rank has.
    pub fn keys(&self) -> Span {
        self.keys[self.transport.rank()]
    }

    /// The transport.
    pub fn transport(&mut self) -> &mut T {
        &mut self.transport
    }

    /// Sets Q, K, V or dO of this rank's rows; where the problem has them, the sink of all heads, and the entries of a bias
    /// or of a boolean mask for its rows.
    ///
    /// # Errors
    /// [`Error::Length`] for another number of bytes than the part has; [`Error::Unsupported`] for other tensors.
    pub fn set(&mut self, operand: Operand, bytes: &[u8]) -> Result<(), Error> {
        if operand == Operand::Sink {
            return self.set_sink(bytes);
        }
        let rows = self.rows().len;
        if let Some(of) = self.entries.iter_mut().find(|of| of.entries.operand == operand) {
            let (found, expected) = (bytes.len(), of.entries.bytes(rows, self.whole.shape.seqlen_kv) as usize);
            if found != expected {
                return Err(Error::Length { name: operand.name(), found, expected });
            }
            of.given = bytes.to_vec();
            return Ok(());
        }
        let Some(place) = GIVEN.iter().position(|other| *other == operand) else { return Err(not_here(operand)) };
        let side = self.side(operand);
        let rows = side.rows[self.transport.rank()].len as usize;
        let expected = self.whole.shape.batch as usize * rows * side.num_heads() * side.head_bytes;
        if bytes.len() != expected {
            return Err(Error::Length { name: operand.name(), found: bytes.len(), expected });
        }
        self.given[place] = bytes.to_vec();
        Ok(())
    }

    fn set_sink(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let Some(sink) = &self.sink else { return Err(not_here(Operand::Sink)) };
        let (found, expected) = (bytes.len(), 4 * self.whole.shape.num_heads as usize);
        if found != expected {
            return Err(Error::Length { name: Operand::Sink.name(), found, expected });
        }
        let heads = &self.side(Operand::Q).heads[self.transport.rank()];
        upload(&self.attention, sink, 0, &bytes[4 * heads.start as usize..4 * heads.end as usize])?;
        self.awaits_sink = false;
        Ok(())
    }

    /// O and LSE after a forward call, dQ, dK and dV in f32 after a backward call, of this rank's rows and keys; with a sink also
    /// dSink of all heads, f32 `[num_heads]`.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for other tensors.
    pub fn get(&self, operand: Operand) -> Result<Vec<u8>, Error> {
        let place = RESULTS.iter().position(|other| *other == operand).ok_or_else(|| not_here(operand))?;
        Ok(self.results[place].clone())
    }

    /// O and LSE of this rank's rows.
    ///
    /// # Errors
    /// Why this rank ended, or which other did and why.
    pub fn forward(&mut self) -> Result<Timeline, Error> {
        self.run_forward().map_err(|error| tell(&mut self.transport, &self.attention, error))
    }

    /// After a forward call: dQ of this rank's rows, dK and dV of its keys, in f32.
    ///
    /// # Errors
    /// As `forward`.
    pub fn backward(&mut self) -> Result<Timeline, Error> {
        self.run_backward().map_err(|error| tell(&mut self.transport, &self.attention, error))
    }

    fn run_forward(&mut self) -> Result<Timeline, Error> {
        self.transport.barrier()?;
        let mut clock = Clock::new(&self.attention, 1)?;
        let begin = Instant::now();
        for tensor in 0..3 {
            self.bring(tensor, tensor)?;
        }
        self.bring_entries()?;
        clock.transferred(0, begin);
        submit(&self.attention, "the forward pass", |encoder| {
            clock.begin(encoder, 0);
            self.forward.encode(encoder, &self.forward_buffers())?;
            clock.end(encoder, 0);
            Ok(())
        })?;
        for (result, buffer) in [(0, 3), (1, 4)] {
            let begin = Instant::now();
            let all = read(&self.attention, &self.buffers[buffer])?;
            self.results[result] = self.side(RESULTS[result]).to_rows(&mut self.transport, &all)?;
            clock.transferred(1, begin);
        }
        clock.finish(&self.attention)
    }

    fn run_backward(&mut self) -> Result<Timeline, Error> {
        let part = self.part.clone().with_f32_gradients();
        if self.backward.is_none() {
            self.backward = Some(pollster::block_on(self.attention.prepare_backward(&part))?);
        }
        self.transport.barrier()?;
        let mut clock = Clock::new(&self.attention, 1)?;
        let begin = Instant::now();
        self.bring(3, 5)?;
        clock.transferred(0, begin);
        let Some(backward) = &self.backward else { return clock.finish(&self.attention) };
        let gradients = [Operand::Dq, Operand::Dk, Operand::Dv];
        let made = gradients.map(|of| storage(&self.attention, of.name(), backward.plan().required_bytes(of)));
        let [dq, dk, dv] = made;
        let gradients = [dq?, dk?, dv?];
        let [dq, dk, dv] = gradients.each_ref().map(|buffer| buffer.slice(..));
        let d_sink = self.sink.as_ref().map(|sink| storage(&self.attention, "dsink", sink.size())).transpose()?;
        let buffers = BackwardBuffers::new(self.forward_buffers(), self.buffers[5].slice(..), dq, dk, dv);
        let buffers = buffers.with(Operand::DSink, d_sink.as_ref().map(|d_sink| d_sink.slice(..)));
        submit(&self.attention, "the backward pass", |encoder| {
            clock.begin(encoder, 0);
            backward.encode(encoder, &buffers)?;
            clock.end(encoder, 0);
            Ok(())
        })?;
        for (gradient, result) in gradients.iter().zip(2..) {
            let begin = Instant::now();
            let all = read(&self.attention, gradient)?;
            self.results[result] = self.side(RESULTS[result]).to_rows(&mut self.transport, &all)?;
            clock.transferred(1, begin);
        }
        if let Some(d_sink) = &d_sink {
            self.results[5] = self.gather_heads(&read(&self.attention, d_sink)?)?;
        }
        clock.finish(&self.attention)
    }

    /// A word for each of all heads, from those of this rank's heads.
    fn gather_heads(&mut self, own: &[u8]) -> Result<Vec<u8>, Error> {
        let heads = self.side(Operand::Q).heads;
        let most = heads.iter().map(Range::len).max().unwrap_or(0);
        let mut own = own.to_vec();
        own.resize(4 * most, 0);
        let gathered = self.transport.all_gather(&own)?;
        Ok(gathered.iter().zip(&heads).flat_map(|(bytes, heads)| &bytes[..4 * heads.len()]).copied().collect())
    }

    fn forward_buffers(&self) -> ForwardBuffers<'_> {
        let [q, k, v, o, lse, _] = self.buffers.each_ref().map(|buffer| buffer.slice(..));
        let mut buffers = ForwardBuffers::new(q, k, v, o, lse);
        for of in &self.entries {
            buffers = buffers.with(of.entries.operand, of.buffer.slice(..));
        }
        buffers.with(Operand::Sink, self.sink.as_ref().map(|sink| sink.slice(..)))
    }

    /// Exchanges entries, and uploads those of this rank's heads.
    fn bring_entries(&mut self) -> Result<(), Error> {
        let not_set = |operand: Operand| {
            let reason = format!("call set with it; the problem has a {operand}");
            Error::Unsupported { what: "a tensor that is not set", reason }
        };
        if self.awaits_sink {
            return Err(not_set(Operand::Sink));
        }
        let (rank, seqlen_kv, of_q) = (self.transport.rank(), self.whole.shape.seqlen_kv, self.side(Operand::Q).heads);
        for OfHeads { entries, given, buffer } in &self.entries {
            if given.len() as u64 != entries.bytes(self.rows[rank].len, seqlen_kv) {
                return Err(not_set(entries.operand));
            }
            let [batch, heads] = entries.groups();
            let side = Side {
                batch: batch as usize,
                rows: self.rows.clone(),
                heads: if heads == 1 { vec![0..1; of_q.len()] } else { of_q.clone() },
                head_bytes: entries.row_bytes(seqlen_kv) as usize,
                is_lse: true,
            };
            let all = if entries.has_rows() {
                side.to_heads(&mut self.transport, given)?
            } else {
                side.cut(given, 1, heads as usize, (Span { first: 0, len: 1 }, side.heads[rank].clone()))
            };
            upload(&self.attention, buffer, 0, &all)?;
        }
        Ok(())
    }

    /// Exchanges a tensor that was set, and uploads this rank's heads of it.
    fn bring(&mut self, given: usize, buffer: usize) -> Result<(), Error> {
        let side = self.side(GIVEN[given]);
        let rows = side.rows[self.transport.rank()].len as usize;
        let expected = side.batch * rows * side.num_heads() * side.head_bytes;
        if self.given[given].len() != expected {
            return Err(not_here(GIVEN[given]));
        }
        let all = side.to_heads(&mut self.transport, &self.given[given])?;
        upload(&self.attention, &self.buffers[buffer], 0, &all)
    }

    /// How a tensor is cut.
    fn side(&self, operand: Operand) -> Side {
        let shape = &self.whole.shape;
        let group = shape.num_heads / shape.num_heads_kv.max(1);
        let of_kv = matches!(operand, Operand::K | Operand::V | Operand::Dk | Operand::Dv);
        let dim = match operand {
            Operand::Q | Operand::K | Operand::Dq | Operand::Dk => shape.head_dim,
            Operand::Lse => 1,
            _ => shape.head_dim_v,
        };
        let in_f32 = matches!(operand, Operand::Lse | Operand::Dq | Operand::Dk | Operand::Dv);
        let size = if in_f32 { Element::F32.size() } else { self.whole.element.size() };
        let scale = if of_kv { 1 } else { group };
        Side {
            batch: shape.batch as usize,
            rows: if of_kv { self.keys.clone() } else { self.rows.clone() },
            heads: self.heads_kv.iter().map(|heads| heads.start * scale..heads.end * scale).collect(),
            head_bytes: dim as usize * size as usize,
            is_lse: operand == Operand::Lse,
        }
    }
}

fn not_here(operand: Operand) -> Error {
    Error::Unsupported { what: "this tensor", reason: format!("{operand} is none of this rank's, or not yet there") }
}

/// A tensor of the whole: which rows and heads each rank has.
struct Side {
    batch: usize,
    rows: Vec<Span>,
    heads: Vec<Range<u32>>,
    /// Bytes of a row of a head.
    head_bytes: usize,
    /// `[batch, heads, rows]`, others `[batch, rows, heads, dim]`.
    is_lse: bool,
}

impl Side {
    fn num_heads(&self) -> usize {
        self.heads.last().map_or(0, |heads| heads.end as usize)
    }

    fn num_rows(&self) -> usize {
        self.rows.last().map_or(0, |rows| (rows.first + rows.len) as usize)
    }

    /// Bytes of some rows of some heads, of all sequences.
    fn bytes(&self, rows: Span, heads: &Range<u32>) -> usize {
        self.batch * rows.len as usize * heads.len() * self.head_bytes
    }

    /// From this rank's rows of all heads to all rows of its heads.
    fn to_heads(&self, transport: &mut impl Transport, own: &[u8]) -> Result<Vec<u8>, Error> {
        let (rank, ranks) = (transport.rank(), transport.ranks());
        let heads = self.heads[rank].clone();
        let mut all = vec![0; self.batch * self.num_rows() * heads.len() * self.head_bytes];
        for distance in 0..ranks {
            let (to, from) = ((rank + distance) % ranks, (rank + ranks - distance) % ranks);
            let sent: Bytes = Arc::new(self.cut(
                own,
                self.rows[rank].len as usize,
                self.num_heads(),
                (Span { first: 0, ..self.rows[rank] }, self.heads[to].clone()),
            ));
            let mut received = vec![0; self.bytes(self.rows[from], &heads)];
            transport.exchange(to, sent, from, WriteOnly::from_mut(&mut received[..]))?;
            self.put(&mut all, self.num_rows(), heads.len(), (self.rows[from], 0..heads.len() as u32), &received);
        }
        Ok(all)
    }

    /// Back: from all rows of this rank's heads to its rows of all heads.
    fn to_rows(&self, transport: &mut impl Transport, all: &[u8]) -> Result<Vec<u8>, Error> {
        let (rank, ranks) = (transport.rank(), transport.ranks());
        let (own_rows, heads) = (Span { first: 0, ..self.rows[rank] }, self.heads[rank].len());
        let mut own = vec![0; self.batch * own_rows.len as usize * self.num_heads() * self.head_bytes];
        for distance in 0..ranks {
            let (to, from) = ((rank + distance) % ranks, (rank + ranks - distance) % ranks);
            let part = (self.rows[to], 0..heads as u32);
            let sent: Bytes = Arc::new(self.cut(all, self.num_rows(), heads, part));
            let mut received = vec![0; self.bytes(own_rows, &self.heads[from])];
            transport.exchange(to, sent, from, WriteOnly::from_mut(&mut received[..]))?;
            let place = (own_rows, self.heads[from].clone());
            self.put(&mut own, own_rows.len as usize, self.num_heads(), place, &received);
        }
        Ok(own)
    }

    /// Where the runs of neighbouring bytes of a part lie in a tensor with so many rows and heads, in the part's order.
    fn runs(&self, rows: usize, heads: usize, (part_rows, part_heads): (Span, Range<u32>)) -> Vec<Range<usize>> {
        let (first, len) = (part_rows.first as usize, part_rows.len as usize);
        let of = |index: usize, count: usize| index * self.head_bytes..(index + count) * self.head_bytes;
        let (head, count) = (part_heads.start as usize, part_heads.len());
        (0..self.batch)
            .flat_map(|sequence| {
                if self.is_lse {
                    let of_head = |head: usize| of((sequence * heads + head) * rows + first, len);
                    (head..head + count).map(of_head).collect::<Vec<_>>()
                } else {
                    let of_row = |row: usize| of((sequence * rows + first + row) * heads + head, count);
                    (0..len).map(of_row).collect()
                }
            })
            .collect()
    }

    fn cut(&self, from: &[u8], rows: usize, heads: usize, part: (Span, Range<u32>)) -> Vec<u8> {
        self.runs(rows, heads, part).into_iter().flat_map(|run| &from[run]).copied().collect()
    }

    fn put(&self, to: &mut [u8], rows: usize, heads: usize, part: (Span, Range<u32>), bytes: &[u8]) {
        let mut rest = bytes;
        for run in self.runs(rows, heads, part) {
            let (own, behind) = rest.split_at(run.len());
            rest = behind;
            to[run].copy_from_slice(own);
        }
    }
}

/// Some KV heads of a problem, with the query heads that share them.
fn heads_of(whole: &AttentionProblem, heads_kv: Range<u32>) -> Result<AttentionProblem, Error> {
    refuse(whole)?;
    if whole.has_bias_gradient() {
        let reason = "ranks that exchange heads do not give it; RingAttention does".into();
        return Err(Error::Unsupported { what: "the gradient of a bias", reason });
    }
    let group = whole.shape.num_heads / whole.shape.num_heads_kv.max(1);
    let (first, num_heads) = (heads_kv.start * group, heads_kv.len() as u32 * group);
    let shape = AttentionShape { num_heads, num_heads_kv: heads_kv.len() as u32, ..whole.shape };
    let entries: Vec<_> = Entries::all(whole)?.iter().map(|entries| entries.of_heads(num_heads)).collect();
    let slopes = |slopes: &[f32]| {
        let own = first as usize..(first + num_heads) as usize;
        let of_sequences = slopes.chunks(whole.shape.num_heads.max(1) as usize);
        of_sequences.flat_map(|of| of.get(own.clone()).unwrap_or(&[])).copied().collect()
    };
    let part = recut(whole, shape, (&entries, [shape.seqlen_q, shape.seqlen_kv]), slopes);
    let shard = Shard::of_lengths(shape.seqlen_q, shape.seqlen_kv).with_first_head(first, whole.shape.num_heads);
    let part = part.with_shard(shard);
    Ok(if whole.has_sink() { part.with_sink() } else { part })
}
