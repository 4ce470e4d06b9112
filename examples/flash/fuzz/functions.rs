//! Functions in WGSL, and what they compute.

use std::sync::Arc;

use wgpu_flash_attention::reference::Score;
use wgpu_flash_attention::{AttentionProblem, MaskWgsl, ScoreWgsl};

/// What a score modifier computes, from aux, a score, and sequence, head, row and key.
pub type ScoreFn = fn(&[f32], f64, [u32; 4]) -> Score;

/// The same of a mask.
pub type MaskFn = fn([u32; 4]) -> bool;

/// Entries of aux.
pub const AUX: u32 = 17;

/// A curve through 0 whose bend is data, by relative position.
const CURVED: &str = "
fn bend(batch: u32, head: u32, q_idx: u32, kv_idx: u32) -> f32 {
  return aux[clamp(i32(q_idx) - i32(kv_idx), -8, 8) + 8] * f32(1u + head) / f32(1u + batch);
}

fn score_mod(score: f32, batch: u32, head: u32, q_idx: u32, kv_idx: u32) -> f32 {
  return fma(0.1 * bend(batch, head, q_idx, kv_idx) * score, score, score);
}

fn score_mod_grad(grad: f32, score: f32, batch: u32, head: u32, q_idx: u32, kv_idx: u32) -> f32 {
  return grad * fma(0.2 * bend(batch, head, q_idx, kv_idx), score, 1.0);
}
";

fn curved(aux: &[f32], score: f64, [batch, head, row, key]: [u32; 4]) -> Score {
    let entry = aux[((i64::from(row) - i64::from(key)).clamp(-8, 8) + 8) as usize];
    let bend = f64::from(entry) * f64::from(1 + head) / f64::from(1 + batch);
    let (curve, steep) = (0.1 * bend * score * score, 0.2 * bend * score);
    Score {
        value: score + curve,
        slope: 1.0 + steep,
        bend: 0.2 * bend,
        rounding: 6.0 * curve.abs() + score.abs(),
        slope_rounding: 6.0 * steep.abs() + 1.0,
    }
}

/// Half of every third key's score, and −∞ for some; without data.
const HALVED: &str = "
fn is_hidden(q_idx: u32, kv_idx: u32) -> bool { return (q_idx + 2u * kv_idx) % 11u == 5u; }

fn score_mod(score: f32, batch: u32, head: u32, q_idx: u32, kv_idx: u32) -> f32 {
  if is_hidden(q_idx, kv_idx) { return -3.0e38; }
  return select(score, 0.5 * score, kv_idx % 3u == head % 3u);
}

fn score_mod_grad(grad: f32, score: f32, batch: u32, head: u32, q_idx: u32, kv_idx: u32) -> f32 {
  if is_hidden(q_idx, kv_idx) { return 0.0; }
  return select(grad, 0.5 * grad, kv_idx % 3u == head % 3u);
}
";

fn halved(_: &[f32], score: f64, [_, head, row, key]: [u32; 4]) -> Score {
    let of = |value: f64, slope: f64| Score { value, slope, bend: 0.0, rounding: 0.0, slope_rounding: 0.0 };
    match () {
        () if (row + 2 * key) % 11 == 5 => of(f64::NEG_INFINITY, 0.0),
        () if key % 3 == head % 3 => of(0.5 * score, 0.5),
        () => of(score, 1.0),
    }
}

/// A loop, a struct and a helper.
const SIEVE: &str = "
struct Pair { first: u32, second: u32 }

fn pair_of(kv_idx: u32) -> Pair { return Pair(kv_idx % 5u, kv_idx % 7u); }

fn mask_mod(batch: u32, head: u32, q_idx: u32, kv_idx: u32) -> bool {
  let pair = pair_of(kv_idx);
  for (var step = 1u; step <= 3u; step++) {
    if pair.first == 5u - step { return true; }
  }
  return kv_idx == q_idx || pair.second <= head % 2u + batch;
}
";

fn sieve([batch, head, row, key]: [u32; 4]) -> bool {
    key % 5 >= 2 || key == row || key % 7 <= head % 2 + batch
}

/// Few keys, and none for some rows.
const BAND: &str = "
fn mask_mod(batch: u32, head: u32, q_idx: u32, kv_idx: u32) -> bool {
  return q_idx % 13u != 4u && kv_idx <= q_idx + 3u && kv_idx + 9u >= q_idx;
}
";

fn band([_, _, row, key]: [u32; 4]) -> bool {
    row % 13 != 4 && key <= row + 3 && key + 9 >= row
}

/// A score modifier by its number.
pub fn score_mod(number: u64) -> Result<(ScoreWgsl, ScoreFn), String> {
    let (text, function) = if number % 2 == 1 { (CURVED, curved as ScoreFn) } else { (HALVED, halved as ScoreFn) };
    Ok((ScoreWgsl::new(text).map_err(|fault| fault.to_string())?, function))
}

/// A mask by its number.
pub fn mask_mod(number: u64) -> Result<(MaskWgsl, MaskFn), String> {
    let (text, function) = if number % 2 == 1 { (SIEVE, sieve as MaskFn) } else { (BAND, band as MaskFn) };
    Ok((MaskWgsl::new(text).map_err(|fault| fault.to_string())?, function))
}

/// A score modifier with its data.
pub type ScoreClosure = Arc<dyn Fn(f64, [u32; 4]) -> Score + Send + Sync>;

/// A mask.
pub type MaskClosure = Arc<dyn Fn([u32; 4]) -> bool + Send + Sync>;

/// What the oracle takes.
#[derive(Clone, Default)]
pub struct Closures {
    pub score_mod: Option<ScoreClosure>,
    pub mask_mod: Option<MaskClosure>,
}

impl Closures {
    /// The same for a problem over a cache, whose functions are told a row's position: the last row is at the last key.
    pub fn by_position(&self, problem: &AttentionProblem) -> Self {
        let lengths: Vec<_> = (0..problem.shape.batch).map(|batch| problem.lengths_of(batch)).collect();
        let placed = Arc::new(move |[batch, head, row, key]: [u32; 4]| {
            let (seqlen_q, seqlen_kv) = lengths[batch as usize];
            [batch, head, (row + seqlen_kv).saturating_sub(seqlen_q), key]
        });
        let of_score = placed.clone();
        Self {
            score_mod: self
                .score_mod
                .clone()
                .map(|given| -> ScoreClosure { Arc::new(move |score, cell| given(score, of_score(cell))) }),
            mask_mod: self.mask_mod.clone().map(|given| -> MaskClosure { Arc::new(move |cell| given(placed(cell))) }),
        }
    }
}
