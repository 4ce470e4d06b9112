//! How good an answer is: beside the method's own twin, and beside exact attention.

use std::thread;

use crate::case::{self, Head, Inputs, Problem, State};
use crate::device::Gpu;
use crate::elements;
use crate::failure::Result;
use crate::methods::Method;

/// Of problems to this length, all rows of all heads are compared with the twin.
pub const WHOLE_TO: u32 = 1024;

/// Rows of longer ones, in the first and the last head.
const ROWS: u64 = 64;

/// How far an answer is from its twin.
pub struct FromTwin {
    /// The largest |difference|, as a share of the largest |O|.
    pub error: f64,
    /// What it may be.
    pub bound: f64,
    /// Which rows were compared.
    pub rows: &'static str,
}

/// How far an answer is from exact attention.
pub struct FromExact {
    /// ‖O − exact‖ / ‖exact‖, Frobenius norms over all heads and rows.
    pub relative: f64,
    /// The largest of ‖O_i − exact_i‖ / ‖exact_i‖ over rows i.
    pub largest_row: f64,
}

/// Sums are in f32, and O is rounded when it is written.
pub fn twin_bound(problem: &Problem) -> f64 {
    let roundoff = elements::unit_roundoff(problem.element);
    if roundoff < 1e-6 { 1e-4 } else { 1e-4 + 4.0 * roundoff }
}

/// Compares O on the device with the twin. Heads are computed side by side.
pub fn from_twin(gpu: &Gpu, inputs: &Inputs, method: &dyn Method, state: &State, o: &wgpu::Buffer) -> Result<FromTwin> {
    let problem = &inputs.problem;
    let (heads, rows) = sampled(problem);
    let cores = thread::available_parallelism().map_or(1, |cores| cores.get());
    let d = problem.head_dim as usize;
    let (mut largest, mut error) = (0.0f64, 0.0f64);
    for some in heads.chunks(cores) {
        let twins = thread::scope(|scope| {
            let rows = &rows;
            let work = |head: &Head| {
                let head = *head;
                scope.spawn(move || method.twin(inputs, state, head, rows))
            };
            let threads: Vec<_> = some.iter().map(work).collect();
            threads.into_iter().map(|thread| thread.join().unwrap_or_default()).collect::<Vec<_>>()
        });
        for (head, expected) in some.iter().zip(twins) {
            let o = of_head(gpu, problem, o, *head)?;
            let found = rows.iter().flat_map(|row| o[*row as usize * d..][..d].iter().copied());
            // A twin that gave up has no rows, and nothing equals it.
            let own = match expected.len() == rows.len() * d {
                true => elements::largest_error(found, expected.iter().copied()),
                false => f64::INFINITY,
            };
            error = larger(error, own);
            largest = expected.iter().fold(largest, |largest, value| larger(largest, value.abs()));
        }
    }
    let rows = if problem.seqlen <= WHOLE_TO { "all" } else { "64 rows of the first and the last head" };
    Ok(FromTwin { error: error / largest.max(f64::MIN_POSITIVE), bound: twin_bound(problem), rows })
}

fn sampled(problem: &Problem) -> (Vec<Head>, Vec<u32>) {
    let heads: Vec<Head> = problem.heads().collect();
    if problem.seqlen <= WHOLE_TO {
        return (heads, (0..problem.seqlen).collect());
    }
    let mut ends = vec![heads[0], heads[heads.len() - 1]];
    ends.dedup();
    let row = |i: u64| (i * u64::from(problem.seqlen - 1) / (ROWS - 1)) as u32;
    (ends, (0..ROWS).map(row).collect())
}

/// Compares O on the device with exact attention, all of it.
pub fn from_exact(gpu: &Gpu, problem: &Problem, o: &wgpu::Buffer, exact: &[f32]) -> Result<FromExact> {
    let (len, d) = (problem.head_len(), problem.head_dim as usize);
    let (mut difference, mut norm, mut largest_row) = (0.0, 0.0, 0.0);
    for head in problem.heads() {
        let found = of_head(gpu, problem, o, head)?;
        let exact = &exact[head.of_q(problem) * len..][..len];
        for (found, exact) in found.chunks_exact(d).zip(exact.chunks_exact(d)) {
            let row_norm: f64 = exact.iter().map(|e| f64::from(*e).powi(2)).sum();
            let row_difference: f64 = found.iter().zip(exact).map(|(f, e)| (f - f64::from(*e)).powi(2)).sum();
            norm += row_norm;
            difference += row_difference;
            largest_row = larger(largest_row, (row_difference / row_norm.max(f64::MIN_POSITIVE)).sqrt());
        }
    }
    Ok(FromExact { relative: (difference / norm.max(f64::MIN_POSITIVE)).sqrt(), largest_row })
}

/// The larger of two, and NaN if one of them is: `f64::max` would drop it.
fn larger(a: f64, b: f64) -> f64 {
    if a > b || a.is_nan() { a } else { b }
}

fn of_head(gpu: &Gpu, problem: &Problem, o: &wgpu::Buffer, head: Head) -> Result<Vec<f64>> {
    let len = problem.head_len();
    case::read(gpu, problem.element, o, head.of_q(problem) * len, len)
}
