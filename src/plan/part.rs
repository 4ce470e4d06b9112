//! A part of the problem: what one dispatch covers.

use super::tiles::Owns;
use crate::problem::AttentionShape;

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
}

impl Cut {
    /// That of passes which run one after another on a part, and own these.
    pub fn of(owned: &[Owns]) -> Self {
        match owned {
            [Owns::Heads] => Cut::Heads,
            [Owns::Keys, rest @ ..] if rest.iter().all(|owns| *owns == Owns::Keys) => Cut::Keys,
            owned if owned.contains(&Owns::Keys) => Cut::Groups,
            _ => Cut::Rows,
        }
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
}

/// The lengths of one call.
#[derive(Clone, Copy)]
pub(super) struct Lengths {
    pub seqlen_q: u32,
    pub seqlen_kv: u32,
}

impl Lengths {
    /// Those that the problem was prepared for.
    pub fn of(shape: &AttentionShape) -> Self {
        Self::new(shape, shape.seqlen_q, shape.seqlen_kv)
    }

    /// Without query heads there are no rows either.
    pub fn new(shape: &AttentionShape, seqlen_q: u32, seqlen_kv: u32) -> Self {
        Self { seqlen_q: if shape.num_heads == 0 { 0 } else { seqlen_q }, seqlen_kv }
    }
}
