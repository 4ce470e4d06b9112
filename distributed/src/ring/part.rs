//! The parts of a problem that calls on one device solve.

use crate::entries::Entries;
use crate::error::Error;
use crate::partition::{GRAIN, Span};
use crate::recut::recut;
use wgpu_flash_attention::{AttentionLayout, AttentionProblem, AttentionShape, Call, Element, Operand, Shard};

/// The most bytes of a buffer: 2 GiB, which all drivers allow.
const LARGEST_BUFFER: u64 = 2 << 30;

/// The most rows, or keys, of a span, so that all of its tensors fit a buffer.
pub(super) fn largest_span(problem: &AttentionProblem) -> Result<u32, Error> {
    let AttentionShape { batch, num_heads, num_heads_kv, head_dim, head_dim_v, .. } = problem.shape;
    // Partial results and gradients are f32.
    let row = (4 * u64::from(batch))
        .saturating_mul(num_heads.max(num_heads_kv).into())
        .saturating_mul(head_dim.max(head_dim_v).into());
    let most = LARGEST_BUFFER / row.max(1);
    if most < 4 {
        let reason = format!("a row of {row} bytes; make batch or num_heads smaller");
        return Err(Error::Unsupported { what: "rows this large", reason });
    }
    // Entries have a buffer for each span of rows with each span of keys.
    let most_entries = |entries: &Entries| {
        let of_pair = LARGEST_BUFFER / entries.bytes(1, 1).max(1);
        if entries.has_all() { of_pair.isqrt() } else { of_pair }
    };
    let most = Entries::all(problem)?.iter().map(most_entries).fold(most, u64::min);
    Ok(most.clamp(u64::from(GRAIN), 1 << 29) as u32)
}

/// A rank's rows, all ranks' keys, and the problem of the longest of each.
pub(super) struct Parts {
    pub rows: Vec<Span>,
    /// Of each rank.
    pub keys: Vec<Vec<Span>>,
    /// The whole problem's part with the longest spans, without its sink.
    pub longest: AttentionProblem,
    /// Its rows and keys in buffers: rounded up, so that each sequence begins at a whole word.
    pub room: AttentionShape,
    /// Of a bias and of a boolean mask.
    pub entries: Vec<Entries>,
    /// Keys of the whole.
    pub seqlen_kv: u32,
    pub has_sink: bool,
    pub has_bias_gradient: bool,
}

impl Parts {
    pub fn new(whole: &AttentionProblem, rows: Vec<Span>, keys: Vec<Vec<Span>>) -> Result<Self, Error> {
        let entries = Entries::all(whole)?;
        refuse_sums(whole, &entries)?;
        let most = |spans: &mut dyn Iterator<Item = &Span>| spans.map(|span| span.len).max().unwrap_or(0);
        let shape = AttentionShape {
            // All ranks have buffers of one size: those of keys pass around.
            seqlen_q: most(&mut rows.iter()),
            seqlen_kv: most(&mut keys.iter().flatten()),
            ..whole.shape
        };
        let room = AttentionShape {
            seqlen_q: shape.seqlen_q.next_multiple_of(GRAIN),
            seqlen_kv: shape.seqlen_kv.next_multiple_of(GRAIN),
            ..shape
        };
        let longest = recut(whole, shape, (&entries, [room.seqlen_q, room.seqlen_kv]), <[f32]>::to_vec);
        let longest = longest.with_layout(AttentionLayout::bshd(&room));
        let longest = longest.with_shard(Shard::of_lengths(whole.shape.seqlen_q, whole.shape.seqlen_kv));
        let (has_sink, has_bias_gradient) = (whole.has_sink(), whole.has_bias_gradient());
        let seqlen_kv = whole.shape.seqlen_kv;
        Ok(Self { rows, keys, longest, room, entries, seqlen_kv, has_sink, has_bias_gradient })
    }

    pub fn num_key_spans(&self) -> usize {
        self.keys[0].len()
    }

    /// The call for a span of rows and one of keys.
    pub fn call(&self, rows: Span, keys: Span) -> Call {
        Call::new().with_seqlen_q(rows.len).with_seqlen_kv(keys.len).with_place(rows.first, keys.first)
    }

    /// How many pairs of one of these rows and a key that it sees there are, in a head.
    pub fn visible_pairs(&self, rows: Span, keys: Span) -> u64 {
        let shape = AttentionShape { batch: 1, num_heads: 1, num_heads_kv: 1, ..self.longest.shape };
        let mut part = AttentionProblem::new(AttentionShape { seqlen_q: rows.len, seqlen_kv: keys.len, ..shape });
        part.mask = self.longest.mask;
        let shard = self.longest.shard.map(|whole| whole.with_first_row(rows.first).with_first_key(keys.first));
        part.shard = shard;
        part.visible_pairs()
    }

    /// Bytes of one row, or key, of a sequence; of LSE, of a head.
    pub fn row_bytes(&self, operand: Operand) -> u64 {
        let AttentionShape { num_heads, num_heads_kv, head_dim, head_dim_v, .. } = self.longest.shape;
        let (heads, dim) = match operand {
            Operand::Q | Operand::Dq => (num_heads, head_dim),
            Operand::K | Operand::Dk => (num_heads_kv, head_dim),
            Operand::V | Operand::Dv => (num_heads_kv, head_dim_v),
            Operand::Lse => (1, 1),
            _ => (num_heads, head_dim_v),
        };
        let in_f32 = matches!(operand, Operand::Lse | Operand::OParts | Operand::Dq | Operand::Dk | Operand::Dv);
        let size = if in_f32 { Element::F32.size() } else { self.longest.element.size() };
        u64::from(heads) * u64::from(dim) * size
    }

    /// In how many pieces a span's tensor lies in its buffer: one for each sequence, of LSE for each head.
    pub fn groups(&self, operand: Operand) -> usize {
        let AttentionShape { batch, num_heads, .. } = self.longest.shape;
        let heads = if operand == Operand::Lse { num_heads } else { 1 };
        batch as usize * heads as usize
    }

    /// Bytes from one of these to the next.
    pub fn stride(&self, operand: Operand) -> u64 {
        let of_keys = matches!(operand, Operand::K | Operand::V | Operand::Dk | Operand::Dv);
        let rows = match operand {
            Operand::Lse => self.longest.shape.seqlen_q,
            _ if of_keys => self.room.seqlen_kv,
            _ => self.room.seqlen_q,
        };
        u64::from(rows) * self.row_bytes(operand)
    }

    /// Bytes of a tensor's buffer.
    pub fn bytes(&self, operand: Operand) -> u64 {
        self.groups(operand) as u64 * self.stride(operand)
    }

    /// Bytes of a span's tensor.
    pub fn bytes_of(&self, operand: Operand, span: Span) -> usize {
        self.groups(operand) * (u64::from(span.len) * self.row_bytes(operand)) as usize
    }
}

/// Refuses gradients that several ranks would have to sum up.
fn refuse_sums(whole: &AttentionProblem, entries: &[Entries]) -> Result<(), Error> {
    let repeats = |entries: &Entries| entries.operand == Operand::Bias && !entries.has_all();
    if !whole.has_bias_gradient() || !entries.iter().any(repeats) {
        return Ok(());
    }
    let reason = "each rank has a part of each sum; give the bias an entry for each row and key, and sum its gradient";
    Err(Error::Unsupported { what: "the gradient of a bias that repeats along rows or keys", reason: reason.into() })
}
