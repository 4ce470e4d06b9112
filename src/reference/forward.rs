use super::case::Case;
use super::cores;
use super::modifiers::modified;
use crate::problem::{AttentionProblem, TensorLayout};
use crate::problem::{Shard, philox4x32_10};

/// What the forward pass computes, in f64.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct ReferenceOutput {
    /// O in the problem's layout. Elements between the tensor's own are 0.
    pub o: Vec<f64>,
    /// The log-sum-exp of each row, `[batch, num_heads, seqlen_q]`, of packed sequences `[num_heads, total_q]`; −∞ where a row sees
    /// no key, or no sequence has it.
    pub lse: Vec<f64>,
}

/// The whole forward pass. Q, K and V lie in the problem's layouts. They hold the values that the kernels see, already
/// rounded to the problem's element type. Nothing here rounds.
///
/// # Panics
///
/// When a slice is shorter than its tensor, or the problem is one that [planning](crate::Plan) refuses.
pub fn forward<'a>(problem: impl Into<Case<'a>>, q: &[f64], k: &[f64], v: &[f64]) -> ReferenceOutput {
    forward_with(problem.into(), q, k, v, |p| p)
}

/// As [`forward`], but P is rounded to the problem's element type before its product with V, and so is O. This is what exact
/// standard attention gives if it keeps P in that type. Tests compare its error with that of kernels that round P too (see
/// [`Plan::rounds_p`](crate::plan::Plan::rounds_p)).
///
/// # Panics
///
/// As [`forward`].
pub fn forward_rounding_p<'a>(problem: impl Into<Case<'a>>, q: &[f64], k: &[f64], v: &[f64]) -> ReferenceOutput {
    let problem = problem.into();
    let round = |value| problem.element.round(value);
    let mut output = forward_with(problem, q, k, v, round);
    output.o.iter_mut().for_each(|o| *o = round(*o));
    output
}

fn forward_with(
    problem: Case<'_>,
    q: &[f64],
    k: &[f64],
    v: &[f64],
    round_p: impl Fn(f64) -> f64 + Copy + Send + Sync,
) -> ReferenceOutput {
    let shape = problem.shape;
    let o_len = problem.len_in_q(&problem.layout.o, shape.head_dim_v);
    let mut o = vec![0.0; o_len.expect("O has an extent") as usize];
    let mut lse = vec![f64::NEG_INFINITY; problem.lse_len() as usize];

    let positions = positions(&problem);
    let computed =
        cores::map(positions.len(), row_cost(&problem), |n| row_with(problem, q, k, v, positions[n], round_p));
    for (&(batch, head, row), (o_row, lse_row)) in positions.iter().zip(computed) {
        let first = q_index(&problem, &problem.layout.o, (batch, row, head));
        o[first..first + o_row.len()].copy_from_slice(&o_row);
        lse[problem.lse_index(batch, head, row)] = lse_row;
    }
    ReferenceOutput { o, lse }
}

/// One row of O (`head_dim_v` values) and its log-sum-exp. Keys that the mask hides are never read.
///
/// # Panics
///
/// As [`forward`].
pub fn forward_row<'a>(
    problem: impl Into<Case<'a>>,
    q: &[f64],
    k: &[f64],
    v: &[f64],
    batch: u32,
    head: u32,
    row: u32,
) -> (Vec<f64>, f64) {
    row_with(problem.into(), q, k, v, (batch, head, row), |p| p)
}

fn row_with(
    problem: Case<'_>,
    q: &[f64],
    k: &[f64],
    v: &[f64],
    (batch, head, row): (u32, u32, u32),
    round_p: impl Fn(f64) -> f64,
) -> (Vec<f64>, f64) {
    let shape = problem.shape;
    let scale = problem.softmax_scale();
    let head_kv = head / (shape.num_heads / shape.num_heads_kv);
    let keys = problem.keys((batch, head, row));

    let q_row = q_slice(&problem, q, &problem.layout.q, (batch, row, head), shape.head_dim);
    let s: Vec<f64> = keys
        .clone()
        .map(|key| {
            let k_row = k_slice(&problem, k, &problem.layout.k, (batch, key, head_kv), shape.head_dim);
            let s = scale * q_row.iter().zip(k_row).map(|(q, k)| q * k).sum::<f64>();
            modified(problem, s, (batch, head, row, key)).value
        })
        .collect();

    let mut o = vec![0.0; shape.head_dim_v as usize];
    // f64::max passes over NaN; a NaN score still reaches the sum, and through it the whole row.
    let sink = problem.sink((batch, head, row));
    let max = s.iter().copied().fold(sink, f64::max);
    if max == f64::NEG_INFINITY && !s.iter().chain([&sink]).any(|s| s.is_nan()) {
        // The row sees nothing: no key, or only scores of −∞, which is what a mask means.
        return (o, f64::NEG_INFINITY);
    }
    let sum: f64 = s.iter().chain([&sink]).map(|s| (s - max).exp()).sum();

    for (s, key) in s.iter().zip(keys) {
        let p = (s - max).exp() / sum;
        let p = match problem.dropout {
            Some(dropout) if keeps(&problem, batch, head, row, key) => p * dropout.keep_scale(),
            // NaN stays NaN.
            Some(_) => 0.0 * p,
            None => p,
        };
        let v_row = k_slice(&problem, v, &problem.layout.v, (batch, key, head_kv), shape.head_dim_v);
        for (o, v) in o.iter_mut().zip(v_row) {
            *o += round_p(p) * v;
        }
    }
    (o, max + sum.ln())
}

/// Whether dropout keeps the entry (row, key); always true without dropout.
pub fn keeps(problem: &AttentionProblem, batch: u32, head: u32, row: u32, key: u32) -> bool {
    let Some(dropout) = problem.dropout else { return true };
    let philox_key = [dropout.philox_seed as u32, (dropout.philox_seed >> 32) as u32];
    let whole = problem.shard.unwrap_or(Shard::of_lengths(0, 0));
    let (batch, head) = (batch + whole.first_batch, head + whole.first_head);
    let (row, key) = (row + whole.first_row, key + whole.first_key);
    // 32 bits wide, as in the shaders: past them the number wraps.
    let num_heads = whole.num_heads.unwrap_or(problem.shape.num_heads);
    let batch_and_head = batch.wrapping_mul(num_heads).wrapping_add(head);
    let counter = [key / 4, row, batch_and_head, dropout.philox_offset];
    philox4x32_10(philox_key, counter)[(key % 4) as usize] >= dropout.threshold()
}

/// Products that a row of the problem takes, forward.
pub(super) fn row_cost(problem: &AttentionProblem) -> u64 {
    let shape = &problem.shape;
    u64::from(shape.seqlen_kv) * u64::from(shape.head_dim + shape.head_dim_v)
}

/// Every (batch, head, row) that lies in the tensors.
pub(super) fn positions(problem: &AttentionProblem) -> Vec<(u32, u32, u32)> {
    let heads = |batch: u32| (0..problem.shape.num_heads).map(move |head| (batch, head));
    let rows = |(batch, head): (u32, u32)| (0..problem.rows_of(batch).0).map(move |row| (batch, head, row));
    (0..problem.shape.batch).flat_map(heads).flat_map(rows).collect()
}

/// The index of (batch, row, head) in a tensor with the rows of Q.
pub(super) fn q_index(problem: &AttentionProblem, layout: &TensorLayout, (batch, row, head): (u32, u32, u32)) -> usize {
    let (batch, row) = problem.row_in_q(batch, row);
    layout.index(batch, row, head) as usize
}

/// The index of (batch, key, head) in a tensor with the rows of K and V.
pub(super) fn k_index(problem: &AttentionProblem, layout: &TensorLayout, (batch, key, head): (u32, u32, u32)) -> usize {
    let (batch, key) = problem.row_in_kv(batch, key);
    layout.index(batch, key, head) as usize
}

/// The contiguous last dimension of a tensor with the rows of Q at (batch, row, head).
pub(super) fn q_slice<'a>(
    problem: &AttentionProblem,
    tensor: &'a [f64],
    layout: &TensorLayout,
    position: (u32, u32, u32),
    dim: u32,
) -> &'a [f64] {
    &tensor[q_index(problem, layout, position)..][..dim as usize]
}

/// The contiguous last dimension of a tensor with the rows of K and V at (batch, key, head).
pub(super) fn k_slice<'a>(
    problem: &AttentionProblem,
    tensor: &'a [f64],
    layout: &TensorLayout,
    position: (u32, u32, u32),
    dim: u32,
) -> &'a [f64] {
    &tensor[k_index(problem, layout, position)..][..dim as usize]
}
