//! The blocks of a mask that the GPU knows: where it shows nothing, something, or all.

use super::attention::FlashAttention;
use super::host::ProbabilitiesSlices;
use crate::error::{Error, InvalidProblem};
use crate::problem::{
    AttentionLayout, AttentionProblem, AttentionShape, BlockKind, BlockMask, KeyMask, MOST_BLOCKS,
    ProbabilitiesProblem, TensorLayout, fault_of_counts, number_of_blocks,
};

/// Entries of a mask that are read back at a time.
const ENTRIES_AT_ONCE: u64 = 1 << 24;

impl FlashAttention {
    /// The blocks of a problem's [key masks](AttentionProblem::key_masks), which the GPU evaluates for every entry: of `mask_mod` in
    /// the caller's own WGSL, for example. Blocks have `sides` = (rows, keys). `batch` and `heads` are those of the problem, or 1
    /// if the masks are the same for all sequences, or heads. Of `slices`, only the words of a mask and `aux` are read. Causal,
    /// windows and lengths are not looked at: they apply beside the blocks. Give the result to the same problem, as
    /// [`KeyMask::Blocks`]: kernels then skip absent blocks, and ask the masks in partial ones alone.
    ///
    /// ```no_run
    /// use wgpu_flash_attention::{
    ///     AttentionProblem, AttentionShape, FlashAttention, KeyMask, MaskWgsl, ProbabilitiesSlices,
    /// };
    ///
    /// # async fn run(attention: FlashAttention) -> Result<(), wgpu_flash_attention::Error> {
    /// let near = "fn mask_mod(batch: u32, head: u32, q_idx: u32, kv_idx: u32) -> bool { return q_idx / 512u == kv_idx / 512u; }";
    /// let problem = AttentionProblem::new(AttentionShape::new(2, 16, 8192, 64)).with_key_mask(KeyMask::Wgsl(MaskWgsl::new(near)?));
    /// let nothing = ProbabilitiesSlices::new(&[], &[], &[]);
    /// let blocks = attention.block_mask(&problem, [1, 1], [128, 128], &nothing).await?;
    /// let problem = problem.with_key_mask(KeyMask::Blocks(blocks));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// Those of [`FlashAttention::probabilities`]; [`Error::InvalidProblem`] if the counts or sides do not fit the problem.
    pub async fn block_mask(
        &self,
        problem: &AttentionProblem,
        [batch, heads]: [u32; 2],
        sides: [u32; 2],
        slices: &ProbabilitiesSlices<'_, f32>,
    ) -> Result<BlockMask, Error> {
        let AttentionShape { seqlen_q, seqlen_kv, .. } = problem.shape;
        let [side_q, side_kv] = sides;
        let counts = [batch, heads, seqlen_q.div_ceil(side_q.max(1)), seqlen_kv.div_ceil(side_kv.max(1))];
        let refused = |reason| Error::from(InvalidProblem::KeyMask { name: "blocks", reason });
        if let Some(reason) = fault_of_counts(&problem.shape, counts, sides) {
            return Err(refused(reason));
        }
        let number = number_of_blocks(counts)
            .ok_or_else(|| refused(format!("{counts:?} blocks are too many, at most {MOST_BLOCKS} are made")))?;
        let masked = masks_alone(problem, batch, heads);
        if number > 0 {
            // The library judges the problem before anything of its size is made.
            self.plan_probabilities(&ProbabilitiesProblem::new(masked.clone(), 0..1, 0..1)).build()?;
        }
        let lse = vec![0.0; masked.shape.lse_len() as usize];
        let slices = ProbabilitiesSlices { q: &[0.0; 4], k: &[0.0; 4], lse: &lse, ..*slices };
        // Rows of whole blocks, as many as are read at a time.
        let entries = u64::from(batch) * u64::from(seqlen_kv) * u64::from(side_q);
        let blocks_at_once = (ENTRIES_AT_ONCE / entries.max(1)).clamp(1, counts[2].max(1).into()) as u32;
        let mut kinds = vec![BlockKind::Absent; number as usize];
        for head in 0..heads {
            for first in (0..counts[2]).step_by(blocks_at_once as usize) {
                let rows = first * side_q..((first + blocks_at_once).saturating_mul(side_q)).min(seqlen_q);
                let chosen = ProbabilitiesProblem::new(masked.clone(), head..head + 1, rows.clone());
                let seen = self.probabilities(&chosen, &slices).await?;
                let of_sequence = (rows.end - rows.start) as usize * seqlen_kv as usize;
                for (batch, seen) in seen.chunks(of_sequence.max(1)).enumerate() {
                    let row = (batch * heads as usize + head as usize) * counts[2] as usize + first as usize;
                    kinds_of(seen, seqlen_kv as usize, sides, &mut kinds[row * counts[3] as usize..]);
                }
            }
        }
        Ok(BlockMask::new(counts, sides, &kinds))
    }
}

/// The masks of a problem whose scores and LSE are all 0, so that P is 1 where a row sees a key.
fn masks_alone(problem: &AttentionProblem, batch: u32, heads: u32) -> AttentionProblem {
    let AttentionShape { seqlen_q, seqlen_kv, .. } = problem.shape;
    let shape = AttentionShape::new(batch, heads, seqlen_q, 4).with_seqlen_kv(seqlen_kv);
    let one_row = TensorLayout { offset: 0, stride_batch: 0, stride_row: 0, stride_head: 0 };
    let layout = AttentionLayout { q: one_row, k: one_row, ..AttentionLayout::bshd(&shape) };
    let alone = AttentionProblem::new(shape).with_layout(layout);
    let alone = problem.aux_len().into_iter().fold(alone, AttentionProblem::with_aux);
    let masks = problem.key_masks().iter().filter(|mask| !matches!(mask, KeyMask::Blocks(_)));
    masks.cloned().fold(alone, AttentionProblem::with_key_mask)
}

/// The kinds of rows of blocks, from what their rows of entries see.
fn kinds_of(seen: &[f32], seqlen_kv: usize, [side_q, side_kv]: [u32; 2], kinds: &mut [BlockKind]) {
    let columns = seqlen_kv.div_ceil(side_kv as usize).max(1);
    let of_blocks = seen.chunks((side_q as usize * seqlen_kv).max(1));
    for (rows, kinds) in of_blocks.zip(kinds.chunks_mut(columns)) {
        for (kind, first) in kinds.iter_mut().zip((0..).step_by(side_kv as usize)) {
            let keys = first..(first + side_kv as usize).min(seqlen_kv);
            let mut entries = rows.chunks(seqlen_kv).flat_map(|row| &row[keys.clone()]);
            let first = entries.next().is_some_and(|seen| *seen != 0.0);
            let is_mixed = entries.any(|seen| (*seen != 0.0) != first);
            *kind = match (is_mixed, first) {
                (true, _) => BlockKind::Partial,
                (false, true) => BlockKind::Full,
                (false, false) => BlockKind::Absent,
            };
        }
    }
}
