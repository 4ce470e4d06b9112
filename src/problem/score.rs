use super::element::Element;
use super::entries::EntryLayout;
use super::shape::AttentionShape;
use super::shown::shown;
use super::wgsl::ScoreWgsl;
use crate::operand::Operand;

/// A score modifier: it changes S between softmax_scale · Q Kᵀ and the mask. See
/// [`AttentionProblem::with_score`](super::AttentionProblem::with_score).
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum ScoreMod {
    /// S becomes softcap · tanh(S / softcap), which stays between −softcap and softcap. It must be above 0 and finite.
    Softcap(f32),
    /// ALiBi: S becomes S − slope · |i + offset − j| for row i and key j, with the offset of the mask: seqlen_kv − seqlen_q, or
    /// 0 with [`AttentionProblem::with_causal_top_left`](super::AttentionProblem::with_causal_top_left). One slope for each query head
    /// (`[num_heads]`), or for each in each sequence (`[batch, num_heads]`); all must be finite. [`alibi_slopes`] gives the usual
    /// ones.
    Alibi(Vec<f32>),
    /// S becomes S + bias, with an entry for each (sequence, query head, row, key) in the buffer of
    /// [`Operand::Bias`](crate::Operand::Bias), in f32 or the problem's element. An entry of −∞ gives a score of −∞. That is arithmetic:
    /// a NaN of Q or K behind it stays NaN. [`KeyMask::Boolean`](super::KeyMask::Boolean) hides. Kernels multiply scores by log2(e):
    /// one below −2e38 counts as −∞, so `f32::MIN` does too, and one above 2e38 as +∞.
    ///
    /// The entries come by [`ForwardSlices::with_bias`](crate::ForwardSlices::with_bias), or in a buffer by
    /// [`Buffers::with`](crate::Buffers::with). Its gradient comes by
    /// [`AttentionProblem::with_bias_gradient`](super::AttentionProblem::with_bias_gradient).
    Bias {
        /// Where each entry lies.
        layout: EntryLayout,
        /// The type that entries are stored in.
        element: Element,
    },
    /// S becomes what a function in the caller's own WGSL gives, `score_mod`. A score of −∞ or below −2e38 counts as −∞, NaN gives
    /// NaN in its row alone. Gradients need `score_mod_grad` in the same text.
    Wgsl(ScoreWgsl),
}

impl ScoreMod {
    /// The name used in WGSL and by the CLI.
    pub const fn name(&self) -> &'static str {
        match self {
            ScoreMod::Softcap(_) => "softcap",
            ScoreMod::Alibi(_) => "alibi",
            ScoreMod::Bias { .. } => "bias",
            ScoreMod::Wgsl(_) => "score_mod",
        }
    }

    /// The operand that its WGSL reads, if it reads one.
    pub(crate) fn reads(&self) -> Option<Operand> {
        match self {
            ScoreMod::Softcap(_) | ScoreMod::Alibi(_) => Some(Operand::Tables),
            ScoreMod::Bias { .. } => Some(Operand::Bias),
            ScoreMod::Wgsl(wgsl) => wgsl.reads_aux().then_some(Operand::Aux),
        }
    }

    /// The type of the entries that it adds.
    pub(crate) const fn bias_element(&self) -> Option<Element> {
        match self {
            ScoreMod::Bias { element, .. } => Some(*element),
            ScoreMod::Softcap(_) | ScoreMod::Alibi(_) | ScoreMod::Wgsl(_) => None,
        }
    }

    /// Whether it adds entries whose rows are whole quads of neighbouring keys.
    pub(crate) fn has_bias_in_quads(&self, shape: &AttentionShape) -> bool {
        let ScoreMod::Bias { layout, .. } = self else { return false };
        let EntryLayout { offset, stride_batch, stride_head, stride_row, stride_key } = *layout;
        let numbers = [offset, stride_batch, stride_head, stride_row, shape.seqlen_kv.into()];
        stride_key == 1 && numbers.iter().all(|number| number % 4 == 0)
    }

    /// What makes it no modifier for a problem of this shape, if anything does.
    pub(crate) fn fault(&self, shape: &AttentionShape, of_problem: Element) -> Option<String> {
        match self {
            ScoreMod::Softcap(softcap) if softcap.is_finite() && *softcap > 0.0 => None,
            ScoreMod::Softcap(softcap) => Some(format!("{} is given; it must be above 0 and finite", shown(*softcap))),
            ScoreMod::Alibi(slopes) => {
                let (heads, found) = (u64::from(shape.num_heads), slopes.len() as u64);
                let all = heads * u64::from(shape.batch);
                if found != heads && found != all {
                    return Some(format!(
                        "{found} slopes are given; there must be one for each head, {heads}, or for each head of each \
                         sequence, {all}"
                    ));
                }
                let slope = slopes.iter().find(|slope| !slope.is_finite())?;
                Some(format!("a slope is {}; all must be finite", shown(*slope)))
            }
            ScoreMod::Bias { element, .. } if *element != Element::F32 && *element != of_problem => {
                Some(format!("it is in {element:?}; it must be in F32 or, as the problem, in {of_problem:?}"))
            }
            ScoreMod::Bias { layout, .. } => layout.fault(shape),
            // Its text was checked when it was made.
            ScoreMod::Wgsl(_) => None,
        }
    }

    /// The words that its WGSL reads from [`Operand::Tables`](crate::Operand::Tables).
    pub(crate) fn table(&self, shape: &AttentionShape) -> Vec<u32> {
        match self {
            ScoreMod::Softcap(softcap) => vec![softcap.to_bits()],
            ScoreMod::Alibi(slopes) => {
                let is_shared = slopes.len() as u64 == u64::from(shape.num_heads);
                let stride_batch = if is_shared { 0 } else { shape.num_heads };
                [stride_batch].into_iter().chain(slopes.iter().map(|slope| slope.to_bits())).collect()
            }
            // Tensors of the caller's.
            ScoreMod::Bias { .. } | ScoreMod::Wgsl(_) => Vec::new(),
        }
    }
}

/// The slopes of ALiBi (Press et al. 2022) for each of `num_heads` heads: 2^(−8/n), 2^(−16/n), … for n heads where n is a power
/// of two. For other numbers those of the power of two below, and then every second one of the power of two above, as the
/// authors' code has it.
pub fn alibi_slopes(num_heads: u32) -> Vec<f32> {
    let geometric = |n: u32, index: u32| (-8.0 * f64::from(index + 1) / f64::from(n)).exp2() as f32;
    let below: u32 = num_heads.checked_ilog2().map_or(1, |log| 1 << log);
    let between = |index: u32| geometric(below.saturating_mul(2), 2 * (index - below));
    (0..num_heads).map(|head| if head < below { geometric(below, head) } else { between(head) }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slopes_are_those_of_the_authors_code() {
        assert_eq!(alibi_slopes(0), []);
        assert_eq!(alibi_slopes(1), [1.0 / 256.0]);
        assert_eq!(alibi_slopes(8), [0.5, 0.25, 0.125, 0.0625, 0.03125, 0.015625, 0.0078125, 0.00390625]);
        // get_slopes(6) = get_slopes(4) and every second one of get_slopes(8).
        assert_eq!(alibi_slopes(6), [0.25, 0.0625, 0.015625, 0.00390625, 0.5, 0.125]);
        let twelve = alibi_slopes(12);
        assert_eq!(twelve[..8], alibi_slopes(8));
        assert_eq!(twelve[8], 0.5f32.sqrt());
    }
}
