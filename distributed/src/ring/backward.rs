//! The backward pass of a ring: dQ stays with its rows, dK and dV travel with their keys, one step behind.

use super::RingAttention;
use super::add::Adder;
use super::modifiers::{OfPairs, with_all};
use super::part::Parts;
use crate::error::Error;
use crate::gpu::{read, storage, submit};
use crate::partition::Span;
use crate::staging::Staging;
use crate::timeline::{Clock, Timeline};
use crate::transport::Transport;
use std::time::Instant;
use wgpu_flash_attention::{
    BackwardBuffers, Call, Element, FlashAttention, ForwardBuffers, Operand, PreparedBackward, wgpu,
};

/// Operations and results of the backward pass, all in f32.
pub(super) struct Gradients {
    operation: PreparedBackward,
    d_o: Vec<wgpu::Buffer>,
    dq: Vec<wgpu::Buffer>,
    own: OfKeys,
    /// Where there are several ranks.
    travel: Option<Travel>,
    sink: Option<OfSink>,
    /// dBias, where it is asked for.
    d_bias: Option<OfPairs>,
}

/// dSink. Every call gives that of its rows, whatever its keys: LSE and D are of all keys. So one call of each span counts.
struct OfSink {
    /// Of each span of rows, `[num_heads]`.
    of_rows: Vec<wgpu::Buffer>,
    /// What the other calls write.
    ignored: wgpu::Buffer,
    /// Of all rows of all ranks.
    sum: Vec<f32>,
}

impl OfSink {
    fn new(attention: &FlashAttention, parts: &Parts) -> Result<Self, Error> {
        let make = || storage(attention, "dsink", 4 * u64::from(parts.longest.shape.num_heads));
        let of_rows = parts.rows.iter().map(|_| make()).collect::<Result<_, _>>()?;
        Ok(Self { of_rows, ignored: make()?, sum: Vec::new() })
    }

    /// Sums it up over all ranks, in f64 and in their order. It has a number for each head.
    fn sum_up(&mut self, attention: &FlashAttention, transport: &mut impl Transport, heads: u32) -> Result<(), Error> {
        let mut own = vec![0.0; heads as usize];
        for of_rows in &self.of_rows {
            let bytes = read(attention, of_rows)?;
            for (sum, number) in own.iter_mut().zip(bytes.as_chunks::<4>().0) {
                *sum += f64::from(f32::from_le_bytes(*number));
            }
        }
        let bytes: Vec<u8> = own.iter().flat_map(|sum| sum.to_le_bytes()).collect();
        let mut sums = vec![0.0; own.len()];
        for of_rank in transport.all_gather(&bytes)? {
            for (sum, number) in sums.iter_mut().zip(of_rank.as_chunks::<8>().0) {
                *sum += f64::from_le_bytes(*number);
            }
        }
        self.sum = sums.into_iter().map(|sum| sum as f32).collect();
        Ok(())
    }
}

/// dK and dV of a block.
struct OfKeys {
    dk: Vec<wgpu::Buffer>,
    dv: Vec<wgpu::Buffer>,
}

impl OfKeys {
    fn new(attention: &FlashAttention, parts: &Parts) -> Result<Self, Error> {
        let make = |label, operand| -> Result<Vec<_>, Error> {
            (0..parts.num_key_spans()).map(|_| storage(attention, label, parts.bytes(operand))).collect()
        };
        Ok(Self { dk: make("dK", Operand::Dk)?, dv: make("dV", Operand::Dv)? })
    }

    fn buffers(&self) -> Vec<&wgpu::Buffer> {
        self.dk.iter().chain(&self.dv).collect()
    }
}

/// Sums that go from rank to rank.
struct Travel {
    /// What this rank adds to the block that it has.
    block: OfKeys,
    staging: Staging,
    adder: Adder,
}

impl Travel {
    fn new(attention: &FlashAttention, parts: &Parts) -> Result<Self, Error> {
        let block = OfKeys::new(attention, parts)?;
        let sizes: Vec<u64> = block.buffers().into_iter().map(wgpu::Buffer::size).collect();
        let staging = Staging::new(attention, &sizes)?;
        let adder = Adder::new(attention, sizes.into_iter().max().unwrap_or(0))?;
        Ok(Self { block, staging, adder })
    }

    fn bytes(&self) -> u64 {
        self.block.buffers().into_iter().map(wgpu::Buffer::size).sum::<u64>() + self.adder.bytes()
    }
}

impl Gradients {
    pub fn new(attention: &FlashAttention, parts: &Parts, ranks: usize) -> Result<Self, Error> {
        let mut part = parts.longest.clone().with_added_gradients();
        if parts.has_sink {
            part = part.with_sink();
        }
        if parts.has_bias_gradient {
            part = part.with_bias_gradient();
        }
        let operation = pollster::block_on(attention.prepare_backward(&part))?;
        let d_bias = || OfPairs::new(attention, parts, Operand::DBias, operation.plan().required_bytes(Operand::DBias));
        let of_rows = |label, operand| -> Result<Vec<_>, Error> {
            parts.rows.iter().map(|_| storage(attention, label, parts.bytes(operand))).collect()
        };
        Ok(Self {
            d_o: of_rows("dO", Operand::DO)?,
            dq: of_rows("dQ", Operand::Dq)?,
            own: OfKeys::new(attention, parts)?,
            travel: if ranks > 1 { Some(Travel::new(attention, parts)?) } else { None },
            sink: parts.has_sink.then(|| OfSink::new(attention, parts)).transpose()?,
            d_bias: parts.has_bias_gradient.then(d_bias).transpose()?,
            operation,
        })
    }

    pub fn bytes(&self) -> u64 {
        let all = self.d_o.iter().chain(&self.dq).chain(self.own.buffers());
        let travel = self.travel.as_ref().map_or(0, Travel::bytes) + self.d_bias.as_ref().map_or(0, OfPairs::bytes);
        all.map(wgpu::Buffer::size).sum::<u64>() + travel + self.operation.plan().scratch_bytes()
    }

    pub fn d_o(&self) -> &[wgpu::Buffer] {
        &self.d_o
    }

    pub fn buffers(&self, operand: Operand) -> Option<&[wgpu::Buffer]> {
        match operand {
            Operand::Dq => Some(&self.dq),
            Operand::Dk => Some(&self.own.dk),
            Operand::Dv => Some(&self.own.dv),
            _ => None,
        }
    }

    /// dSink or dBias, if there is one.
    pub fn of_modifier(
        &self,
        attention: &FlashAttention,
        parts: &Parts,
        operand: Operand,
    ) -> Result<Option<Vec<u8>>, Error> {
        if operand == Operand::DSink {
            let sink = self.sink.as_ref().filter(|sink| !sink.sum.is_empty());
            return Ok(sink.map(|sink| sink.sum.iter().flat_map(|sum| sum.to_le_bytes()).collect()));
        }
        let bias = parts.entries.iter().find(|entries| entries.operand == Operand::Bias);
        let Some((d_bias, bias)) = self.d_bias.as_ref().zip(bias) else { return Ok(None) };
        // Each buffer has room for the longest spans, and this rank's rows have all keys.
        let size = self.operation.plan().element(Operand::DBias).map_or(0, Element::size) as usize;
        let longest = &parts.longest.shape;
        let [stride, of_row] = [longest.seqlen_kv, parts.seqlen_kv].map(|keys| keys as usize * size);
        let [batch, heads] = bias.groups();
        let groups = (batch * heads) as usize;
        let mut bytes = Vec::new();
        for (number, rows) in parts.rows.iter().enumerate() {
            let mut of_rows = vec![0; groups * rows.len as usize * of_row];
            for (keys, buffer) in parts.keys.iter().flatten().zip(d_bias.of_rows(number)) {
                let part = read(attention, buffer)?;
                let (first, len) = (keys.first as usize * size, keys.len as usize * size);
                for (index, to) in of_rows.chunks_exact_mut(of_row.max(1)).enumerate() {
                    let (group, row) = (index / rows.len as usize, index % rows.len as usize);
                    let from = (group * longest.seqlen_q as usize + row) * stride;
                    to[first..first + len].copy_from_slice(&part[from..from + len]);
                }
            }
            bytes.extend(of_rows);
        }
        Ok(Some(bytes))
    }
}

/// A span of rows and one of keys, with their numbers.
type Pair = ((usize, Span), (usize, Span));

impl<T: Transport> RingAttention<T> {
    /// The first step has a part of this rank's own keys. The last one, after those of all other ranks, has the rest: meanwhile
    /// the sums of its keys come home.
    pub(super) fn run_backward(&mut self) -> Result<Timeline, Error> {
        self.modifiers.check()?;
        self.transport.barrier()?;
        let ranks = self.transport.ranks();
        let Some(gradients) = &self.gradients else {
            let reason = "dO is not set: call set(Operand::DO, …) first".into();
            return Err(Error::Unsupported { what: "gradients", reason });
        };
        let steps = if ranks > 1 { ranks + 1 } else { 1 };
        let mut clock = Clock::new(&self.attention, steps)?;
        let mut sums_sent = None;
        for step in 0..steps {
            let passes_on = step + 1 < ranks;
            let sent = passes_on.then(|| self.staging.send(&self.attention, &self.block_at(step).0.buffers()));
            let sent = sent.transpose()?;
            self.submit_backward(gradients, step, &clock)?;
            // While that computes, the next block comes, and the gradients of the last one go on.
            let begin = Instant::now();
            let transfers = sent.is_some() || sums_sent.is_some();
            if let Some(sent) = sent {
                self.staging.exchange(&self.attention, &mut self.transport, sent)?;
            }
            let Some(travel) = &gradients.travel else { continue };
            let sums_came = sums_sent.is_some();
            if let Some(sent) = sums_sent.take() {
                travel.staging.exchange(&self.attention, &mut self.transport, sent)?;
            }
            if transfers {
                clock.transferred(step, begin);
            }
            if passes_on {
                self.staging.receive(&self.attention, &self.block_at(step + 1).0.buffers())?;
            }
            if sums_came {
                let sums = if step == ranks { &gradients.own } else { &travel.block };
                travel.adder.add(&self.attention, travel.staging.came().zip(sums.buffers()))?;
            }
            if (1..ranks).contains(&step) {
                sums_sent = Some(travel.staging.send(&self.attention, &travel.block.buffers())?);
            }
        }
        let timeline = clock.finish(&self.attention)?;
        if let Some(sink) = self.gradients.as_mut().and_then(|gradients| gradients.sink.as_mut()) {
            sink.sum_up(&self.attention, &mut self.transport, self.parts.longest.shape.num_heads)?;
        }
        Ok(timeline)
    }

    /// Submits the kernels of a step: the gradients that this rank's rows and the block that it has give each other.
    fn submit_backward(&self, gradients: &Gradients, step: usize, clock: &Clock) -> Result<(), Error> {
        let (_, of_rank) = self.block_at(step);
        let (sums, pairs) = match &gradients.travel {
            None => (&gradients.own, self.pairs(of_rank)),
            Some(_) if step == 0 => (&gradients.own, self.halves().0),
            Some(_) if step == self.transport.ranks() => (&gradients.own, self.halves().1),
            Some(travel) => (&travel.block, self.pairs(of_rank)),
        };
        submit(&self.attention, "the backward pass", |encoder| {
            clock.begin(encoder, step);
            if step == 0 {
                gradients.dq.iter().for_each(|buffer| encoder.clear_buffer(buffer, 0, None));
            }
            if step < self.transport.ranks() {
                sums.buffers().into_iter().for_each(|buffer| encoder.clear_buffer(buffer, 0, None));
            }
            if let Some(sink) = gradients.sink.as_ref().filter(|_| step == 0) {
                for ((row, rows), d_sink) in self.parts.rows.iter().enumerate().zip(&sink.of_rows) {
                    // A call without keys: its gradients are 0, but for dSink.
                    let call = self.parts.call(*rows, Span { first: 0, len: 0 });
                    self.encode_backward(encoder, (gradients, sums, Some(d_sink)), (row, of_rank, 0), &call)?;
                }
            }
            for ((row, rows), (key, keys)) in pairs {
                let ignored = gradients.sink.as_ref().map(|sink| &sink.ignored);
                let call = self.parts.call(rows, keys);
                self.encode_backward(encoder, (gradients, sums, ignored), (row, of_rank, key), &call)?;
            }
            clock.end(encoder, step);
            Ok(())
        })
        .map(drop)
    }

    /// One call, of a span of rows and a span of a rank's keys by their numbers.
    fn encode_backward(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        (gradients, sums, d_sink): (&Gradients, &OfKeys, Option<&wgpu::Buffer>),
        (row, of_rank, key): (usize, usize, usize),
        call: &Call,
    ) -> Result<(), Error> {
        let block = self.block_of(of_rank);
        let [o, lse] = [Operand::O, Operand::Lse].map(|operand| self.forward.results(operand).unwrap_or(&[]));
        let given = [&self.q[row], &block.k[key], &block.v[key], &o[row], &lse[row]];
        let [q, k, v, o, lse] = given.map(|buffer| buffer.slice(..));
        let written = [&gradients.d_o[row], &gradients.dq[row], &sums.dk[key], &sums.dv[key]];
        let [d_o, dq, dk, dv] = written.map(|buffer| buffer.slice(..));
        let mut more = self.modifiers.of_pair(row, of_rank, key);
        more.extend(self.modifiers.sink().map(|sink| (Operand::Sink, sink)));
        more.extend(d_sink.map(|d_sink| (Operand::DSink, d_sink)));
        more.extend(gradients.d_bias.as_ref().map(|d_bias| (Operand::DBias, d_bias.get(row, of_rank, key))));
        let buffers = BackwardBuffers::new(ForwardBuffers::new(q, k, v, o, lse), d_o, dq, dk, dv);
        Ok(gradients.operation.encode_call(encoder, &with_all(buffers, &more), call)?)
    }

    /// The spans of this rank's rows with those of a rank's keys that they see.
    fn pairs(&self, of_rank: usize) -> Vec<Pair> {
        let of_rows = |row: (usize, Span)| self.visible(row.1, of_rank).map(move |key| (row, key));
        self.parts.rows.iter().copied().enumerate().flat_map(of_rows).collect()
    }

    /// Those of its own keys, in two parts of about equal work.
    fn halves(&self) -> (Vec<Pair>, Vec<Pair>) {
        let mut all = self.pairs(self.transport.rank());
        let work = |pair: &Pair| self.parts.visible_pairs(pair.0.1, pair.1.1);
        all.sort_by_key(|pair| std::cmp::Reverse(work(pair)));
        // A single pair goes into the last step, whose transfer is the longer one.
        let (mut halves, mut done) = ((Vec::new(), Vec::new()), [0, 0]);
        for pair in all {
            if done[0] < done[1] {
                done[0] += work(&pair);
                halves.0.push(pair);
            } else {
                done[1] += work(&pair);
                halves.1.push(pair);
            }
        }
        halves
    }
}
