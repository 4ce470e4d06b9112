//! Keys in chunks, where K or V is longer than one binding. Each chunk is a dispatch over a part of the problem, as a shard is;
//! its results are splits, which the merge takes as any others.

use super::dispatch::{Call, Dispatch, Origins};
use super::part::{Lengths, Part};
use super::passes::Plan;
use super::tensor::{Extent, Tensor};
use crate::operand::Operand;
use crate::problem::{AttentionProblem, ScoreMod, Shard};

/// Fewer keys are not worth a dispatch.
const LEAST_KEYS: u64 = 64;

/// The keys of each chunk, and into how many splits they go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Chunks {
    pub keys: u32,
    pub splits: u32,
}

impl Chunks {
    /// How many there are of so many keys: one of none.
    pub fn count(&self, seqlen_kv: u32) -> u32 {
        seqlen_kv.div_ceil(self.keys).max(1)
    }
}

/// Whether a chunk of keys is a problem of the same kind: what its keys are called makes no difference but for their distance from
/// a row.
fn may_be_chunked(problem: &AttentionProblem) -> bool {
    let are_relative = problem.scores().iter().all(|of| matches!(of, ScoreMod::Softcap(_) | ScoreMod::Alibi(_)));
    let is_plain = problem.dropout.is_none() && problem.key_masks().is_empty() && are_relative;
    is_plain && problem.lengths().is_none() && problem.cache().is_none() && problem.shard.is_none()
}

/// The most keys whose rows of K and of V are no longer than a binding, if the keys can be chunked.
pub(super) fn most_keys(problem: &AttentionProblem, tensors: &[Tensor], binding: u64) -> Option<u32> {
    if !may_be_chunked(problem) {
        return None;
    }
    let of_heads = |heads: u32| {
        let of_keys = tensors.iter().filter(|tensor| matches!(tensor.operand, Operand::K | Operand::V));
        of_keys.map(|tensor| keys_within(tensor, heads, binding)).min().unwrap_or(0)
    };
    // Of all heads, where rows of heads lie side by side.
    let [of_all, of_one] = [problem.shape.num_heads_kv, 1].map(of_heads);
    let keys = if of_all.saturating_mul(2) > of_one { of_all } else { of_one };
    let keys = keys / LEAST_KEYS * LEAST_KEYS;
    (keys > 0 && keys < problem.shape.seqlen_kv.into()).then_some(keys as u32)
}

/// Rows of so many heads of a tensor within a binding.
fn keys_within(tensor: &Tensor, heads: u32, binding: u64) -> u64 {
    let of_row = tensor.len_of(&Extent { batch: 1, rows: 1, heads, dim: tensor.extent.dim });
    let row = of_row.map(|len| len - tensor.layout.offset.min(len));
    let elements = binding / tensor.element.size();
    match (row, tensor.layout.stride_row) {
        (Some(row), stride) if row <= elements && stride > 0 => 1 + (elements - row) / stride,
        (Some(row), 0) if row <= elements => u64::MAX,
        _ => 0,
    }
}

impl Plan {
    /// A part as one dispatch binds it: with no more keys than a chunk.
    pub(super) fn with_keys_of_a_chunk(&self, part: &Part) -> Part {
        let keys = self.chunks.map_or(part.key_count, |chunks| part.key_count.min(chunks.keys));
        Part { key_count: keys, ..*part }
    }

    /// Whether a pass visits keys chunk by chunk.
    pub(super) fn visits_chunks(&self, index: usize) -> Option<Chunks> {
        self.chunks.filter(|_| self.passes[index].specialization.binds(Operand::K))
    }

    /// A pass over the chunks of a part.
    pub(super) fn dispatches_of_chunks(
        &self,
        index: usize,
        call: &Call,
        (lengths, part): (Lengths, Part),
        origins: &Origins,
        chunks: Chunks,
    ) -> impl Iterator<Item = Dispatch> {
        let whole = Shard::of_lengths(lengths.seqlen_q, lengths.seqlen_kv);
        (0..chunks.count(lengths.seqlen_kv)).map(move |number| {
            let first = number * chunks.keys;
            let count = chunks.keys.min(lengths.seqlen_kv - first);
            let own = Part { key_first: first, key_count: count, ..part };
            let of_chunk = Lengths { seqlen_kv: count, ..lengths };
            let shard = Some(whole.with_first_key(first));
            let mut dispatch = self.dispatch(index, call, shard, of_chunk, own, origins);
            let params = &mut dispatch.params;
            // The first of its keys is number 0.
            params.key_first = 0;
            params.o_parts_offset += number * chunks.splits * params.o_parts_stride_split;
            params.lse_parts_offset += number * chunks.splits * params.lse_parts_stride_split;
            dispatch
        })
    }
}
