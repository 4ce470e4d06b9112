//! The backward pass against the oracle's gradients.

use wgpu_flash_attention::reference::{self, ReferenceGradients};
use wgpu_flash_attention::{Algorithm, AttentionProblem, BackwardOutput, BackwardSlices, Element, ElementType};

use super::{Deviation, Inputs, Row, exact, largest, plan, row};
use crate::arguments::Pass;
use crate::device::Gpu;
use crate::elements;
use crate::failure::Failure;

/// Computes the gradients of one case with both algorithms and the oracle.
pub async fn compare<T: ElementType>(
    gpu: &Gpu,
    group: &'static str,
    problem: &AttentionProblem,
    inputs: &Inputs<T>,
    rows: &mut Vec<Row>,
) {
    let [q, k, v, d_o] = [&inputs.q, &inputs.k, &inputs.v, &inputs.d_o].map(|values| exact(values));
    let forward = reference::forward(problem, &q, &k, &v);
    let o: Vec<T> = forward.o.iter().map(|value| T::from_f64(*value)).collect();
    let lse: Vec<f32> = forward.lse.iter().map(|value| *value as f32).collect();
    let oracle = reference::backward(problem, &q, &k, &v, &d_o, None);
    // O is rounded before the backward pass sees it, which moves D = rowsum(dO ∘ O) as a gradient of LSE would.
    let moved = moved_delta(problem, &forward.o, &exact(&o), &d_o);
    let for_o = reference::backward(problem, &q, &k, &v, &d_o, Some(&moved));
    let slices =
        BackwardSlices { q: &inputs.q, k: &inputs.k, v: &inputs.v, o: &o, lse: &lse, d_o: &inputs.d_o, d_lse: None };

    // Held against standard attention in the same precision, which rounds P and dS too.
    let rounds_p = plan(gpu, problem, Pass::Backward).is_some_and(|plan| plan.rounds_p());
    let rounded = rounds_p.then(|| reference::backward_rounding_p(problem, &q, &k, &v, &d_o, Some(&moved)));
    let mut standard_errors = [f64::NAN; 3];
    for algorithm in [Algorithm::Standard, Algorithm::Flash] {
        let problem = problem.clone().algorithm(algorithm);
        let row = row(rows, gpu, group, &problem, Pass::Backward);
        row.cases += 1;
        let answer = match gpu.attention.backward(&problem, &slices).await.map_err(Failure::from) {
            Ok(answer) => answer,
            Err(failure) => {
                row.failure.get_or_insert_with(|| failure.line().to_owned());
                continue;
            }
        };
        if let Err(failure) = gpu.fault() {
            row.failure.get_or_insert_with(|| failure.line().to_owned());
        }
        let (errors, errors_for_o) = (errors(&answer, &oracle), errors(&answer, &for_o));
        let tensors = [&oracle.dq, &oracle.dk, &oracle.dv];
        for (n, expected) in tensors.into_iter().enumerate() {
            let largest = largest(expected);
            // Where each row sees one key, dS is 0 and only the rounding of dP and D is left.
            let floor = if largest == 0.0 { 1e-5 } else { 2e-5 * largest };
            let rounding = if T::ELEMENT == Element::F32 { 0.0 } else { elements::unit_roundoff(T::ELEMENT) * largest };
            let deviation = match algorithm {
                Algorithm::Standard => {
                    // Of few numbers none may happen to be rounded by as much as the largest may be.
                    let of_rounding = rounded.as_ref().map_or(0.0, |rounded| {
                        let rounded = [&rounded.dq, &rounded.dk, &rounded.dv][n].iter().copied();
                        elements::largest_error(rounded, expected.iter().copied())
                    });
                    standard_errors[n] = errors[n].max(rounding).max(of_rounding);
                    Deviation { error: errors_for_o[n], bound: rounding + floor, lse_error: None }
                }
                Algorithm::Flash if T::ELEMENT == Element::F32 => {
                    Deviation { error: errors[n], bound: floor, lse_error: None }
                }
                Algorithm::Flash => {
                    Deviation { error: errors[n], bound: 3.0 * standard_errors[n] + 1e-5, lse_error: None }
                }
            };
            row.add(deviation, &problem, ["dq", "dk", "dv"][n]);
        }
    }
}

/// −Σ dO ∘ (rounded O − O) of each row, in the order of LSE.
fn moved_delta(problem: &AttentionProblem, o: &[f64], rounded: &[f64], d_o: &[f64]) -> Vec<f64> {
    let shape = problem.shape;
    let mut moved = Vec::with_capacity(shape.lse_len() as usize);
    for batch in 0..shape.batch {
        for head in 0..shape.num_heads {
            for row in 0..shape.seqlen_q {
                let first = problem.layout.o.index(batch, row, head) as usize;
                let dims = first..first + shape.head_dim_v as usize;
                moved.push(dims.map(|at| d_o[at] * (o[at] - rounded[at])).sum());
            }
        }
    }
    moved
}

/// The largest errors of dQ, dK and dV.
fn errors<T: ElementType>(answer: &BackwardOutput<T>, expected: &ReferenceGradients) -> [f64; 3] {
    [(&answer.dq, &expected.dq), (&answer.dk, &expected.dk), (&answer.dv, &expected.dv)].map(|(found, expected)| {
        match found.len() == expected.len() {
            true => elements::largest_error(exact(found), expected.iter().copied()),
            false => f64::INFINITY,
        }
    })
}
