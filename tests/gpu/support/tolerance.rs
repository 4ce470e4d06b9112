//! How close an answer must be: each element within its own bound, which the oracle computes (`reference::bounds` says how).
//! O is exactly 0 where LSE is −∞, and NaN exactly where the oracle's is.

use wgpu_flash_attention::reference::{self, Arithmetic, ErrorTerms, ForwardErrors, ReferenceOutput};
use wgpu_flash_attention::{Algorithm, AttentionProblem, Element, TensorLayout};

use super::data::{Inputs, Rows, gaps, lse_gaps};
use super::device::Library;
use super::run::{Output, run};

/// The element of a tensor whose error takes up the largest share of its bound.
#[derive(Clone, Copy, Debug, Default)]
pub struct Share {
    /// Above 1 is a fault.
    pub share: f64,
    index: usize,
    found: f64,
    expected: f64,
    bound: f64,
}

impl Share {
    /// Over a tensor's own elements; `gaps` tells which are not.
    pub fn largest(
        element: Element,
        found: &[f64],
        (expected, errors): (&[f64], &[ErrorTerms]),
        gaps: &[bool],
        arithmetic: &Arithmetic,
    ) -> Self {
        assert_eq!((found.len(), errors.len()), (expected.len(), expected.len()), "lengths of a tensor");
        let mut largest = Self::default();
        for index in (0..found.len()).filter(|index| !gaps[*index]) {
            let (found, expected, bound) = (found[index], expected[index], errors[index].bound(arithmetic));
            let error = reference::error_before_storing(element, found, expected);
            let share = if error == 0.0 { 0.0 } else { error / bound };
            let share = if share.is_nan() { f64::INFINITY } else { share };
            if share >= largest.share {
                largest = Self { share, index, found, expected, bound };
            }
        }
        largest
    }

    /// Panics where a bound is passed.
    pub fn assert(&self, name: &str, problem: &AttentionProblem) {
        let Self { share, index, found, expected, bound } = *self;
        assert!(
            share <= 1.0,
            "{name}[{index}] is {found:e}, not {expected:e}: {share:.3} times its bound of {bound:e}\n{problem:?}"
        );
    }
}

/// Solves the problem with both algorithms, holds both to their bounds, and returns the flash kernel's output.
pub fn check(library: &Library, problem: &AttentionProblem, inputs: &Inputs) -> Output {
    let flash = run(library, &problem.clone().with_algorithm(Algorithm::Flash), inputs);
    let standard = run(library, &problem.clone().with_algorithm(Algorithm::Standard), inputs);
    check_answer(problem, inputs, &flash, &standard);
    flash
}

/// Holds two outputs for one problem to their bounds.
pub fn check_answer(problem: &AttentionProblem, inputs: &Inputs, flash: &Output, standard: &Output) {
    let answer = Answer::new(problem, inputs);
    for (name, output) in [("flash", flash), ("standard", standard)] {
        let [o, lse] = answer.shares(name, output);
        o.assert(&format!("{name}: O"), problem);
        lse.assert(&format!("{name}: LSE"), problem);
    }
}

/// The oracle's answer to a problem, and how far others may be from it.
pub struct Answer<'a> {
    problem: &'a AttentionProblem,
    pub expected: ReferenceOutput,
    errors: ForwardErrors,
}

impl<'a> Answer<'a> {
    pub fn new(problem: &'a AttentionProblem, inputs: &Inputs) -> Self {
        let Inputs { q, k, v, .. } = inputs;
        let expected = reference::forward(inputs.case(problem), q, k, v);
        Self { problem, expected, errors: reference::forward_errors(inputs.case(problem), q, k, v) }
    }

    /// The largest shares of their bounds that the errors of O and LSE take up. What must be exact is checked on the way.
    pub fn shares(&self, name: &str, output: &Output) -> [Share; 2] {
        let Self { problem, expected, errors } = self;
        let shape = problem.shape;
        let (o, lse) = (output.o(), output.lse());
        let rows = Rows::of_q(problem);
        let of_lse = TensorLayout::bhsd(rows.count, shape.num_heads, 1);
        let of_o = rows.firsts(&problem.layout.o, shape.num_heads);
        for (flat, first) in rows.firsts(&of_lse, shape.num_heads).zip(of_o) {
            if expected.lse[flat] == f64::NEG_INFINITY {
                let is_zero = o[first..first + shape.head_dim_v as usize].iter().all(|o| *o == 0.0);
                assert!(is_zero, "{name}: the row of LSE {flat} sees nothing\n{problem:?}");
            }
        }
        let arithmetic = &output.arithmetic;
        [
            Share::largest(problem.output_element(), &o, (&expected.o, &errors.o), &gaps(problem), arithmetic),
            Share::largest(Element::F32, &lse, (&expected.lse, &errors.lse), &lse_gaps(problem), arithmetic),
        ]
    }
}
