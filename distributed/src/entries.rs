//! A bias or a boolean mask, which has an entry for each sequence, query head, row and key: how it is cut.

use crate::error::Error;
use crate::partition::Span;
use wgpu_flash_attention::{AttentionProblem, AttentionShape, Element, EntryLayout, KeyMask, Operand, ScoreMod};

/// The entries of the whole. Tensors of a part are contiguous `[batch or 1, num_heads or 1, rows or 1, keys or 1]`, with a 1 where
/// the whole repeats its entries. Those of a mask are bits in words of 32 keys, and a row starts a word.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Entries {
    pub operand: Operand,
    /// `None` for bits.
    element: Option<Element>,
    batch: u32,
    heads: u32,
    has_rows: bool,
    has_keys: bool,
}

impl Entries {
    /// Those that a problem has: of a bias, of a boolean mask.
    pub fn all(problem: &AttentionProblem) -> Result<Vec<Self>, Error> {
        let shape = &problem.shape;
        let biases = problem.scores().iter().filter_map(|modifier| match modifier {
            ScoreMod::Bias { layout, element } => Some(Self::of(Operand::Bias, layout, Some(*element), shape)),
            _ => None,
        });
        let masks = problem.key_masks().iter().filter_map(|mask| match mask {
            KeyMask::Boolean(layout) => Some(Self::of(Operand::KeyMask, layout, None, shape)),
            _ => None,
        });
        biases.chain(masks).collect()
    }

    /// Those that lie so in the whole, if they lie one behind the other.
    fn of(
        operand: Operand,
        layout: &EntryLayout,
        element: Option<Element>,
        shape: &AttentionShape,
    ) -> Result<Self, Error> {
        let own = |stride: u64, count: u32| if stride == 0 { 1 } else { count };
        let entries = Self {
            operand,
            element,
            batch: own(layout.stride_batch, shape.batch),
            heads: own(layout.stride_head, shape.num_heads),
            has_rows: layout.stride_row != 0,
            has_keys: layout.stride_key != 0,
        };
        if entries.layout(shape.seqlen_q, shape.seqlen_kv) == *layout {
            return Ok(entries);
        }
        let reason = "ranks cut contiguous ones: EntryLayout::contiguous for a bias, packed_bits for a mask".into();
        Err(Error::Unsupported { what: "entries in another layout", reason })
    }

    /// Those of some query heads of the whole, so many.
    pub fn of_heads(&self, heads: u32) -> Self {
        Self { heads: if self.heads == 1 { 1 } else { heads }, ..*self }
    }

    /// How those of so many rows and keys lie.
    pub fn layout(&self, rows: u32, keys: u32) -> EntryLayout {
        let counts = [self.batch, self.heads, self.rows(rows), if self.has_keys { keys } else { 1 }];
        match self.element {
            Some(_) => EntryLayout::contiguous(counts),
            None => EntryLayout::packed_bits(counts),
        }
    }

    /// Whether each row has entries of its own.
    pub fn has_rows(&self) -> bool {
        self.has_rows
    }

    /// Whether each row and each key has entries of its own.
    pub fn has_all(&self) -> bool {
        self.has_rows && self.has_keys
    }

    /// Sequences and query heads with entries of their own.
    pub fn groups(&self) -> [u32; 2] {
        [self.batch, self.heads]
    }

    /// Rows with entries of their own, of so many.
    pub fn rows(&self, rows: u32) -> u32 {
        if self.has_rows { rows } else { 1 }
    }

    /// Bytes of the entries of so many keys in one row.
    pub fn row_bytes(&self, keys: u32) -> u64 {
        let keys = if self.has_keys { keys } else { 1 };
        self.element.map_or(4 * u64::from(keys.div_ceil(32)), |element| u64::from(keys) * element.size())
    }

    /// Bytes of the entries of so many rows and keys.
    pub fn bytes(&self, rows: u32, keys: u32) -> u64 {
        u64::from(self.batch) * u64::from(self.heads) * u64::from(self.rows(rows)) * self.row_bytes(keys)
    }

    /// From rows of entries for `seqlen_kv` keys, `rows` for each sequence and head: those of some keys, where there is room for
    /// `room` rows and keys.
    pub fn cut(&self, given: &[u8], rows: u32, seqlen_kv: u32, keys: Span, room: [u32; 2]) -> Vec<u8> {
        let mut part = vec![0; self.bytes(room[0], room[1]) as usize];
        let [from, to] = [seqlen_kv, room[1]].map(|keys| self.row_bytes(keys) as usize);
        let [given_rows, room_rows] = [rows, room[0]].map(|rows| self.rows(rows) as usize);
        if from == 0 || to == 0 || given_rows == 0 {
            return part;
        }
        for (number, row) in given.chunks_exact(from).enumerate() {
            let at = (number / given_rows * room_rows + number % given_rows) * to;
            self.cut_row(row, keys, &mut part[at..at + to]);
        }
        part
    }

    /// One row of it.
    fn cut_row(&self, row: &[u8], keys: Span, part: &mut [u8]) {
        let Some(element) = self.element.filter(|_| self.has_keys) else {
            return if self.has_keys { cut_bits(row, keys, part) } else { part.copy_from_slice(row) };
        };
        let [first, len] = [keys.first, keys.len].map(|count| count as usize * element.size() as usize);
        part[..len].copy_from_slice(&row[first..first + len]);
    }
}

/// Bits of some keys, the first in the lowest bit of the first byte: words are little-endian.
fn cut_bits(row: &[u8], keys: Span, part: &mut [u8]) {
    let (first, shift) = (keys.first as usize / 8, keys.first % 8);
    let byte = |index: usize| u32::from(row.get(index).copied().unwrap_or(0));
    for (index, bits) in part.iter_mut().enumerate().take(keys.len.div_ceil(8) as usize) {
        *bits = ((byte(first + index) | byte(first + index + 1) << 8) >> shift) as u8;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wgpu_flash_attention::pack_bits;

    fn entries(problem: &AttentionProblem) -> Entries {
        Entries::all(problem).unwrap()[0]
    }

    #[test]
    fn columns_are_cut() {
        let shape = AttentionShape::new(2, 3, 5, 8).with_seqlen_kv(7);
        let of = |counts| {
            let bias = ScoreMod::Bias { layout: EntryLayout::contiguous(counts), element: Element::F32 };
            entries(&AttentionProblem::new(shape).with_score(bias))
        };
        let words = |values: &[u8]| values.iter().flat_map(|value| [*value, 0, 0, 0]).collect::<Vec<u8>>();
        // Two rows of one head, keys 4 to 6 of 7.
        let one_head = of([1, 1, 5, 7]);
        let given = words(&[0, 1, 2, 3, 4, 5, 6, 10, 11, 12, 13, 14, 15, 16]);
        let cut = one_head.cut(&given, 2, 7, Span { first: 4, len: 3 }, [4, 4]);
        assert_eq!(cut, words(&[4, 5, 6, 0, 14, 15, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0]));
        // An entry for each head and key, whatever the row.
        let of_keys = of([1, 3, 1, 7]);
        let given = words(&(0..21).collect::<Vec<u8>>());
        let cut = of_keys.cut(&given, 2, 7, Span { first: 0, len: 4 }, [4, 4]);
        assert_eq!(cut, words(&[0, 1, 2, 3, 7, 8, 9, 10, 14, 15, 16, 17]));
    }

    #[test]
    fn bits_are_cut_at_any_key() {
        let shape = AttentionShape::new(1, 1, 2, 8).with_seqlen_kv(75);
        let mask = KeyMask::Boolean(EntryLayout::packed_bits([1, 1, 2, 75]));
        let entries = entries(&AttentionProblem::new(shape).with_key_mask(mask));
        let bools: Vec<bool> = (0..150).map(|n| n * n % 7 < 3).collect();
        let bytes = |words: Vec<u32>| words.into_iter().flat_map(u32::to_le_bytes).collect::<Vec<u8>>();
        let given = bytes(pack_bits(&bools, 75));
        for keys in [Span { first: 0, len: 75 }, Span { first: 36, len: 33 }, Span { first: 68, len: 7 }] {
            let cut = entries.cut(&given, 2, 75, keys, [2, 76]);
            for (row, bits) in cut.chunks(12).enumerate() {
                for key in 0..keys.len as usize {
                    let expected = bools[row * 75 + keys.first as usize + key];
                    assert_eq!(bits[key / 8] >> (key % 8) & 1 == 1, expected, "{keys:?} {row} {key}");
                }
            }
        }
    }

    #[test]
    fn other_layouts_are_refused() {
        let shape = AttentionShape::new(1, 2, 4, 8);
        let layout = EntryLayout { stride_row: 8, ..EntryLayout::contiguous([1, 2, 4, 4]) };
        let bias = ScoreMod::Bias { layout, element: Element::F32 };
        assert!(Entries::all(&AttentionProblem::new(shape).with_score(bias)).is_err());
    }
}
