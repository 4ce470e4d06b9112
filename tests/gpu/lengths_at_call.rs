//! Lengths of sequences in buffers that each call brings: the same bits as with lengths that are a part of the problem.

use wgpu_flash_attention::{
    Algorithm, AttentionProblem, AttentionShape, BlockMask, Call, Element, Error, InvalidProblem, KeyMask, Operand,
    ScoreMod,
};

use crate::support::{
    Bytes, GradientInputs, Library, Variant, gradient_inputs, library, run_bytes, with_matrices, words,
};

fn shape() -> AttentionShape {
    AttentionShape::new(5, 4, 70, 8).with_num_heads_kv(2).with_seqlen_kv(75)
}

fn at_call(problem: &AttentionProblem) -> AttentionProblem {
    problem.clone().with_seqlens_q_at_call().with_seqlens_kv_at_call()
}

/// Whole, shorter, without rows, without keys, and more rows than keys; then others.
const LENGTHS: [[[u32; 5]; 2]; 3] =
    [[[70, 33, 0, 40, 64], [75, 64, 20, 0, 9]], [[1, 70, 2, 5, 3], [75, 75, 1, 2, 64]], [[0; 5], [75, 1, 2, 3, 4]]];

/// One prepared operation for all lengths, in one encoder, against one for each.
fn check_calls(library: &Library, problem: &AttentionProblem, is_backward: bool, seed: u64) {
    let given: GradientInputs = gradient_inputs(problem, seed);
    let (mut answers, mut calls): (Vec<Bytes>, Vec<_>) = Default::default();
    for lengths in LENGTHS {
        let most = [problem.shape.seqlen_q, problem.shape.seqlen_kv];
        let [seqlens_q, seqlens_kv] = [0, 1].map(|side: usize| lengths[side].map(|length| length.min(most[side])));
        let known = problem.clone().with_lengths(seqlens_q.to_vec(), seqlens_kv.to_vec());
        let mut tensors = given.tensors(&known, is_backward);
        answers.extend(run_bytes(library, &known, is_backward, &[(tensors.clone(), Call::new())]));
        tensors.extend([(Operand::SeqlensQ, words(&seqlens_q)), (Operand::SeqlensKv, words(&seqlens_kv))]);
        calls.push((tensors, Call::new()));
    }
    let found = run_bytes(library, &at_call(problem), is_backward, &calls);
    for (n, (found, expected)) in found.iter().zip(&answers).enumerate() {
        for (operand, bytes) in expected {
            assert!(found[operand] == *bytes, "{operand} of call {n}: {problem:?}");
        }
    }
}

fn check_both(library: &Library, problem: &AttentionProblem, seed: u64) {
    for algorithm in [Algorithm::Flash, Algorithm::Standard] {
        let problem = problem.clone().with_algorithm(algorithm);
        check_calls(library, &problem, false, seed);
        check_calls(library, &problem, true, seed);
    }
}

#[test]
fn one_operation_serves_all_lengths() {
    for &element in Element::ALL {
        let problem = AttentionProblem::new(shape()).with_element(element).with_causal();
        check_both(library(Variant::Full), &problem, 1);
    }
    let all = AttentionProblem::new(shape()).with_window(Some(20), Some(3)).with_dropout(0.3, 5).with_sink();
    check_both(library(Variant::Full), &all.with_score(ScoreMod::Alibi(vec![0.1, 0.2, 0.3, 0.4])), 2);
    check_both(library(Variant::Checked), &AttentionProblem::new(shape()).with_bounded_work(1), 3);
}

#[test]
fn block_masks_are_masks_without_lists() {
    let problem = AttentionProblem::new(shape()).with_key_mask(KeyMask::Blocks(BlockMask::local(9)));
    check_both(library(Variant::Full), &problem, 11);
}

#[test]
fn decoding_and_splits() {
    let shape = AttentionShape::new(5, 6, 2, 16).with_num_heads_kv(2).with_seqlen_kv(75);
    for num_splits in [1, 3] {
        let library = library(Variant::Full).clone().splits(num_splits);
        check_calls(&library, &AttentionProblem::new(shape).with_causal().with_sink(), false, 21);
    }
}

#[test]
fn on_matrices() {
    let Some(library) = with_matrices() else { return };
    for &element in Element::ALL {
        let problem = AttentionProblem::new(shape()).with_element(element).with_causal();
        check_calls(library, &problem, false, 31);
        check_calls(library, &problem, true, 31);
    }
}

#[test]
fn one_side_may_have_its_lengths_with_the_problem() {
    let problem = AttentionProblem::new(shape()).with_causal();
    let [seqlens_q, seqlens_kv] = LENGTHS[0];
    let known = problem.with_lengths(seqlens_q.to_vec(), seqlens_kv.to_vec());
    let tensors = gradient_inputs(&known, 41).tensors(&known, false);
    let expected = run_bytes(library(Variant::Full), &known, false, &[(tensors.clone(), Call::new())]);
    let mut with_lengths = tensors;
    with_lengths.push((Operand::SeqlensKv, words(&seqlens_kv)));
    let half = known.with_seqlens_kv_at_call();
    let found = run_bytes(library(Variant::Full), &half, false, &[(with_lengths, Call::new())]);
    assert!([Operand::O, Operand::Lse].iter().all(|operand| found[0][operand] == expected[0][operand]));
}

#[test]
fn impossible_lengths_are_brought_inside() {
    let problem = AttentionProblem::new(shape());
    let given = gradient_inputs(&problem, 51);
    let run = |seqlens_q: [u32; 5], seqlens_kv: [u32; 5]| {
        let mut tensors = given.tensors(&problem, false);
        tensors.extend([(Operand::SeqlensQ, words(&seqlens_q)), (Operand::SeqlensKv, words(&seqlens_kv))]);
        run_bytes(library(Variant::Checked), &at_call(&problem), false, &[(tensors, Call::new())]).pop().expect("one")
    };
    let found = run([71, u32::MAX, 0x7fff_ffff, 70, 1 << 31], [u32::MAX, 75, 76, 0x7fff_ffff, 1 << 30]);
    let expected = run([70, 0, 70, 70, 0], [0, 75, 75, 75, 75]);
    assert!([Operand::O, Operand::Lse].iter().all(|operand| found[operand] == expected[operand]));
}

#[test]
fn what_is_missing_or_cannot_be_is_refused() {
    let problem = AttentionProblem::new(shape()).with_seqlens_kv_at_call();
    let slice = vec![0.0f32; 5 * 75 * 4 * 8];
    let error = pollster::block_on(library(Variant::Full).forward(&problem, &slice, &slice, &slice)).unwrap_err();
    let is_of_lengths =
        |error: &Error| matches!(error, Error::InvalidProblem(InvalidProblem::Lengths { name: "seqlens_kv", .. }));
    assert!(is_of_lengths(&error), "{error}");
    let prepared = library(Variant::Full).prepare(&problem).expect("it can be prepared");
    assert_eq!(prepared.plan().required_bytes(Operand::SeqlensKv), 20);
    assert_eq!(prepared.plan().required_bytes(Operand::SeqlensQ), 0);
    // More sequences than there are words for.
    let vast = AttentionShape::new(1 << 29, 1, 1, 1).with_seqlen_kv(0);
    let vast = AttentionProblem::new(vast).with_seqlens_kv_at_call();
    let error = library(Variant::Full).plan_forward(&vast).build().expect_err("there is no room for their lengths");
    assert!(matches!(error, Error::TooLarge { .. }), "{error}");
}
