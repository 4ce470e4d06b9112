//! The backward pass against the oracle's gradients.

use wgpu_flash_attention::reference::{self, Arithmetic, ErrorTerms};
use wgpu_flash_attention::{Algorithm, AttentionProblem, BackwardSlices, Element, ElementType};

use super::{Inputs, Report, arithmetic, exact, plan};
use crate::arguments::Pass;
use crate::device::Gpu;
use crate::failure::Failure;

/// Computes the gradients of one case with both algorithms and the oracle.
pub async fn compare<T: ElementType>(
    gpu: &Gpu,
    group: &'static str,
    problem: &AttentionProblem,
    inputs: &Inputs<T>,
    report: &mut Report,
) {
    let [q, k, v, d_o] = [&inputs.q, &inputs.k, &inputs.v, &inputs.d_o].map(|values| exact(values));
    let case = inputs.case(problem);
    let forward = reference::forward(case, &q, &k, &v);
    let o: Vec<T> = forward.o.iter().map(|value| T::from_f64(*value)).collect();
    let lse: Vec<f32> = forward.lse.iter().map(|value| *value as f32).collect();
    let exact_o = exact(&o);
    let tensors = [&q[..], &k, &v, &exact_o];
    // Bounds are for the O given, which is rounded; what both algorithms err by together counts that rounding in.
    let for_o = reference::backward_for(case, tensors, &d_o, None);
    let errors = reference::backward_errors(case, tensors, &d_o, None);
    let oracle = reference::backward(case, &q, &k, &v, &d_o, None);
    let mut slices = BackwardSlices::new(&inputs.q, &inputs.k, &inputs.v, &o, &lse, &inputs.d_o);
    if let Some(bias) = &inputs.bias {
        slices = slices.with_bias(bias);
    }
    if let Some(words) = &inputs.key_mask {
        slices = slices.with_key_mask(words);
    }
    if let Some(sink) = &inputs.sink {
        slices = slices.with_sink(sink);
    }
    for algorithm in [Algorithm::Standard, Algorithm::Flash] {
        let problem = problem.clone().with_algorithm(algorithm);
        let row = report.row(gpu, group, &problem, Pass::Backward);
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
        let arithmetic = arithmetic(plan(gpu, &problem, Pass::Backward).as_ref());
        let bound = |errors: &[ErrorTerms]| errors.iter().map(|error| error.bound(&arithmetic)).collect::<Vec<_>>();
        let [dq, dk, dv] = [&answer.dq, &answer.dk, &answer.dv].map(|values| exact(values));
        row.add(T::ELEMENT, (&dq, &for_o.dq, &bound(&errors.dq)), &problem, "dq");
        row.add(T::ELEMENT, (&dk, &for_o.dk, &bound(&errors.dk)), &problem, "dk");
        row.add(T::ELEMENT, (&dv, &for_o.dv, &bound(&errors.dv)), &problem, "dv");
        row.add(Element::F32, (&exact(&answer.dsink), &for_o.dsink, &bound(&errors.dsink)), &problem, "dsink");
        // No kernel computes it on matrices.
        let of_bias: Vec<f64> = errors.dbias.iter().map(|error| error.bound(&Arithmetic::F32)).collect();
        row.add(Element::F32, (&exact(&answer.dbias), &for_o.dbias, &of_bias), &problem, "dbias");
        for of_all in [(&dq[..], &oracle.dq[..]), (&dk, &oracle.dk), (&dv, &oracle.dv)] {
            report.suite(Pass::Backward, T::ELEMENT, algorithm, of_all);
        }
    }
    if plan(gpu, problem, Pass::Backward).is_some_and(|plan| plan.rounds_p()) {
        let rounded = reference::backward_rounding_p(case, &q, &k, &v, &d_o, None);
        for of_all in [(&rounded.dq[..], &oracle.dq[..]), (&rounded.dk, &oracle.dk), (&rounded.dv, &oracle.dv)] {
            report.suite(Pass::Backward, T::ELEMENT, Algorithm::Standard, of_all);
        }
    }
}
