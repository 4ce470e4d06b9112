//! What modifies the scores of a rank's rows: the entries of a bias and of a boolean mask, and sinks.

use super::part::Parts;
use crate::entries::Entries;
use crate::error::Error;
use crate::gpu::{storage, upload};
use crate::partition::Span;
use wgpu_flash_attention::{Buffers, FlashAttention, Operand, wgpu};

/// Adds buffers to those of a call.
pub(super) fn with_all<'a, D>(buffers: Buffers<'a, D>, all: &[(Operand, &'a wgpu::Buffer)]) -> Buffers<'a, D> {
    all.iter().fold(buffers, |buffers, (operand, buffer)| buffers.with(*operand, buffer.slice(..)))
}

/// A tensor that has a buffer for each span of this rank's rows with each span of all ranks' keys. So it lies everywhere as one
/// prepared operation wants it.
pub(super) struct OfPairs {
    buffers: Vec<wgpu::Buffer>,
    /// Spans of keys that a rank has.
    spans_of_rank: usize,
    spans_of_keys: usize,
}

impl OfPairs {
    pub fn new(attention: &FlashAttention, parts: &Parts, operand: Operand, bytes: u64) -> Result<Self, Error> {
        let spans_of_rank = parts.num_key_spans();
        let spans_of_keys = spans_of_rank * parts.keys.len();
        let made = (0..parts.rows.len() * spans_of_keys).map(|_| storage(attention, operand.name(), bytes));
        Ok(Self { buffers: made.collect::<Result<_, _>>()?, spans_of_rank, spans_of_keys })
    }

    /// The one of a span of rows and a span of a rank's keys, by their numbers.
    pub fn get(&self, row: usize, of_rank: usize, key: usize) -> &wgpu::Buffer {
        &self.buffers[row * self.spans_of_keys + of_rank * self.spans_of_rank + key]
    }

    /// Those of a span of rows, in the order of ranks and their spans of keys.
    pub fn of_rows(&self, row: usize) -> &[wgpu::Buffer] {
        &self.buffers[row * self.spans_of_keys..][..self.spans_of_keys]
    }

    pub fn bytes(&self) -> u64 {
        self.buffers.iter().map(wgpu::Buffer::size).sum()
    }
}

/// The logits of sinks.
struct Sink {
    /// `[num_heads]`.
    logits: wgpu::Buffer,
    /// LSE of a span of rows that has seen no key: its sink.
    start: wgpu::Buffer,
}

/// All that modifies scores and that the caller sets.
pub(super) struct Modifiers {
    entries: Vec<(Entries, OfPairs)>,
    sink: Option<Sink>,
    /// Not yet set.
    awaited: Vec<Operand>,
}

impl Modifiers {
    pub fn new(attention: &FlashAttention, parts: &Parts) -> Result<Self, Error> {
        let pairs = |entries: &Entries| {
            let bytes = entries.bytes(parts.room.seqlen_q, parts.room.seqlen_kv);
            OfPairs::new(attention, parts, entries.operand, bytes).map(|buffers| (*entries, buffers))
        };
        let entries = parts.entries.iter().map(pairs).collect::<Result<Vec<_>, _>>()?;
        let sink = || {
            let logits = storage(attention, "sink", 4 * u64::from(parts.longest.shape.num_heads))?;
            let start = storage(attention, "LSE of no key", parts.bytes(Operand::Lse))?;
            Ok::<_, Error>(Sink { logits, start })
        };
        let sink = parts.has_sink.then(sink).transpose()?;
        let awaited = entries.iter().map(|(of, _)| of.operand).chain(sink.as_ref().map(|_| Operand::Sink)).collect();
        Ok(Self { entries, sink, awaited })
    }

    pub fn bytes(&self) -> u64 {
        let sink = self.sink.iter().flat_map(|sink| [&sink.logits, &sink.start]).map(wgpu::Buffer::size);
        self.entries.iter().map(|(_, buffers)| buffers.bytes()).chain(sink).sum()
    }

    /// Refuses calls before all is set.
    pub fn check(&self) -> Result<(), Error> {
        let Some(operand) = self.awaited.first() else { return Ok(()) };
        let reason = format!("call set with it; the problem has a {operand}");
        Err(Error::Unsupported { what: "a tensor that is not set", reason })
    }

    /// Sets one of them; whether it is one.
    pub fn set(
        &mut self,
        attention: &FlashAttention,
        parts: &Parts,
        operand: Operand,
        bytes: &[u8],
    ) -> Result<bool, Error> {
        let entries = self.entries.iter().find(|(entries, _)| entries.operand == operand);
        match (entries, &self.sink) {
            (Some((entries, buffers)), _) => set_entries(attention, parts, entries, buffers, bytes)?,
            (None, Some(sink)) if operand == Operand::Sink => sink.set(attention, parts, bytes)?,
            _ => return Ok(false),
        }
        self.awaited.retain(|other| *other != operand);
        Ok(true)
    }

    /// LSE of rows that have seen no key, where there is a sink.
    pub fn start(&self) -> Option<&wgpu::Buffer> {
        self.sink.as_ref().map(|sink| &sink.start)
    }

    /// The logits of the sinks.
    pub fn sink(&self) -> Option<&wgpu::Buffer> {
        self.sink.as_ref().map(|sink| &sink.logits)
    }

    /// The entries of a span of rows with a span of a rank's keys, by their numbers.
    pub fn of_pair(&self, row: usize, of_rank: usize, key: usize) -> Vec<(Operand, &wgpu::Buffer)> {
        self.entries.iter().map(|(entries, buffers)| (entries.operand, buffers.get(row, of_rank, key))).collect()
    }
}

/// A length other than the expected one.
fn of_length(operand: Operand, found: usize, expected: usize) -> Result<(), Error> {
    if found == expected { Ok(()) } else { Err(Error::Length { name: operand.name(), found, expected }) }
}

impl Sink {
    fn set(&self, attention: &FlashAttention, parts: &Parts, bytes: &[u8]) -> Result<(), Error> {
        let shape = &parts.longest.shape;
        of_length(Operand::Sink, bytes.len(), 4 * shape.num_heads as usize)?;
        let of_rows = |logit: &[u8]| logit.repeat(shape.seqlen_q as usize);
        let start: Vec<u8> = bytes.chunks_exact(4).flat_map(of_rows).collect();
        upload(attention, &self.logits, 0, bytes)?;
        upload(attention, &self.start, 0, &start.repeat(shape.batch as usize))
    }
}

fn set_entries(
    attention: &FlashAttention,
    parts: &Parts,
    entries: &Entries,
    buffers: &OfPairs,
    bytes: &[u8],
) -> Result<(), Error> {
    let of_span = |rows: &Span| entries.bytes(rows.len, parts.seqlen_kv) as usize;
    of_length(entries.operand, bytes.len(), parts.rows.iter().map(of_span).sum())?;
    let (mut rest, room) = (bytes, [parts.room.seqlen_q, parts.room.seqlen_kv]);
    for (row, rows) in parts.rows.iter().enumerate() {
        let (own, behind) = rest.split_at(of_span(rows));
        rest = behind;
        for (keys, buffer) in parts.keys.iter().flatten().zip(buffers.of_rows(row)) {
            upload(attention, buffer, 0, &entries.cut(own, rows.len, parts.seqlen_kv, *keys, room))?;
        }
    }
    Ok(())
}
