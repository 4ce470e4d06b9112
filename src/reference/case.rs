//! A problem, the host values of what its modifiers, masks and sink read, and what its functions in WGSL compute.

use super::modifiers::Score;
use crate::problem::{AttentionProblem, EntryLayout, KeyMask};
use std::fmt;
use std::ops::Deref;

/// What `score_mod` makes of a score, for sequence, query head, row and key.
pub type ScoreModFn<'a> = &'a (dyn Fn(f64, [u32; 4]) -> Score + Sync);

/// What `mask_mod` says of a sequence, query head, row and key.
pub type MaskModFn<'a> = &'a (dyn Fn([u32; 4]) -> bool + Sync);

/// A problem, and the values of its bias, of its mask and of its sink, where it has one. A problem without them is one by
/// itself. The oracle cannot run WGSL: it takes such functions as closures.
#[derive(Clone, Copy)]
pub struct Case<'a> {
    problem: &'a AttentionProblem,
    bias: &'a [f64],
    key_mask: &'a [u32],
    sink: &'a [f64],
    score_mod: Option<ScoreModFn<'a>>,
    mask_mod: Option<MaskModFn<'a>>,
}

impl<'a> Case<'a> {
    /// The problem, whose bias has these entries and whose mask these words, in their layouts. Empty where it has none.
    pub fn new(problem: &'a AttentionProblem, bias: &'a [f64], key_mask: &'a [u32]) -> Self {
        Self { problem, bias, key_mask, sink: &[], score_mod: None, mask_mod: None }
    }

    /// The same, with these logits for the sink, one for each query head.
    pub fn with_sink(self, sink: &'a [f64]) -> Self {
        Self { sink, ..self }
    }

    /// The same, where this is what [`ScoreMod::Wgsl`](crate::ScoreMod::Wgsl) computes.
    pub fn with_score_mod(self, score_mod: ScoreModFn<'a>) -> Self {
        Self { score_mod: Some(score_mod), ..self }
    }

    /// The same, where this is what [`KeyMask::Wgsl`] computes.
    pub fn with_mask_mod(self, mask_mod: MaskModFn<'a>) -> Self {
        Self { mask_mod: Some(mask_mod), ..self }
    }

    /// What `score_mod` makes of a score.
    pub(super) fn score_mod(&self, score: f64, cell: Cell) -> Score {
        self.score_mod.expect("the case has the problem's score_mod")(score, self.cell_of_wgsl(cell))
    }

    /// What functions in WGSL are told: where a cell stands in the problem that this one is a part of. Over a cache, a row counts
    /// as its position: the last row is at the last key.
    fn cell_of_wgsl(&self, (batch, head, row, key): Cell) -> [u32; 4] {
        let (seqlen_q, seqlen_kv) = self.problem.lengths_of(batch);
        let row = if self.problem.cache().is_some() { (row + seqlen_kv).saturating_sub(seqlen_q) } else { row };
        self.problem.shard.map_or([batch, head, row, key], |shard| {
            [batch + shard.first_batch, head + shard.first_head, row + shard.first_row, key + shard.first_key]
        })
    }

    /// The logit that joins the sum of a row: −∞ where there is none, or no such row.
    pub(super) fn sink(&self, (batch, head, row): (u32, u32, u32)) -> f64 {
        let exists = row < self.problem.lengths_of(batch).0;
        if self.problem.has_sink() && exists { self.sink[head as usize] } else { f64::NEG_INFINITY }
    }

    /// The keys that a row of a sequence and head sees.
    pub fn keys(&self, (batch, head, row): (u32, u32, u32)) -> impl Iterator<Item = u32> + Clone {
        self.problem.visible_keys_of(batch, row).filter(move |key| self.is_shown((batch, head, row, *key)))
    }

    /// Whether a row of a sequence and head sees a key: (sequence, head, row, key).
    pub fn sees(&self, cell: (u32, u32, u32, u32)) -> bool {
        self.problem.visible_keys_of(cell.0, cell.2).contains(&cell.3) && self.is_shown(cell)
    }

    /// Whether the key masks show a key.
    fn is_shown(&self, cell: Cell) -> bool {
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
            KeyMask::Wgsl(_) => {
                let mask_mod = self.mask_mod.expect("the case has the problem's mask_mod");
                mask_mod(self.cell_of_wgsl(cell))
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

impl fmt::Debug for Case<'_> {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.debug_struct("Case").field("problem", self.problem).finish_non_exhaustive()
    }
}

impl Deref for Case<'_> {
    type Target = AttentionProblem;

    fn deref(&self) -> &AttentionProblem {
        self.problem
    }
}
