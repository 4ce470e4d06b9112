//! Modifiers of the scores: every modifier, alone and in both orders, in every kernel.

use wgpu_flash_attention::Call;
use wgpu_flash_attention::{
    Algorithm, AttentionProblem, AttentionShape, Element, Error, InvalidProblem, Plan, ScoreMod, alibi_slopes,
};

use crate::support::{
    Inputs, Library, Variant, check, check_gradients, gradient_inputs, inputs, library, limited, problem_of,
    run_backward, run_calls, with_matrices,
};

/// So low that normal scores reach where it bends.
fn softcap() -> ScoreMod {
    ScoreMod::Softcap(1.5)
}

fn alibi(problem: &AttentionProblem) -> ScoreMod {
    ScoreMod::Alibi(alibi_slopes(problem.shape.num_heads))
}

/// Slopes that differ from sequence to sequence, one of them 0 and one negative.
fn alibi_of_sequences(problem: &AttentionProblem) -> ScoreMod {
    let all = problem.shape.batch * problem.shape.num_heads;
    ScoreMod::Alibi((0..all).map(|n| 0.07 * (n as f32 - 1.0)).collect())
}

/// The problem with each chain of modifiers.
fn modified(problem: &AttentionProblem) -> Vec<AttentionProblem> {
    let with = |chain: &[ScoreMod]| chain.iter().cloned().fold(problem.clone(), AttentionProblem::with_score);
    vec![
        with(&[softcap()]),
        with(&[alibi(problem)]),
        with(&[softcap(), alibi_of_sequences(problem)]),
        with(&[alibi(problem), softcap()]),
    ]
}

/// Forward and backward, flash and standard, within their bounds.
fn check_all(library: &Library, problem: &AttentionProblem, seed: u64) {
    for problem in modified(problem) {
        check(library, &problem, &inputs(&problem, seed));
        check_gradients(library, &problem, &gradient_inputs(&problem, seed));
    }
}

#[test]
fn every_modifier_in_every_element() {
    let shape = AttentionShape::new(2, 4, 70, 16).with_num_heads_kv(2).with_seqlen_kv(45);
    for &element in Element::ALL {
        let dense = AttentionProblem::new(shape).with_element(element);
        check_all(library(Variant::Full), &dense, 1);
        // Drivers compile each pipeline for seconds: with masks the longest chain alone.
        for masked in [dense.clone().with_causal(), dense.with_window(Some(9), None).with_dropout(0.3, 5)] {
            let problem = &modified(&masked)[2];
            check(library(Variant::Full), problem, &inputs(problem, 2));
            check_gradients(library(Variant::Full), problem, &gradient_inputs(problem, 3));
        }
    }
}

#[test]
fn every_modifier_on_other_tiles_and_devices() {
    let shape = AttentionShape::new(2, 2, 37, 12).with_seqlen_kv(75).with_head_dim_v(7);
    let problem = AttentionProblem::new(shape).with_causal().with_dropout(0.2, 3);
    // A software driver compiles each for seconds.
    let problem = &modified(&problem)[2];
    for variant in [Variant::SmallTiles, Variant::LargeTiles, Variant::NoSubgroups, Variant::Checked] {
        check(library(variant), problem, &inputs(problem, 4));
        check_gradients(library(variant), problem, &gradient_inputs(problem, 5));
    }
}

/// A browser's device has 8 storage buffers, of which dK and dV take 7 and the tables one. Of a device with fewer the plan
/// says so.
#[test]
fn webgpu_defaults_are_enough() {
    let shape = AttentionShape::new(1, 2, 37, 12).with_seqlen_kv(40);
    let library = library(Variant::WebGpuDefaults);
    for problem in modified(&AttentionProblem::new(shape).with_causal()) {
        check(library, &problem, &inputs(&problem, 6));
        check_gradients(library, &problem, &gradient_inputs(&problem, 6));
        let mut few = library.capabilities().clone();
        few.max_storage_buffers = 7;
        let Err(Error::Unsupported { feature, .. }) = Plan::backward(&problem, &few).build() else {
            panic!("seven storage buffers are enough for {problem:?}");
        };
        assert_eq!(feature, "this many storage buffers");
    }
}

/// Heads that share K and V share a workgroup, and each has its own slope.
#[test]
fn decoding_and_splits() {
    for (seqlen_q, num_splits) in [(1, 1), (3, 1), (3, 4), (40, 3)] {
        let shape = AttentionShape::new(2, 6, seqlen_q, 16).with_num_heads_kv(2).with_seqlen_kv(300);
        let library = library(Variant::Full).clone().splits(num_splits);
        for problem in [AttentionProblem::new(shape), AttentionProblem::new(shape).with_causal().with_dropout(0.2, 9)] {
            for problem in modified(&problem) {
                let plan = library.prepare(&problem).unwrap();
                let is_decoding = plan.plan().passes()[0].kernel.name().contains("decode");
                assert_eq!(is_decoding, seqlen_q < 40);
                check(&library, &problem, &inputs(&problem, 7));
            }
        }
    }
}

/// On matrices S has a factor left.
#[test]
fn every_modifier_on_matrices() {
    let Some(library) = with_matrices() else { return };
    for &element in Element::ALL {
        let problem = on_matrices(element);
        check(library, &problem, &inputs(&problem, 14));
    }
}

/// The gradient of S passes in units of rows.
#[test]
fn gradients_of_every_modifier_on_matrices() {
    let Some(library) = with_matrices() else { return };
    for &element in Element::ALL {
        let problem = on_matrices(element);
        check_gradients(library, &problem, &gradient_inputs(&problem, 15));
    }
}

/// Narrow, for a software driver compiles matrices for minutes.
fn on_matrices(element: Element) -> AttentionProblem {
    let shape = AttentionShape::new(2, 4, 70, 8).with_num_heads_kv(2).with_seqlen_kv(45);
    let problem = AttentionProblem::new(shape)
        .with_element(element)
        .with_causal_top_left()
        .with_dropout(0.3, 5)
        .with_softmax_scale(-0.4);
    modified(&problem).swap_remove(2)
}

/// Cells count in the whole problem, whatever part a dispatch covers.
#[test]
fn parts_of_a_problem_see_whole_positions() {
    let shape = AttentionShape::new(2, 4, 70, 16).with_num_heads_kv(2).with_seqlen_kv(90);
    for max_flops in [1, 60_000] {
        check_all(library(Variant::Full), &AttentionProblem::new(shape).with_causal().with_bounded_work(max_flops), 8);
    }
    let decode = AttentionProblem::new(AttentionShape { seqlen_q: 2, ..shape }).with_bounded_work(1);
    check_all(library(Variant::Full), &decode, 9);
}

/// A shorter call moves the diagonal, and ALiBi with it.
#[test]
fn shorter_calls_measure_from_their_own_diagonal() {
    let problem = AttentionProblem::new(AttentionShape::new(1, 2, 40, 16).with_seqlen_kv(60));
    let call = Call::new().with_seqlen_q(33).with_seqlen_kv(41);
    for problem in modified(&problem) {
        let solved = problem_of(&problem, &call);
        let inputs = inputs(&problem, 10);
        let found = run_calls(library(Variant::Full), &problem, &inputs, &[call, Call::default()]).swap_remove(0);
        let expected = wgpu_flash_attention::reference::forward(&solved, &inputs.q, &inputs.k, &inputs.v);
        for (found, expected) in found.lse().iter().zip(&expected.lse) {
            assert!((found - expected).abs() < 1e-4, "{found} and {expected}\n{problem:?}");
        }
    }
}

/// Softcap makes a finite score of an infinite one; ALiBi leaves it. What no row sees reaches no row.
#[test]
fn infinities_and_what_is_hidden() {
    let shape = AttentionShape::new(1, 1, 40, 8).with_seqlen_kv(48);
    for algorithm in [Algorithm::Flash, Algorithm::Standard] {
        for (n, problem) in
            modified(&AttentionProblem::new(shape).with_causal().with_algorithm(algorithm)).iter().enumerate()
        {
            let mut inputs = inputs(problem, 11);
            let Inputs { q, k, .. } = &mut inputs;
            // Row 0 sees keys up to 8.
            k[3 * 8..4 * 8].fill(0.0);
            k[3 * 8] = f64::NEG_INFINITY;
            q.iter_mut().step_by(8).for_each(|q| *q = q.abs() + 0.1);
            k[47 * 8..].fill(f64::NAN);
            let found = &run_calls(library(Variant::Full), problem, &inputs, &[Call::default()])[0];
            let expected = wgpu_flash_attention::reference::forward(problem, &inputs.q, &inputs.k, &inputs.v);
            for (row, (found, expected)) in found.lse().iter().zip(&expected.lse).enumerate() {
                assert_eq!(found.is_nan(), row == 39, "{n}: row {row} is {found}");
                assert!(row == 39 || (found - expected).abs() < 1e-4, "{n}: row {row}: {found} and {expected}");
            }
        }
    }
}

/// Rows whose scores are all −∞ are empty under ALiBi, and have no gradient.
#[test]
fn rows_of_nothing_but_infinities() {
    let shape = AttentionShape::new(1, 2, 40, 8).with_seqlen_kv(20);
    for &element in Element::ALL {
        let problem = AttentionProblem::new(shape).with_element(element);
        let problem = problem.with_score(ScoreMod::Alibi(vec![0.5, -0.01]));
        let mut given = gradient_inputs(&problem, 12);
        given.inputs.k.fill(f64::NEG_INFINITY);
        given.inputs.q.fill(1.0);
        check(library(Variant::Full), &problem, &given.inputs);
        for dq in run_backward(library(Variant::Full), &problem, &given).dq() {
            assert_eq!(dq, 0.0, "{element:?}");
        }
    }
}

#[test]
fn impossible_modifiers_are_refused() {
    let problem = AttentionProblem::new(AttentionShape::new(2, 3, 4, 8));
    let reason = |modifiers: &[ScoreMod]| {
        let problem = modifiers.iter().cloned().fold(problem.clone(), AttentionProblem::with_score);
        let capabilities = library(Variant::Full).capabilities();
        for plan in [Plan::forward(&problem, capabilities), Plan::backward(&problem, capabilities)] {
            let Err(Error::InvalidProblem(InvalidProblem::ScoreMod { name, .. })) = plan.build() else {
                panic!("{modifiers:?} is not refused");
            };
            assert_eq!(name, modifiers[modifiers.len() - 1].name());
        }
    };
    for softcap in [0.0, -1.0, f32::NAN, f32::INFINITY] {
        reason(&[ScoreMod::Softcap(softcap)]);
    }
    for slopes in [vec![], vec![1.0; 2], vec![1.0; 7], vec![0.5, f32::NAN, 1.0], vec![f32::INFINITY; 6]] {
        reason(&[ScoreMod::Alibi(slopes)]);
    }
    reason(&[softcap(), alibi(&problem), softcap()]);
}

/// A problem without modifiers binds no tables.
#[test]
fn plain_problems_have_no_tables() {
    use wgpu_flash_attention::Operand;
    let problem = AttentionProblem::new(AttentionShape::new(1, 2, 40, 8));
    let capabilities = limited(|_| ()).capabilities().clone();
    let has_tables = |problem: &AttentionProblem| {
        let plan = Plan::forward(problem, &capabilities).build().unwrap();
        plan.scratch().iter().any(|(operand, _)| *operand == Operand::Tables)
    };
    assert!(!has_tables(&problem));
    assert!(has_tables(&problem.with_score(softcap())));
}
