use super::case::Case;
use super::forward::{forward_row, k_slice, q_slice};
use super::modifiers::modified;
use std::ops::Range;

/// The probabilities of the given query heads and rows, before dropout: `[batch, heads, rows, seqlen_kv]`, 0 where a key is hidden
/// and in a row that sees nothing.
///
/// # Panics
///
/// As [`forward`](super::forward), and if the problem has not all of these heads and rows.
pub fn probabilities<'a>(
    problem: impl Into<Case<'a>>,
    q: &[f64],
    k: &[f64],
    heads: Range<u32>,
    rows: Range<u32>,
) -> Vec<f64> {
    let problem = problem.into();
    let (shape, layout) = (problem.shape, &problem.layout);
    // V makes no difference to LSE.
    let v_len = problem.len_in_kv(&layout.v, shape.head_dim_v);
    let v = vec![0.0; v_len.expect("V has an extent") as usize];
    let mut all = Vec::new();
    for (batch, head) in (0..shape.batch).flat_map(|batch| heads.clone().map(move |head| (batch, head))) {
        let head_kv = head / (shape.num_heads / shape.num_heads_kv);
        for row in rows.clone() {
            if row >= problem.rows_of(batch).0 {
                all.resize(all.len() + shape.seqlen_kv as usize, 0.0);
                continue;
            }
            let (_, lse) = forward_row(problem, q, k, &v, batch, head, row);
            let q_row = q_slice(&problem, q, &layout.q, (batch, row, head), shape.head_dim);
            let mut of_row = vec![0.0; shape.seqlen_kv as usize];
            for key in problem.keys((batch, head, row)).filter(|_| lse != f64::NEG_INFINITY) {
                let k_row = k_slice(&problem, k, &layout.k, (batch, key, head_kv), shape.head_dim);
                let product = q_row.iter().zip(k_row).map(|(q, k)| q * k).sum::<f64>();
                let s = modified(problem, problem.softmax_scale() * product, (batch, head, row, key));
                of_row[key as usize] = (s.value - lse).exp();
            }
            all.extend(of_row);
        }
    }
    all
}
