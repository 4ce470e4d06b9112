//! How good an answer is: beside the method's own twin, and beside exact attention.

use std::thread;

use crate::case::{self, Head, Inputs, Problem, State};
use crate::device::Gpu;
use crate::draws::Draws;
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

/// Where scores are of usual size: sums are in f32, and O is rounded when it is written.
fn usual_bound(problem: &Problem) -> f64 {
    let roundoff = elements::unit_roundoff(problem.element);
    if roundoff < 1e-6 { 1e-4 } else { 1e-4 + 4.0 * roundoff }
}

/// Compares O on the device with the twin.
///
/// A score in f32 is wrong by a share of the size of its products, so large scores have large errors, and exp(S) passes them on. How
/// much of them arrives at O depends on the inputs: nothing where one key has all the weight, most where two share it. So an answer
/// that is not within the usual bound may be wrong by as much more as the twin itself changes, in f64, if all elements of Q and K
/// change by what rounding does to scores.
pub fn from_twin(gpu: &Gpu, inputs: &Inputs, method: &dyn Method, state: &State, o: &wgpu::Buffer) -> Result<FromTwin> {
    let problem = &inputs.problem;
    let (heads, rows) = sampled(problem);
    let d = problem.head_dim as usize;
    let (mut largest, mut error) = (0.0f64, 0.0f64);
    let expected = twins(inputs, method, state, &heads, &rows);
    for (head, expected) in heads.iter().zip(&expected) {
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
    let (error, mut bound) = (error / largest.max(f64::MIN_POSITIVE), usual_bound(problem));
    if error > bound && error.is_finite() {
        let changes = (0..DRAWS_OF_ROUNDINGS).map(|seed| {
            let others = twins(&rounded(inputs, seed), method, state, &heads, &rows);
            let both = others.iter().flatten().zip(expected.iter().flatten());
            both.map(|(other, expected)| (other - expected).abs()).fold(0.0, f64::max)
        });
        bound += changes.fold(0.0, f64::max) / largest.max(f64::MIN_POSITIVE);
    }
    let rows = if problem.seqlen <= WHOLE_TO { "all" } else { "64 rows of the first and the last head" };
    Ok(FromTwin { error, bound, rows })
}

/// Draws of signs, of which the one that changes the twin the most counts: two keys that share a row's weight may by chance change
/// alike.
const DRAWS_OF_ROUNDINGS: u64 = 4;

/// The inputs, with each element of Q and K larger or smaller by what the f32 arithmetic of a score is wrong by: 1.5 √d roundings for
/// a sum of d products, 4 for the scale, log2(e), the difference to the maximum and the exponential. Each is 2⁻²³ of a score, as f32 on
/// matrices has 23 bits. The d products of a score change with signs of their own, so that changes of this share move it by less than
/// this share of its largest size: twice as much is taken.
fn rounded(inputs: &Inputs, seed: u64) -> Inputs {
    let roundings = 1.5 * f64::from(inputs.problem.head_dim).sqrt() + 4.0;
    let share = 2.0 * roundings * 2f64.powi(-23);
    let changed = |values: &[f32], purpose: &str| {
        let draws = Draws::new(seed, purpose);
        let sign = |at: usize| draws.words(0, at as u64 / 128)[at / 32 % 4] >> (at % 32) & 1 == 0;
        let change = |(at, value): (usize, &f32)| {
            let share = if sign(at) { share } else { -share };
            (f64::from(*value) * (1.0 + share)) as f32
        };
        values.iter().enumerate().map(change).collect()
    };
    Inputs {
        problem: inputs.problem,
        q: changed(&inputs.q, "roundings of q"),
        k: changed(&inputs.k, "roundings of k"),
        v: inputs.v.clone(),
    }
}

/// O of some rows of these heads by the twin; heads are computed side by side.
fn twins(inputs: &Inputs, method: &dyn Method, state: &State, heads: &[Head], rows: &[u32]) -> Vec<Vec<f64>> {
    let cores = thread::available_parallelism().map_or(1, |cores| cores.get());
    let of_some = |some: &[Head]| {
        thread::scope(|scope| {
            let work = |head: &Head| {
                let head = *head;
                scope.spawn(move || method.twin(inputs, state, head, rows))
            };
            let threads: Vec<_> = some.iter().map(work).collect();
            threads.into_iter().map(|thread| thread.join().unwrap_or_default()).collect::<Vec<_>>()
        })
    };
    heads.chunks(cores).flat_map(of_some).collect()
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
