use super::attention::AttentionProblem;
use super::mask::Mask;

/// Where the rows and keys of a problem stand in a larger one, which is cut over several calls or devices. Row i is row
/// `first_row + i` of the whole, key j its key `first_key + j`. Causal masks, windows, ALiBi, dropout and the caller's own
/// WGSL go by these positions. So the [merge](super::MergeProblem) of the parts is what the whole gives.
///
/// A bias, a boolean mask, slopes and sinks are those of the part: give views of the whole.
///
/// ```
/// use wgpu_flash_attention::{AttentionProblem, AttentionShape, Shard};
///
/// // Rows 512 to 767 of a causal problem of 1024 tokens, and the keys before them.
/// let shape = AttentionShape::new(1, 8, 256, 64).with_seqlen_kv(512);
/// let shard = Shard::of_lengths(1024, 1024).with_first_row(512);
/// let problem = AttentionProblem::new(shape).with_causal().with_shard(shard);
/// assert_eq!(problem.visible_keys(0), 0..512);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[must_use]
#[non_exhaustive]
pub struct Shard {
    /// The row of the whole problem that row 0 is.
    pub first_row: u32,
    /// The key of the whole problem that key 0 is. With dropout a multiple of 4.
    pub first_key: u32,
    /// The sequence of the whole problem that sequence 0 is.
    pub first_batch: u32,
    /// The query head of the whole problem that query head 0 is.
    pub first_head: u32,
    /// Rows of the whole problem.
    pub seqlen_q: u32,
    /// Keys of the whole problem.
    pub seqlen_kv: u32,
    /// Query heads of the whole problem, or `None` for as many as the part has.
    pub num_heads: Option<u32>,
}

impl Shard {
    /// The first rows and keys of a problem with `seqlen_q` rows and `seqlen_kv` keys.
    pub const fn of_lengths(seqlen_q: u32, seqlen_kv: u32) -> Self {
        Self { first_row: 0, first_key: 0, first_batch: 0, first_head: 0, seqlen_q, seqlen_kv, num_heads: None }
    }

    /// Begins at this row.
    pub const fn with_first_row(mut self, first_row: u32) -> Self {
        self.first_row = first_row;
        self
    }

    /// Begins at this key.
    pub const fn with_first_key(mut self, first_key: u32) -> Self {
        self.first_key = first_key;
        self
    }

    /// Begins at this sequence.
    pub const fn with_first_batch(mut self, first_batch: u32) -> Self {
        self.first_batch = first_batch;
        self
    }

    /// Begins at this query head, of `num_heads`.
    pub const fn with_first_head(mut self, first_head: u32, num_heads: u32) -> Self {
        self.first_head = first_head;
        self.num_heads = Some(num_heads);
        self
    }

    /// The key that row 0 is aligned with.
    pub(crate) fn mask_offset(&self, mask: &Mask) -> i64 {
        mask.offset(self.seqlen_q, self.seqlen_kv) + i64::from(self.first_row) - i64::from(self.first_key)
    }

    /// What makes it no part of the whole that a call with these lengths could be, if anything does.
    pub(crate) fn fault(&self, problem: &AttentionProblem, [seqlen_q, seqlen_kv]: [u32; 2]) -> Option<String> {
        let shape = &problem.shape;
        let num_heads = self.num_heads.unwrap_or(shape.num_heads);
        let sides = [
            ("rows", self.first_row, seqlen_q, self.seqlen_q),
            ("keys", self.first_key, seqlen_kv, self.seqlen_kv),
            ("heads", self.first_head, shape.num_heads, num_heads),
        ];
        for (name, first, count, all) in sides {
            let end = u64::from(first) + u64::from(count);
            if end > all.into() {
                return Some(format!("{name} {first}..{end} are outside the whole, which has {name} 0..{all}"));
            }
        }
        let drops = problem.dropout.is_some();
        (drops && !self.first_key.is_multiple_of(4)).then(|| {
            format!(
                "first_key = {} with dropout; it must be a multiple of 4, for which one draw serves",
                self.first_key
            )
        })
    }
}
