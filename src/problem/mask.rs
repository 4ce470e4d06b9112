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
    /// The key that row 0 is aligned with. Row i is aligned with key i + offset.
    pub fn offset(&self, seqlen_q: u32, seqlen_kv: u32) -> i64 {
        match self.alignment {
            Alignment::BottomRight => i64::from(seqlen_kv) - i64::from(seqlen_q),
            Alignment::TopLeft => 0,
        }
    }

    /// The keys row `i` sees, as a half-open range that may be empty.
    pub fn visible_keys(&self, i: u32, seqlen_q: u32, seqlen_kv: u32) -> Range<u32> {
        self.visible_keys_from(self.offset(seqlen_q, seqlen_kv), i, seqlen_kv)
    }

    /// As `visible_keys`, where row 0 is aligned with key `offset`.
    pub(crate) fn visible_keys_from(&self, offset: i64, i: u32, seqlen_kv: u32) -> Range<u32> {
        let seqlen_kv = i64::from(seqlen_kv);
        let diagonal = i64::from(i) + offset;
        let first = self.window_left.map_or(0, |left| (diagonal - i64::from(left)).clamp(0, seqlen_kv));
        let end = self.window_right.map_or(seqlen_kv, |right| (diagonal + i64::from(right) + 1).clamp(0, seqlen_kv));
        first as u32..end.max(first) as u32
    }

    /// How many (row, key) pairs of one head it shows, in constant time.
    pub fn visible_pairs(&self, seqlen_q: u32, seqlen_kv: u32) -> u64 {
        self.visible_pairs_from(self.offset(seqlen_q, seqlen_kv), seqlen_q, seqlen_kv)
    }

    /// As `visible_pairs`, where row 0 is aligned with key `offset`.
    pub(crate) fn visible_pairs_from(&self, offset: i64, seqlen_q: u32, seqlen_kv: u32) -> u64 {
        let offset = i128::from(offset);
        let (rows, keys) = (i128::from(seqlen_q), i128::from(seqlen_kv));
        // Σ clamp(start + i, 0, keys) over the rows i: a stretch of zeros, a slope, a stretch of `keys`.
        let ramp = |start: i128| {
            let (rise, top) = ((-start).clamp(0, rows), (keys - start).clamp(0, rows));
            (rise + start + top - 1 + start) * (top - rise) / 2 + keys * (rows - top)
        };
        let end = self.window_right.map_or(rows * keys, |right| ramp(offset + i128::from(right) + 1));
        let first = self.window_left.map_or(0, |left| ramp(offset - i128::from(left)));
        // Windows reach from the diagonal outwards, so no row's end lies before its first key.
        (end - first) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counted_pairs_are_those_of_the_rows() {
        let windows = [None, Some(0), Some(1), Some(3), Some(8), Some(40), Some(u32::MAX)];
        for alignment in [Alignment::BottomRight, Alignment::TopLeft] {
            for window_left in windows {
                for window_right in windows {
                    let mask = Mask { alignment, window_left, window_right };
                    for (seqlen_q, seqlen_kv) in [(0, 5), (5, 0), (1, 1), (7, 7), (9, 4), (4, 9), (1, 30), (30, 2)] {
                        let rows = (0..seqlen_q).map(|i| mask.visible_keys(i, seqlen_q, seqlen_kv).len() as u64);
                        let expected: u64 = rows.sum();
                        assert_eq!(
                            mask.visible_pairs(seqlen_q, seqlen_kv),
                            expected,
                            "{mask:?} {seqlen_q}x{seqlen_kv}"
                        );
                    }
                }
            }
        }
    }
}
