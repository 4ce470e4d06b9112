use super::shape::AttentionShape;

/// Where the entry of a (sequence, query head, row, key) lies in the buffer of a bias or a mask:
/// `offset + batch · stride_batch + head · stride_head + row · stride_row + key · stride_key`. A stride of 0 repeats entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct EntryLayout {
    /// The first entry.
    pub offset: u64,
    /// From one sequence to the next.
    pub stride_batch: u64,
    /// From one query head to the next.
    pub stride_head: u64,
    /// From one row to the next.
    pub stride_row: u64,
    /// From one key to the next.
    pub stride_key: u64,
}

impl EntryLayout {
    /// Contiguous `[batch or 1, num_heads or 1, seqlen_q or 1, seqlen_kv or 1]`: a dimension of 1 entry is repeated along that of
    /// the problem. Planning refuses strides past 32 bits.
    pub fn contiguous([batch, heads, rows, keys]: [u32; 4]) -> Self {
        let stride = |count: u32, stride: u64| if count == 1 { 0 } else { stride };
        let (of_row, heads_count) = (u64::from(keys), u64::from(heads));
        let of_head = of_row.saturating_mul(rows.into());
        Self {
            offset: 0,
            stride_batch: stride(batch, of_head.saturating_mul(heads_count)),
            stride_head: stride(heads, of_head),
            stride_row: stride(rows, of_row),
            stride_key: stride(keys, 1),
        }
    }

    /// As [`EntryLayout::contiguous`], for bits packed in words of 32 keys, each row from a word of its own. All but `stride_key`
    /// counts words.
    pub fn packed_bits([batch, heads, rows, keys]: [u32; 4]) -> Self {
        let words = Self::contiguous([batch, heads, rows, keys.div_ceil(32)]);
        // A row of one word is no row of one key.
        Self { stride_key: u64::from(keys != 1), ..words }
    }

    /// The layout of the gradient of a bias that lies as this says, in a problem of this shape: contiguous, with one entry for all of
    /// a dimension that has a stride of 0 here. Entries that share memory in another way each have a gradient of their own.
    pub fn of_gradient(&self, shape: &AttentionShape) -> Self {
        Self::contiguous(self.own(shape))
    }

    /// How many entries of its own each dimension has: batch, heads, rows and keys.
    pub(crate) fn own(&self, shape: &AttentionShape) -> [u32; 4] {
        self.steps(shape, shape.seqlen_kv).map(|(_, stride, count)| if stride == 0 { count.min(1) } else { count })
    }

    /// Entries that a buffer must hold for a problem of this shape: 0 without any. Numbers past 64 bits become 2⁶⁴ − 1.
    pub fn required_len(&self, shape: &AttentionShape) -> u64 {
        self.span(shape, shape.seqlen_kv)
    }

    /// As [`EntryLayout::required_len`], words of a mask in packed bits.
    pub fn required_words(&self, shape: &AttentionShape) -> u64 {
        self.span(shape, shape.seqlen_kv.div_ceil(32))
    }

    fn span(&self, shape: &AttentionShape, keys: u32) -> u64 {
        let steps = self.steps(shape, keys);
        if steps.iter().any(|(_, _, count)| *count == 0) { 0 } else { self.last(&steps).saturating_add(1) }
    }

    /// Name, stride and count of each dimension.
    fn steps(&self, shape: &AttentionShape, keys: u32) -> [(&'static str, u64, u32); 4] {
        [
            ("batch", self.stride_batch, shape.batch),
            ("head", self.stride_head, shape.num_heads),
            ("row", self.stride_row, shape.seqlen_q),
            ("key", self.stride_key, keys),
        ]
    }

    /// The number of the last entry.
    fn last(&self, steps: &[(&str, u64, u32)]) -> u64 {
        steps.iter().fold(self.offset, |last, (_, stride, count)| {
            last.saturating_add(stride.saturating_mul(count.saturating_sub(1).into()))
        })
    }

    /// What makes it impossible for a problem of this shape, if anything does.
    pub(crate) fn fault(&self, shape: &AttentionShape) -> Option<String> {
        let steps = self.steps(shape, shape.seqlen_kv);
        if let Some((name, stride, _)) = steps.iter().find(|(_, stride, _)| u32::try_from(*stride).is_err()) {
            return Some(format!("stride_{name} is {stride}, past 32 bits"));
        }
        let last = self.last(&steps);
        u32::try_from(last).is_err().then(|| format!("its last entry has the number {last}, past 32 bits"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dimensions_of_one_are_repeated() {
        let strides = |layout: EntryLayout| {
            [layout.stride_batch, layout.stride_head, layout.stride_row, layout.stride_key, layout.offset]
        };
        assert_eq!(strides(EntryLayout::contiguous([2, 3, 5, 7])), [105, 35, 7, 1, 0]);
        assert_eq!(strides(EntryLayout::contiguous([2, 1, 5, 7])), [35, 0, 7, 1, 0]);
        assert_eq!(strides(EntryLayout::contiguous([1, 3, 1, 7])), [0, 7, 0, 1, 0]);
        assert_eq!(strides(EntryLayout::contiguous([2, 3, 5, 1])), [15, 5, 1, 0, 0]);
        assert_eq!(strides(EntryLayout::packed_bits([2, 3, 5, 33])), [30, 10, 2, 1, 0]);
        assert_eq!(strides(EntryLayout::packed_bits([2, 1, 5, 32])), [5, 0, 1, 1, 0]);
        assert_eq!(strides(EntryLayout::packed_bits([1, 1, 5, 1])), [0, 0, 1, 0, 0]);
    }

    #[test]
    fn a_buffer_holds_what_is_not_repeated() {
        let shape = AttentionShape::new(2, 3, 5, 8).with_seqlen_kv(33);
        let lens = |counts| {
            let (entries, bits) = (EntryLayout::contiguous(counts), EntryLayout::packed_bits(counts));
            [entries.required_len(&shape), bits.required_words(&shape)]
        };
        assert_eq!(lens([2, 3, 5, 33]), [990, 60]);
        assert_eq!(lens([1, 3, 1, 33]), [99, 6]);
        assert_eq!(lens([2, 1, 5, 1]), [10, 10]);
        assert_eq!(lens([1, 1, 1, 1]), [1, 1]);
        let empty = AttentionShape::new(2, 3, 0, 8).with_seqlen_kv(33);
        assert_eq!(EntryLayout::contiguous([2, 3, 0, 33]).required_len(&empty), 0);
        let far = EntryLayout { offset: u64::MAX, ..EntryLayout::contiguous([1, 1, 1, 1]) };
        assert_eq!(far.required_len(&shape), u64::MAX);
    }
}
