//! How close an answer must be. The tolerance is measured, not picked: the flash kernel may err at most twice as much
//! as standard attention in the same element type on the same inputs, both against the f64 oracle. With `max` the
//! largest |O| of the oracle:
//!
//! | | largest error of O allowed |
//! |---|---|
//! | flash, f32 | 2 · (error of standard) + 1e-6 · max |
//! | flash, f16 and bf16 | 2 · (error of standard) + 1e-5 |
//! | flash that keeps P in f16 | 2 · (error of exact standard attention that rounds P to f16, or of standard) + 1e-5 |
//! | standard, f32 | 2e-5 · max |
//! | standard, f16 and bf16 | half a unit in the last place of `max` + 1e-5 · max |
//! | LSE, both | 1e-5 · max(1, the oracle's absolute LSE), per row |
//!
//! Standard's own bound keeps a fault that both kernels share from hiding. O is exactly 0 where LSE is −∞, and NaN
//! exactly where the oracle's is.

use wgpu_flash_attention::reference::{self, ReferenceOutput};
use wgpu_flash_attention::{Algorithm, AttentionProblem, Element};

use super::data::{Inputs, gaps, places};
use super::device::Library;
use super::run::{Output, run};

/// Solves the problem with both algorithms, holds both to their bounds, and returns the flash kernel's output.
pub fn check(library: &Library, problem: &AttentionProblem, inputs: &Inputs) -> Output {
    let flash = run(library, &problem.clone().algorithm(Algorithm::Flash), inputs);
    let standard = run(library, &problem.clone().algorithm(Algorithm::Standard), inputs);
    check_answer(problem, inputs, &flash, &standard);
    flash
}

/// Holds two outputs for one problem to their bounds.
pub fn check_answer(problem: &AttentionProblem, inputs: &Inputs, flash: &Output, standard: &Output) {
    let expected = reference::forward(problem, &inputs.q, &inputs.k, &inputs.v);
    let max = max_abs(problem, &expected.o);
    let flash_error = largest_error("flash", problem, flash, &expected);
    let standard_error = largest_error("standard", problem, standard, &expected);
    let (flash_floor, standard_allowed) = match problem.element {
        Element::F32 => (1e-6 * max, 1e-5 * max),
        // Significands of 11 and 8 bits.
        Element::F16 => (1e-5, half_ulp(max, 11) + 1e-5 * max),
        Element::Bf16 => (1e-5, half_ulp(max, 8) + 1e-5 * max),
    };
    assert!(
        standard_error <= standard_allowed,
        "standard errs by {standard_error:e}, allowed are {standard_allowed:e}; largest |O| {max}\n{problem:?}"
    );
    // Standard attention in the same precision: for kernels that round P, one that rounds P.
    let same_precision = if flash.rounds_p {
        let rounded = reference::forward_rounding_p(problem, &inputs.q, &inputs.k, &inputs.v);
        let errors = rounded.o.iter().zip(&expected.o).map(|(found, wanted)| (found - wanted).abs());
        errors.fold(standard_error, f64::max)
    } else {
        standard_error
    };
    let flash_allowed = 2.0 * same_precision + flash_floor;
    assert!(
        flash_error <= flash_allowed,
        "flash errs by {flash_error:e}, allowed are {flash_allowed:e}; standard errs by {standard_error:e}; \
         largest |O| {max}\n{problem:?}"
    );
}

/// The largest |O| that is a number, over the tensor's own elements.
pub fn max_abs(problem: &AttentionProblem, o: &[f64]) -> f64 {
    let own = o.iter().zip(gaps(problem)).filter(|(_, gap)| !gap);
    own.map(|(o, _)| o.abs()).filter(|o| !o.is_nan()).fold(0.0, f64::max)
}

/// Half the distance between neighbours at `value` among floats with this many significand bits.
pub(super) fn half_ulp(value: f64, significand_bits: i32) -> f64 {
    if value == 0.0 { 0.0 } else { 2f64.powi(value.log2().floor() as i32 - significand_bits) }
}

/// The largest error of O; LSE and everything that must be exact are checked on the way.
fn largest_error(name: &str, problem: &AttentionProblem, output: &Output, expected: &ReferenceOutput) -> f64 {
    let shape = problem.shape;
    let (o, lse) = (output.o(), output.lse());
    assert_eq!((o.len(), lse.len()), (expected.o.len(), expected.lse.len()), "{name}: lengths of O and LSE");
    let mut largest = 0.0f64;
    for (batch, row, head) in places(shape.batch, shape.seqlen_q, shape.num_heads) {
        let place = || format!("{name}: batch {batch}, head {head}, row {row}\n{problem:?}");
        let flat = ((batch * shape.num_heads + head) * shape.seqlen_q + row) as usize;
        let (found, wanted) = (lse[flat], expected.lse[flat]);
        let near = (found - wanted).abs() <= 1e-5 * wanted.abs().max(1.0);
        let same = found == wanted || found.is_nan() && wanted.is_nan();
        assert!(near || same, "LSE is {found}, not {wanted}; {}", place());

        let first = problem.layout.o.index(batch, row, head) as usize;
        for dim in 0..shape.head_dim_v as usize {
            let (found, wanted) = (o[first + dim], expected.o[first + dim]);
            assert_eq!(found.is_nan(), wanted.is_nan(), "O[{dim}] is {found}, not {wanted}; {}", place());
            if expected.lse[flat] == f64::NEG_INFINITY {
                assert_eq!(found, 0.0, "O[{dim}] of a row that sees nothing; {}", place());
            }
            largest = largest.max((found - wanted).abs());
        }
    }
    largest
}
