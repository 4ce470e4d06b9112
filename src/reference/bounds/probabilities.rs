//! The errors of probabilities.

use super::forward::Row;
use super::terms::{ErrorTerms, SMALLEST};
use crate::reference::case::Case;
use std::ops::Range;

/// What bounds the error of each of the [`probabilities`](crate::reference::probabilities) of these heads and rows, with the LSE
/// of these inputs in f32.
///
/// # Panics
///
/// As `probabilities`.
pub fn probabilities_errors<'a>(
    problem: impl Into<Case<'a>>,
    q: &[f64],
    k: &[f64],
    heads: Range<u32>,
    rows: Range<u32>,
) -> Vec<ErrorTerms> {
    let problem = problem.into();
    let mut all = Vec::new();
    for (batch, head) in (0..problem.shape.batch).flat_map(|batch| heads.clone().map(move |head| (batch, head))) {
        for row in rows.clone() {
            if row >= problem.rows_of(batch).0 {
                all.resize(all.len() + problem.shape.seqlen_kv as usize, ErrorTerms::default());
                continue;
            }
            let row = Row::new(problem, [q, k], (batch, head, row));
            let mut of_row = vec![ErrorTerms::default(); problem.shape.seqlen_kv as usize];
            for entry in &row.entries {
                // LSE is rounded, and multiplied with log2(e), which is rounded too.
                let plain = entry.p * (entry.plain + 3.0 * row.lse.abs());
                let products = entry.p * entry.products;
                of_row[entry.key as usize] = ErrorTerms { plain, products, flushed: SMALLEST, ..ErrorTerms::default() };
            }
            all.extend(of_row);
        }
    }
    all
}
