//! A part of the problem: what one dispatch covers.

use super::tiles::{Owns, Tiles};
use crate::problem::{AttentionProblem, AttentionShape};

/// What a part holds besides whole sequences and heads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cut {
    /// A range of rows, with all keys that they see.
    Rows,
    /// A range of keys, with all rows of all heads that share them.
    Keys,
    /// All rows and keys, of all heads that share keys: what sums over both in memory cannot be cut further.
    Groups,
    /// Whole heads, of all sequences one after another: a sum over them all.
    Heads,
    /// Any ranges, of which entries of a bias have their sums. These dimensions, of batch, heads, rows and keys, have entries of
    /// their own; along the others, each part adds to what the last one wrote.
    Entries { own: [bool; 4] },
    /// All at once.
    Nothing,
    /// All sequences at once, of which nothing but their lengths is read.
    Sequences,
}

impl Cut {
    /// That of passes which run one after another on a part, and own these.
    pub fn of(owned: &[Owns], problem: &AttentionProblem) -> Self {
        match owned {
            [Owns::Heads] => Cut::Heads,
            [Owns::Entries] => {
                let layout = problem.bias_gradient().map(|(layout, _)| layout);
                let strides = layout.map_or([0; 4], |l| [l.stride_batch, l.stride_head, l.stride_row, l.stride_key]);
                Cut::Entries { own: strides.map(|stride| stride > 0) }
            }
            [Owns::Everything] => Cut::Nothing,
            [Owns::Sequences] => Cut::Sequences,
            [Owns::Keys, rest @ ..] if rest.iter().all(|owns| *owns == Owns::Keys) => Cut::Keys,
            owned if owned.contains(&Owns::Keys) => Cut::Groups,
            _ => Cut::Rows,
        }
    }

    /// Whether batch, heads, rows and keys may be cut.
    pub fn cuts(self) -> [bool; 4] {
        match self {
            Cut::Rows => [true, true, true, false],
            Cut::Keys => [true, true, false, true],
            Cut::Groups | Cut::Heads => [true, true, false, false],
            Cut::Entries { .. } => [true; 4],
            Cut::Nothing | Cut::Sequences => [false; 4],
        }
    }

    /// In which order they are. What has entries of its own comes first, so that sums stay whole as long as they can.
    pub fn order(self) -> impl Iterator<Item = usize> {
        let own = if let Cut::Entries { own } = self { own } else { [true; 4] };
        (0..4).filter(move |n| own[*n]).chain((0..4).filter(move |n| !own[*n]))
    }

    /// Whether it is of entries, which exist whatever the lengths of a call.
    pub fn is_of_entries(self) -> bool {
        matches!(self, Cut::Entries { .. } | Cut::Nothing)
    }
}

/// Ranges of sequences, heads, rows and keys.
#[derive(Clone, Copy, Debug)]
pub(super) struct Part {
    pub batch_first: u32,
    pub batch_count: u32,
    pub head_first: u32,
    pub head_count: u32,
    pub row_first: u32,
    pub row_count: u32,
    pub key_first: u32,
    pub key_count: u32,
}

impl Part {
    /// All of the problem.
    pub fn whole(shape: &AttentionShape, lengths: Lengths) -> Self {
        Self {
            batch_first: 0,
            batch_count: shape.batch,
            head_first: 0,
            head_count: shape.query_heads(),
            row_first: 0,
            row_count: lengths.seqlen_q,
            key_first: 0,
            key_count: lengths.seqlen_kv,
        }
    }

    /// Its sequences, heads, rows and keys.
    pub fn counts(&self) -> [u32; 4] {
        [self.batch_count, self.head_count, self.row_count, self.key_count]
    }

    pub fn set_counts(&mut self, counts: [u32; 4]) {
        [self.batch_count, self.head_count, self.row_count, self.key_count] = counts;
    }

    /// Where dimensions have entries of their own: tiles of entries, and tiles of scores that share each of them.
    pub fn tiles_of_entries(&self, own: [bool; 4], tiles: Tiles) -> [u64; 2] {
        let sides = [1, 1, tiles.tile_q, tiles.tile_kv];
        let mut numbers = [1u64; 2];
        for ((count, side), is_own) in self.counts().into_iter().zip(sides).zip(own) {
            let number = &mut numbers[usize::from(!is_own)];
            *number = number.saturating_mul(count.div_ceil(side).into());
        }
        numbers
    }
}

/// The lengths of one call.
#[derive(Clone, Copy)]
pub(super) struct Lengths {
    pub seqlen_q: u32,
    pub seqlen_kv: u32,
}

impl Lengths {
    /// Those that the problem was prepared for.
    pub fn of(problem: &AttentionProblem) -> Self {
        Self::new(problem, problem.shape.seqlen_q, problem.shape.seqlen_kv)
    }

    /// Those of the entries of a bias, which exist whatever rows and keys there are.
    pub fn of_entries(shape: &AttentionShape) -> Self {
        Self { seqlen_q: if shape.num_heads == 0 { 0 } else { shape.seqlen_q }, seqlen_kv: shape.seqlen_kv }
    }

    /// Without query heads there are no rows either, and without rows of packed tensors none in a sequence.
    pub fn new(problem: &AttentionProblem, seqlen_q: u32, seqlen_kv: u32) -> Self {
        let has_rows = problem.shape.num_heads > 0 && problem.total_q() != Some(0);
        let has_keys = problem.total_kv() != Some(0);
        Self { seqlen_q: if has_rows { seqlen_q } else { 0 }, seqlen_kv: if has_keys { seqlen_kv } else { 0 } }
    }
}
