//! f16 on cooperative matrices, also where the planner would not take them: on a software driver.

use wgpu_flash_attention::{AttentionProblem, AttentionShape, Element};

use crate::support::{check, inputs, run, with_matrices};

fn check_case(problem: &AttentionProblem, seed: u64) {
    let Some(library) = with_matrices() else {
        println!("skipped: the device has no cooperative matrices");
        return;
    };
    let problem = problem.clone().element(Element::F16);
    let output = check(library, &problem, &inputs(&problem, seed));
    assert!(output.rounds_p, "it ran on matrices");
}

#[test]
fn every_mask_and_dropout() {
    let problem = AttentionProblem::new(AttentionShape::new(2, 4, 113, 64).num_heads_kv(2).seqlen_kv(203));
    check_case(&problem, 1);
    check_case(&problem.clone().causal(), 2);
    check_case(&problem.clone().causal_top_left(), 3);
    check_case(&problem.clone().window(Some(7), Some(3)), 4);
    check_case(&problem.clone().causal().dropout(0.3, 5).scale(-0.4), 5);
    // Rows that see nothing.
    check_case(&AttentionProblem::new(AttentionShape::new(1, 2, 150, 40).seqlen_kv(40)).causal(), 6);
}

#[test]
fn every_width() {
    for (head_dim, head_dim_v) in [(1, 3), (31, 40), (80, 96), (128, 59)] {
        let shape = AttentionShape::new(1, 2, 70, head_dim).head_dim_v(head_dim_v);
        check_case(&AttentionProblem::new(shape).causal(), 7);
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
