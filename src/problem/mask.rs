use std::ops::Range;

/// Which corner of the score matrix the diagonal is tied to when seqlen_q and seqlen_kv differ.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Alignment {
    /// The last row meets the last key: offset = seqlen_kv − seqlen_q (FlashAttention).
    #[default]
    BottomRight,
    /// The first row meets the first key: offset = 0 (PyTorch `is_causal`, ONNX).
    TopLeft,
}

/// The keys a row may see: `i + offset − window_left ≤ j ≤ i + offset + window_right`. A causal mask is
/// window_right = 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Mask {
    /// Which corner the diagonal is tied to.
    pub alignment: Alignment,
    /// Keys before the diagonal, or `None` for all of them.
    pub window_left: Option<u32>,
    /// Keys after the diagonal, or `None` for all of them.
    pub window_right: Option<u32>,
}

impl Mask {
    /// Where the diagonal crosses row 0: the key that row i is aligned with is i + offset.
    pub fn offset(&self, seqlen_q: u32, seqlen_kv: u32) -> i64 {
        match self.alignment {
            Alignment::BottomRight => i64::from(seqlen_kv) - i64::from(seqlen_q),
            Alignment::TopLeft => 0,
        }
    }

    /// The keys row `i` sees, as a half-open range that may be empty.
    pub fn visible_keys(&self, i: u32, seqlen_q: u32, seqlen_kv: u32) -> Range<u32> {
        let seqlen_kv = i64::from(seqlen_kv);
        let diagonal = i64::from(i) + self.offset(seqlen_q, seqlen_kv as u32);
        let first = self.window_left.map_or(0, |left| (diagonal - i64::from(left)).clamp(0, seqlen_kv));
        let end = self.window_right.map_or(seqlen_kv, |right| (diagonal + i64::from(right) + 1).clamp(0, seqlen_kv));
        first as u32..end.max(first) as u32
    }
}
