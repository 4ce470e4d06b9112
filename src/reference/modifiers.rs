//! What score modifiers make of a score, and how it errs.

use super::case::{Case, Cell};
use crate::problem::{AttentionProblem, Element, ScoreMod};

/// A score, as a function of what it was before some modifiers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Score {
    /// The score.
    pub value: f64,
    /// Its first derivative.
    pub slope: f64,
    /// Its second derivative.
    pub bend: f64,
    /// How far a kernel's value may be from it, in units of 2⁻²⁴.
    pub rounding: f64,
    /// The same of its slope.
    pub slope_rounding: f64,
}

/// What the problem's modifiers make of a product, softmax_scale · q · k, and the derivative of that, for sequence, query head,
/// row and key.
pub fn score<'a>(problem: impl Into<Case<'a>>, [batch, head, row, key]: [u32; 4], product: f64) -> [f64; 2] {
    let score = modified(problem.into(), product, (batch, head, row, key));
    [score.value, score.slope]
}

/// What the problem's modifiers make of softmax_scale · q · k.
pub(super) fn modified(problem: Case<'_>, s: f64, cell: Cell) -> Score {
    let score =
        problem.scores().iter().fold(Score::unmodified(s), |before, modifier| before.then(modifier, problem, cell));
    if problem.scores().is_empty() {
        return score;
    }
    // To natural units and back: two roundings each.
    let conversion = 2.0 * size(s) * score.slope.abs() + 2.0 * size(score.value);
    Score { rounding: score.rounding + conversion, ..score }
}

/// The same as a function of the score to which the bias was added.
pub(super) fn modified_from_bias(problem: Case<'_>, s: f64, cell: Cell) -> Score {
    let start = Score { rounding: 2.0 * s.abs(), ..Score::unmodified(s) };
    let (mut score, mut slope_before) = (start, 1.0);
    for modifier in problem.scores() {
        score = score.then(modifier, problem, cell);
        if let ScoreMod::Bias { .. } = modifier {
            slope_before = score.slope;
            score = Score { rounding: score.rounding, ..Score::unmodified(score.value) };
        }
    }
    // What moves the product moves the score to which the bias is added by its slope.
    Score { bend: score.bend * slope_before, ..score }
}

impl Score {
    fn unmodified(value: f64) -> Self {
        Self { value, slope: 1.0, bend: 0.0, rounding: 0.0, slope_rounding: 0.0 }
    }

    /// What one more modifier makes of it.
    fn then(self, modifier: &ScoreMod, problem: Case<'_>, cell: Cell) -> Self {
        let after = match modifier {
            ScoreMod::Softcap(softcap) => softcapped(self.value, f64::from(*softcap), problem.element),
            ScoreMod::Alibi(slopes) => with_alibi(self.value, &problem, slopes, cell),
            ScoreMod::Bias { layout, .. } => with_bias(self.value, problem.bias(layout, cell)),
            ScoreMod::Wgsl(_) => problem.score_mod(self.value, cell),
        };
        after.of(self)
    }

    /// A modifier's score of what others have made.
    fn of(self, inner: Self) -> Self {
        Self {
            value: self.value,
            slope: self.slope * inner.slope,
            bend: self.bend * inner.slope * inner.slope + self.slope * inner.bend,
            rounding: self.slope.abs() * inner.rounding + self.rounding,
            slope_rounding: self.slope.abs() * inner.slope_rounding
                + (self.slope_rounding + self.bend.abs() * inner.rounding) * inner.slope.abs(),
        }
    }
}

/// softcap · tanh(s / softcap). The shader's tanh errs by 12 units or less, of its exponential and its division; with 16-bit
/// elements by eight units of 1 more (`shaders/slots/tanh/`): 1 − 2 r², where r = 1 / √(e + 1) is right to two units and r² to five,
/// and three come from e, which is right to four and counts half beside 1, and from their sum.
fn softcapped(s: f64, softcap: f64, element: Element) -> Score {
    let share = (s / softcap).tanh();
    let slope = 1.0 - share * share;
    let of_small = if element == Element::F32 { 0.0 } else { 8.0 };
    Score {
        value: softcap * share,
        slope,
        bend: -2.0 * share * slope / softcap,
        rounding: 6.0 * (softcap * (s / softcap).abs().min(20.0) * slope) + softcap * (14.0 * share.abs() + of_small),
        slope_rounding: (26.0 + 2.0 * of_small) * share.abs() + 2.0,
    }
}

/// s − slope · |i + offset − j|.
fn with_alibi(s: f64, problem: &AttentionProblem, slopes: &[f32], (batch, head, row, key): Cell) -> Score {
    let shape = &problem.shape;
    let is_shared = slopes.len() == shape.num_heads as usize;
    let first = if is_shared { 0 } else { (batch * shape.num_heads) as usize };
    let (seqlen_q, seqlen_kv) = problem.lengths_of(batch);
    let offset = problem.mask_offset(seqlen_q, seqlen_kv);
    let distance = (i64::from(row) + offset - i64::from(key)).abs() as f64;
    let subtracted = f64::from(slopes[first + head as usize]) * distance;
    let value = s - subtracted;
    // Distances of more than 2²⁴ are rounded twice.
    let rounding = 3.0 * subtracted.abs() + size(value);
    Score { value, slope: 1.0, bend: 0.0, rounding, slope_rounding: 0.0 }
}

/// s + bias.
fn with_bias(s: f64, bias: f64) -> Score {
    let value = s + bias;
    Score { value, slope: 1.0, bend: 0.0, rounding: size(value), slope_rounding: 0.0 }
}

/// What a value may be rounded by, in units of 2⁻²⁴: nothing, if it is infinite.
fn size(value: f64) -> f64 {
    if value.is_finite() { value.abs() } else { 0.0 }
}
