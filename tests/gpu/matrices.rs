//! f16 on cooperative matrices. They round P to f16 before its product with V, each entry by at most 2⁻¹¹ of itself, so O
//! may err by 2⁻¹¹ · Σ P|V| ≤ 2⁻¹¹ · max|V| (times dropout's factor) more than the other kernels.

use wgpu_flash_attention::{Algorithm, AttentionProblem, AttentionShape, Element, reference};

use crate::support::{inputs, run, with_matrices};

fn check(problem: &AttentionProblem, seed: u64) {
    let Some(library) = with_matrices() else {
        println!("skipped: the device has no cooperative matrices");
        return;
    };
    let problem = problem.clone().element(Element::F16);
    let inputs = inputs(&problem, seed);
    let flash = run(library, &problem, &inputs);
    let standard = run(library, &problem.clone().algorithm(Algorithm::Standard), &inputs);
    let expected = reference::forward(&problem, &inputs.q, &inputs.k, &inputs.v);
    let error =
        |found: &[f64]| found.iter().zip(&expected.o).map(|(found, wanted)| (found - wanted).abs()).fold(0.0, f64::max);
    let max_v = inputs.v.iter().fold(0.0, |max: f64, v| max.max(v.abs()));
    let factor = problem.dropout.map_or(1.0, |dropout| dropout.keep_scale());
    let allowed = 2.0 * error(&standard.o()) + 1e-5 + max_v * factor / 2048.0;
    assert!(error(&flash.o()) <= allowed, "{} exceeds {allowed}: {problem:?}", error(&flash.o()));
    for (found, wanted) in flash.lse().iter().zip(&expected.lse) {
        assert!(found == wanted || (found - wanted).abs() <= 1e-5 * wanted.abs().max(1.0), "{found}, not {wanted}");
    }
}

#[test]
fn every_mask_and_dropout() {
    let problem = AttentionProblem::new(AttentionShape::new(2, 4, 113, 64).num_heads_kv(2).seqlen_kv(203));
    check(&problem, 1);
    check(&problem.clone().causal(), 2);
    check(&problem.clone().causal_top_left(), 3);
    check(&problem.clone().window(Some(7), Some(3)), 4);
    check(&problem.clone().causal().dropout(0.3, 5).scale(-0.4), 5);
    // Rows that see nothing.
    check(&AttentionProblem::new(AttentionShape::new(1, 2, 150, 40).seqlen_kv(40)).causal(), 6);
}

#[test]
fn every_width() {
    for (head_dim, head_dim_v) in [(1, 3), (31, 40), (80, 96), (128, 59)] {
        let shape = AttentionShape::new(1, 2, 70, head_dim).head_dim_v(head_dim_v);
        check(&AttentionProblem::new(shape).causal(), 7);
    }
}

#[test]
fn a_nan_reaches_the_rows_that_see_it() {
    let Some(library) = with_matrices() else {
        println!("skipped: the device has no cooperative matrices");
        return;
    };
    let problem = AttentionProblem::new(AttentionShape::new(1, 1, 45, 16)).element(Element::F16);
    for problem in [problem.clone().causal(), problem.window(Some(4), Some(2))] {
        let mut inputs = inputs(&problem, 1);
        inputs.v[20 * 16 + 3] = f64::NAN;
        let o = run(library, &problem, &inputs).o();
        for (at, o) in o.iter().enumerate() {
            let sees = at % 16 == 3 && problem.visible_keys(at as u32 / 16).contains(&20);
            assert_eq!(o.is_nan(), sees, "row {}, dim {}", at / 16, at % 16);
        }
    }
}

#[test]
fn runs_are_identical() {
    let Some(library) = with_matrices() else {
        println!("skipped: the device has no cooperative matrices");
        return;
    };
    let problem = AttentionProblem::new(AttentionShape::new(1, 2, 100, 64)).element(Element::F16).causal();
    let inputs = inputs(&problem, 9);
    let first = run(library, &problem, &inputs);
    for _ in 0..49 {
        assert!(run(library, &problem, &inputs) == first);
    }
}
