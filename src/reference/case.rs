//! A problem and the host values of what its modifiers, masks and sink read.

use crate::problem::{AttentionProblem, EntryLayout, KeyMask};
use std::ops::Deref;

/// A problem, and the values of its bias, of its mask and of its sink, where it has one. A problem without them is one by
/// itself.
#[derive(Clone, Copy, Debug)]
pub struct Case<'a> {
    problem: &'a AttentionProblem,
    bias: &'a [f64],
    key_mask: &'a [u32],
    sink: &'a [f64],
}

impl<'a> Case<'a> {
    /// The problem, whose bias has these entries and whose mask these words, in their layouts. Empty where it has none.
    pub fn new(problem: &'a AttentionProblem, bias: &'a [f64], key_mask: &'a [u32]) -> Self {
        Self { problem, bias, key_mask, sink: &[] }
    }

    /// The same, with these logits for the sink, one for each query head.
    pub fn with_sink(self, sink: &'a [f64]) -> Self {
        Self { sink, ..self }
    }

    /// The logit that joins the sum of a row: −∞ where there is none, or no such row.
    pub(super) fn sink(&self, (batch, head, row): (u32, u32, u32)) -> f64 {
        let exists = row < self.problem.lengths_of(batch).0;
        if self.problem.has_sink() && exists { self.sink[head as usize] } else { f64::NEG_INFINITY }
    }

    /// The keys that a row of a sequence and head sees.
    pub(super) fn keys(&self, (batch, head, row): (u32, u32, u32)) -> impl Iterator<Item = u32> + Clone {
        self.problem.visible_keys_of(batch, row).filter(move |key| self.sees((batch, head, row, *key)))
    }

    fn sees(&self, cell: Cell) -> bool {
        self.problem.key_masks().iter().all(|mask| match mask {
            KeyMask::Boolean(layout) => {
                let bit = cell.3 * (layout.stride_key as u32);
                let word = entry(&EntryLayout { stride_key: 0, ..*layout }, cell) + bit as usize / 32;
                self.key_mask[word] >> (bit % 32) & 1 == 1
            }
            KeyMask::Blocks(mask) => {
                let (seqlen_q, seqlen_kv) = self.problem.lengths_of(cell.0);
                mask.sees(cell.0, cell.1, cell.2, cell.3, i64::from(seqlen_kv) - i64::from(seqlen_q))
            }
        })
    }

    /// The number of a cell's entry in the gradient of the bias, where that is asked for.
    pub(super) fn entry_of_dbias(&self, cell: Cell) -> Option<usize> {
        self.problem.bias_gradient().map(|(layout, _)| entry(&layout, cell))
    }

    /// Entries that the gradient of the bias has.
    pub(super) fn len_of_dbias(&self) -> usize {
        self.problem.bias_gradient().map_or(0, |(layout, _)| layout.required_len(&self.problem.shape) as usize)
    }

    /// The entry of the bias for a cell.
    pub(super) fn bias(&self, layout: &EntryLayout, cell: Cell) -> f64 {
        self.bias[entry(layout, cell)]
    }
}

/// Where a score stands: sequence, query head, row and key.
pub(super) type Cell = (u32, u32, u32, u32);

/// The number of the entry of a cell.
fn entry(layout: &EntryLayout, (batch, head, row, key): Cell) -> usize {
    let steps =
        [(batch, layout.stride_batch), (head, layout.stride_head), (row, layout.stride_row), (key, layout.stride_key)];
    let distance: u64 = steps.iter().map(|(count, stride)| u64::from(*count) * stride).sum();
    (layout.offset + distance) as usize
}

impl<'a> From<&'a AttentionProblem> for Case<'a> {
    fn from(problem: &'a AttentionProblem) -> Self {
        Self::new(problem, &[], &[])
    }
}

impl Deref for Case<'_> {
    type Target = AttentionProblem;

    fn deref(&self) -> &AttentionProblem {
        self.problem
    }
}
