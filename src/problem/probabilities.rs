use super::attention::AttentionProblem;
use std::ops::Range;

/// The probabilities of chosen heads and rows of an attention problem: `P = exp(S − LSE)` from the LSE of its forward pass, with
/// all modifiers and masks, before dropout. P is f32, contiguous `[batch, chosen heads, chosen rows, seqlen_kv]`. It is 0 where a
/// key is hidden, and in a row that sees nothing. With a sink, the probabilities of a row sum to less than 1.
///
/// ```
/// use wgpu_flash_attention::{AttentionProblem, AttentionShape, Capabilities, Operand, Plan, ProbabilitiesProblem};
///
/// // Head 3, the last 16 rows.
/// let attention = AttentionProblem::new(AttentionShape::new(2, 8, 512, 64)).with_causal();
/// let chosen = ProbabilitiesProblem::new(attention, 3..4, 496..512);
/// let capabilities = Capabilities::webgpu_defaults();
/// let plan = Plan::probabilities(&chosen, &capabilities).build()?;
/// assert_eq!(plan.required_len(Operand::Probabilities), 2 * 16 * 512);
/// # Ok::<(), wgpu_flash_attention::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
#[must_use]
#[non_exhaustive]
pub struct ProbabilitiesProblem {
    /// The problem whose probabilities they are. V and O are not used.
    pub attention: AttentionProblem,
    /// The query heads, of every sequence. At least one.
    pub heads: Range<u32>,
    /// The rows of each of them. At least one.
    pub rows: Range<u32>,
}

impl ProbabilitiesProblem {
    /// These query heads and rows of a problem.
    pub fn new(attention: AttentionProblem, heads: Range<u32>, rows: Range<u32>) -> Self {
        Self { attention, heads, rows }
    }

    /// Name, range and count of the dimension whose range holds nothing, or what the problem has not.
    pub(crate) fn fault(&self) -> Option<(&'static str, Range<u32>, u32)> {
        let shape = &self.attention.shape;
        let chosen = [("heads", &self.heads, shape.num_heads), ("rows", &self.rows, shape.seqlen_q)];
        let wrong = chosen.into_iter().find(|(_, range, count)| range.is_empty() || range.end > *count);
        wrong.map(|(name, range, count)| (name, range.clone(), count))
    }
}
