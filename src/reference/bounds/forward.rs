//! The errors of O and LSE.

use super::terms::{ErrorTerms, SMALLEST, Sum};
use crate::problem::AttentionProblem;
use crate::reference::case::Case;
use crate::reference::cores;
use crate::reference::forward::{k_slice, keeps, positions, q_index, q_slice, row_cost};
use crate::reference::modifiers::{Score, modified, modified_from_bias};

/// What bounds the errors of the forward pass.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct ForwardErrors {
    /// Of each element of O, in the problem's layout.
    pub o: Vec<ErrorTerms>,
    /// Of each LSE, which lies as LSE does.
    pub lse: Vec<ErrorTerms>,
}

/// What bounds the errors of O and LSE for these inputs, which lie as those of [`forward`](crate::reference::forward) do.
///
/// # Panics
///
/// As `forward`.
pub fn forward_errors<'a>(problem: impl Into<Case<'a>>, q: &[f64], k: &[f64], v: &[f64]) -> ForwardErrors {
    let problem = problem.into();
    let shape = problem.shape;
    let o_len = problem.len_in_q(&problem.layout.o, shape.head_dim_v);
    let mut errors = ForwardErrors {
        o: vec![ErrorTerms::default(); o_len.expect("O has an extent") as usize],
        lse: vec![ErrorTerms::default(); problem.lse_len() as usize],
    };
    let positions = positions(&problem);
    let rows = cores::map(positions.len(), 3 * row_cost(&problem), |n| {
        let row = Row::new(problem, [q, k], positions[n]);
        if row.lse == f64::NEG_INFINITY { None } else { Some((of_o(&problem, &row, v), of_lse(&row))) }
    });
    for (&(batch, head, row), of_row) in positions.iter().zip(rows) {
        let Some((o, lse)) = of_row else { continue };
        let first = q_index(&problem, &problem.layout.o, (batch, row, head));
        errors.o[first..first + o.len()].copy_from_slice(&o);
        errors.lse[problem.lse_index(batch, head, row)] = lse;
    }
    errors
}

/// A row's scores and probabilities.
pub(super) struct Row {
    pub batch: u32,
    pub head_kv: u32,
    /// Of each key that the row sees.
    pub entries: Vec<Entry>,
    /// The sum of the probabilities, 1 but for the roundings of f64.
    sum: Sum,
    pub lse: f64,
    /// The largest probability.
    pub largest: f64,
    /// The sink's share of the sum, and its relative error in units of U.
    pub sink: (f64, f64),
}

/// A key that a row sees.
pub(super) struct Entry {
    pub key: u32,
    pub p: f64,
    /// 0 for what dropout drops, its factor for what it keeps.
    pub factor: f64,
    /// The relative error of P from plain roundings, and from the product that the score is.
    pub plain: f64,
    pub products: f64,
    /// S as a function of softmax_scale · q · k, whose own errors are these.
    pub score: Score,
    /// S as a function of the score to which a bias was added.
    pub from_bias: Score,
    pub product_plain: f64,
    pub product: f64,
}

impl Row {
    pub fn new(problem: Case<'_>, [q, k]: [&[f64]; 2], (batch, head, row): (u32, u32, u32)) -> Self {
        let (shape, layout) = (problem.shape, &problem.layout);
        let scale = problem.softmax_scale();
        let head_kv = head / (shape.num_heads / shape.num_heads_kv);
        let q_row = q_slice(&problem, q, &layout.q, (batch, row, head), shape.head_dim);
        let scores: Vec<(u32, Sum, [Score; 2])> = problem
            .keys((batch, head, row))
            .map(|key| {
                let k_row = k_slice(&problem, k, &layout.k, (batch, key, head_kv), shape.head_dim);
                let sum = Sum::of(q_row.iter().zip(k_row).map(|(q, k)| scale * q * k));
                let cell = (batch, head, row, key);
                (key, sum, [modified(problem, sum.total, cell), modified_from_bias(problem, sum.total, cell)])
            })
            .collect();
        let sink = problem.sink((batch, head, row));
        let values = || scores.iter().map(|(.., [s, _])| s.value).chain([sink]);
        let max = values().fold(f64::NEG_INFINITY, f64::max);
        let lse = max + values().map(|value| (value - max).exp()).sum::<f64>().ln();
        let is_empty = max == f64::NEG_INFINITY && values().all(|value| !value.is_nan());
        let lse = if is_empty { f64::NEG_INFINITY } else { lse };
        let entry = |(key, sum, [score, from_bias]): &(u32, Sum, [Score; 2])| {
            let p = (score.value - lse).exp();
            let kept = keeps(&problem, batch, head, row, *key);
            let factor = problem.dropout.map_or(1.0, |dropout| if kept { dropout.keep_scale() } else { 0.0 });
            let (product_plain, product) = (2.0 * sum.total.abs(), sum.rounding());
            // What has no slope loses its error, be it infinite.
            let of_product = |error: f64| if score.slope == 0.0 { 0.0 } else { score.slope.abs() * error };
            let plain = 4.0 + 2.0 * (score.value - lse).abs() + of_product(product_plain) + score.rounding;
            let products = of_product(product);
            let (score, from_bias) = (*score, *from_bias);
            Entry { key: *key, p, factor, plain, products, score, from_bias, product_plain, product }
        };
        // A score of −∞ is exact, and so is its P.
        let entries: Vec<Entry> = scores.iter().map(entry).filter(|entry| entry.p != 0.0).collect();
        let share = (sink - lse).exp();
        // exp2 and its argument, a conversion to powers of two, and what m is rescaled by.
        let of_share = if share == 0.0 { 0.0 } else { 8.0 + 2.0 * (sink - lse).abs() + 2.0 * sink.abs() };
        let sum = Sum::of(entries.iter().map(|entry| entry.p).chain((share > 0.0).then_some(share)));
        let largest = entries.iter().fold(0.0, |largest: f64, entry| largest.max(entry.p));
        // Where all scores are alike, each exp(S − m) is 1.
        let sum = if entries.iter().all(|entry| entry.p == largest) { sum.without_drift() } else { sum };
        Self { batch, head_kv, entries, sum, lse, largest, sink: (share, of_share) }
    }

    /// The error of each part's weight in a merge: of its LSE and of that of the whole, once computed and once rounded,
    /// and of exp.
    fn weights(&self) -> f64 {
        4.0 * (self.lse.abs() + 1.0) + 8.0
    }
}

fn of_o(problem: &AttentionProblem, row: &Row, v: &[f64]) -> Vec<ErrorTerms> {
    let dim_v = problem.shape.head_dim_v;
    let v_row = |entry: &Entry| k_slice(problem, v, &problem.layout.v, (row.batch, entry.key, row.head_kv), dim_v);
    let mut sums = vec![Sum::default(); dim_v as usize];
    let mut largest_v = 0.0f64;
    for entry in &row.entries {
        for (sum, v) in sums.iter_mut().zip(v_row(entry)) {
            sum.add(entry.factor * entry.p * v);
            largest_v = largest_v.max(v.abs());
        }
    }
    // P is relative to the largest of its row, and V to the largest that the row has seen: f16 holds 2⁻²⁴ of that, and WGSL
    // does not say to which side a value becomes f16.
    let keep_scale = problem.dropout.map_or(1.0, |dropout| dropout.keep_scale());
    let underflow = 2f64.powi(-24) * keep_scale * row.largest * largest_v * row.entries.len() as f64;
    let mut errors: Vec<ErrorTerms> = sums
        .iter()
        .map(|sum| ErrorTerms {
            // An error of the sink moves the sum that O is divided by.
            plain: sum.rounding() + (row.sum.rounding() + 8.0 + row.sink.0 * row.sink.1) * sum.total.abs(),
            terms: sum.sizes,
            underflow,
            ..ErrorTerms::default()
        })
        .collect();
    for entry in &row.entries {
        for ((error, sum), v) in errors.iter_mut().zip(&sums).zip(v_row(entry)) {
            // An error of P moves the sum that O is divided by, too.
            let distance = (entry.factor * v - sum.total).abs();
            let moved = entry.p * distance;
            error.plain += moved * entry.plain;
            error.products += moved * entry.products;
            error.merge += moved * row.weights();
            // P, and its product with V and the sum so far, before dropout's factor.
            error.flushed += SMALLEST * (distance + 2.0 * keep_scale + entry.factor * entry.p);
        }
    }
    errors
}

fn of_lse(row: &Row) -> ErrorTerms {
    let weighed = |of: fn(&Entry) -> f64| row.entries.iter().map(|entry| entry.p * of(entry)).sum::<f64>();
    let of_log = 4.0 * (1.0 + row.sum.count.max(1.0).ln()) + 3.0 * row.lse.abs();
    ErrorTerms {
        plain: weighed(|entry| entry.plain) + row.sink.0 * row.sink.1 + row.sum.rounding() + of_log,
        products: weighed(|entry| entry.products),
        merge: row.weights() + of_log,
        ..ErrorTerms::default()
    }
}
