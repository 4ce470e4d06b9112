//! Flash attention beside standard attention in the same precision, where kernels round P one that rounds P too. Of one problem
//! the largest error is luck, so this is a measure over a whole list: flash may err by twice as much, and in gradients by
//! three times: the rule of FlashAttention's authors.

use wgpu_flash_attention::reference::{self, ReferenceGradients};
use wgpu_flash_attention::{Algorithm, AttentionProblem, AttentionShape, Element};

use crate::support::{Inputs, Library, gradient_inputs, inputs, limited, run, run_backward, with_matrices};

/// f32 on matrices passes in two parts of f16, together 23 bits: what that allows, of the largest number.
const PARTS: f64 = 1e-6;

fn problems(element: Element) -> Vec<AttentionProblem> {
    let of_lengths = |(seqlen_q, seqlen_kv): (u32, u32)| {
        // The pipelines are those of drawn problems.
        let shape = AttentionShape::new(1, 4, seqlen_q, 8).with_num_heads_kv(2).with_seqlen_kv(seqlen_kv);
        let problem = AttentionProblem::new(shape).with_element(element);
        let dropped = problem.clone().with_dropout(0.2, 7);
        [problem, dropped.clone().with_causal(), dropped.with_window(Some(9), Some(40))]
    };
    [(1, 1), (3, 200), (37, 45), (64, 64), (113, 203), (200, 31)].into_iter().flat_map(of_lengths).collect()
}

/// The largest error of flash and of standard attention in the same precision, and the largest number.
#[derive(Default)]
struct Suite {
    flash: f64,
    standard: f64,
    largest: f64,
}

impl Suite {
    fn add(&mut self, (flash, standard, expected): (&[f64], &[f64], &[f64])) {
        let error = |found: &[f64]| {
            found.iter().zip(expected).fold(0.0, |largest: f64, (found, wanted)| largest.max((found - wanted).abs()))
        };
        self.flash = self.flash.max(error(flash));
        self.standard = self.standard.max(error(standard));
        self.largest = expected.iter().fold(self.largest, |largest, value| largest.max(value.abs()));
    }

    fn assert(&self, most: f64, parts: f64, name: &str) {
        let Self { flash, standard, largest } = self;
        println!("{name}: flash errs by {flash:.2e}, standard by {standard:.2e}: {:.2} times", flash / standard);
        let allowed = most * standard + parts * largest;
        assert!(
            *flash <= allowed,
            "{name}: flash errs by {flash:e}, standard by {standard:e}, allowed are {allowed:e}"
        );
    }
}

fn forward(library: &Library, element: Element, name: &str) {
    let mut suite = Suite::default();
    let mut in_parts = false;
    for (seed, problem) in problems(element).into_iter().enumerate() {
        let given = inputs(&problem, seed as u64);
        let Inputs { q, k, v, .. } = &given;
        let expected = reference::forward(&problem, q, k, v).o;
        let flash = run(library, &problem, &given).o();
        let standard = run(library, &problem.clone().with_algorithm(Algorithm::Standard), &given).o();
        suite.add((&flash, &standard, &expected));
        let plan = library.prepare(&problem).unwrap().plan().clone();
        in_parts |= element == Element::F32 && plan.tiles().matrix_side.is_some();
        if plan.rounds_p() {
            suite.add((&flash, &reference::forward_rounding_p(&problem, q, k, v).o, &expected));
        }
    }
    suite.assert(2.0, if in_parts { PARTS } else { 0.0 }, &format!("{name} {element:?} forward"));
}

fn backward(library: &Library, element: Element, name: &str) {
    let mut suite = Suite::default();
    let mut in_parts = false;
    for (seed, problem) in problems(element).into_iter().enumerate() {
        let given = gradient_inputs(&problem, seed as u64);
        let Inputs { q, k, v, .. } = &given.inputs;
        let expected = reference::backward(&problem, q, k, v, &given.d_o, given.d_lse.as_deref());
        let flash = run_backward(library, &problem, &given).all();
        let standard = run_backward(library, &problem.clone().with_algorithm(Algorithm::Standard), &given).all();
        let plan = library.prepare_gradients(&problem).unwrap().plan().clone();
        in_parts |= element == Element::F32 && plan.tiles().matrix_side.is_some();
        let of = |gradients: ReferenceGradients| [gradients.dq, gradients.dk, gradients.dv];
        let expected = of(expected);
        for ((flash, standard), expected) in flash.iter().zip(&standard).zip(&expected) {
            suite.add((flash, standard, expected));
        }
        if plan.rounds_p() {
            let rounded = reference::backward_rounding_p(&problem, q, k, v, &given.d_o, given.d_lse.as_deref());
            for ((flash, rounded), expected) in flash.iter().zip(&of(rounded)).zip(&expected) {
                suite.add((flash, rounded, expected));
            }
        }
    }
    suite.assert(3.0, if in_parts { PARTS } else { 0.0 }, &format!("{name} {element:?} backward"));
}

#[test]
fn flash_errs_no_more_than_twice_as_much_as_standard() {
    Element::ALL.iter().copied().for_each(|element| forward(&limited(|_| ()), element, "planned"));
}

#[test]
fn gradients_err_no_more_than_three_times_as_much() {
    Element::ALL.iter().copied().for_each(|element| backward(&limited(|_| ()), element, "planned"));
}

#[test]
fn so_do_kernels_on_matrices() {
    let Some(library) = with_matrices() else { return };
    Element::ALL.iter().copied().for_each(|element| forward(library, element, "matrices"));
    Element::ALL.iter().copied().for_each(|element| backward(library, element, "matrices"));
}
