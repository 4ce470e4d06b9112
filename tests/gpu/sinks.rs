//! Sinks: a logit for each head that joins the softmax's sum, and its gradient.

use wgpu_flash_attention::reference;
use wgpu_flash_attention::{
    AttentionProblem, AttentionShape, BackwardSlices, Call, Element, EntryLayout, Error, ForwardSlices, KeyMask,
    Operand, ScoreMod,
};

use crate::support::{
    Variant, check, check_both, check_gradients, gradient_inputs, inputs, library, run_backward,
    run_backward_dispatch_by_dispatch, run_calls, with_matrices,
};

fn shape() -> AttentionShape {
    AttentionShape::new(2, 4, 37, 16).with_num_heads_kv(2).with_seqlen_kv(45)
}

#[test]
fn every_element_and_mask() {
    for &element in Element::ALL {
        let dense = AttentionProblem::new(shape()).with_element(element).with_sink();
        let windowed = dense.clone().with_causal().with_window(Some(9), None).with_dropout(0.3, 5);
        check_both(library(Variant::Full), &dense, 1);
        check_both(library(Variant::Full), &windowed, 2);
    }
    let bits = KeyMask::Boolean(EntryLayout::packed_bits([1, 4, 37, 45]));
    let all = AttentionProblem::new(shape()).with_sink().with_score(ScoreMod::Softcap(3.0)).with_key_mask(bits);
    check_both(library(Variant::Full), &all, 3);
}

#[test]
fn other_tiles_and_devices() {
    let problem = AttentionProblem::new(shape()).with_causal().with_sink();
    for variant in [Variant::SmallTiles, Variant::NoSubgroups, Variant::Checked, Variant::WebGpuDefaults] {
        check_both(library(variant), &problem, 11);
    }
}

#[test]
fn decoding_splits_and_bounded_work() {
    for (seqlen_q, num_splits) in [(1, 1), (3, 4), (40, 3)] {
        let shape = AttentionShape::new(2, 6, seqlen_q, 16).with_num_heads_kv(2).with_seqlen_kv(300);
        let library = library(Variant::Full).clone().splits(num_splits);
        let problem = AttentionProblem::new(shape).with_causal().with_sink();
        check(&library, &problem, &inputs(&problem, 21));
    }
    check_both(library(Variant::Full), &AttentionProblem::new(shape()).with_sink().with_bounded_work(1), 22);
}

#[test]
fn on_matrices() {
    let Some(library) = with_matrices() else { return };
    for &element in Element::ALL {
        let problem = AttentionProblem::new(AttentionShape { head_dim: 8, head_dim_v: 8, ..shape() });
        check_both(library, &problem.with_element(element).with_causal().with_sink(), 31);
    }
}

/// LSE of a row that sees no key is its sink, and all that its gradients have is dLSE.
#[test]
fn rows_that_see_nothing() {
    let problem = AttentionProblem::new(AttentionShape::new(1, 2, 40, 8).with_seqlen_kv(10)).with_causal().with_sink();
    for library in [Some(library(Variant::Full)), with_matrices()].into_iter().flatten() {
        // An odd seed has a dLSE.
        let given = gradient_inputs(&problem, 41);
        let output = check(library, &problem, &given.inputs);
        let lse = output.lse();
        for head in 0..2 {
            let sink = given.inputs.sink[head];
            assert!(lse[head * 40..][..30].iter().all(|lse| (lse - sink).abs() <= 2e-7 * (1.0 + sink.abs())));
        }
        check_gradients(library, &problem, &given);
    }
    let without_keys = AttentionProblem::new(AttentionShape::new(1, 2, 40, 8).with_seqlen_kv(0)).with_sink();
    check_both(library(Variant::Full), &without_keys, 43);
    let without_rows = AttentionProblem::new(AttentionShape::new(1, 2, 0, 8).with_seqlen_kv(10)).with_sink();
    let gradients = run_backward(library(Variant::Full), &without_rows, &gradient_inputs(&without_rows, 44));
    assert_eq!(gradients.dsink(), [0.0, 0.0]);
}

/// A sink of −∞ is none, one that dwarfs all scores takes everything, and NaN stays in its head.
#[test]
fn extreme_sinks() {
    let problem =
        AttentionProblem::new(AttentionShape::new(2, 5, 37, 16).with_num_heads_kv(5)).with_causal().with_sink();
    for library in [Some(library(Variant::Full)), with_matrices()].into_iter().flatten() {
        let mut given = gradient_inputs(&problem, 51);
        given.inputs.sink = vec![f64::NEG_INFINITY, 1000.0, -1000.0, f64::NAN, f64::from(f32::MIN)];
        let output = check(library, &problem, &given.inputs);
        let plain = AttentionProblem::new(problem.shape).with_causal();
        let without = reference::forward(&plain, &given.inputs.q, &given.inputs.k, &given.inputs.v);
        for (row, (found, expected)) in output.lse().iter().zip(&without.lse).enumerate() {
            match row / 37 % 5 {
                0 | 2 | 4 => assert!((found - expected).abs() < 1e-5, "row {row}: {found} for {expected}"),
                1 => assert_eq!(*found, 1000.0),
                _ => assert!(found.is_nan()),
            }
        }
        given.inputs.sink[3] = 0.5;
        check_gradients(library, &problem, &given);
    }
}

#[test]
fn shorter_calls_and_single_dispatches() {
    let library = library(Variant::Full);
    let problem = AttentionProblem::new(shape()).with_causal().with_sink();
    let given = inputs(&problem, 61);
    let outputs =
        run_calls(library, &problem, &given, &[Call::new(), Call::new().with_seqlen_q(11).with_seqlen_kv(20)]);
    assert_eq!(outputs.len(), 2);
    // Sequences one by one, and then at once: the same sum in the same order.
    let bounded = problem.with_bounded_work(1);
    let given = gradient_inputs(&bounded, 62);
    let together = run_backward(library, &bounded, &given);
    let one_by_one = run_backward_dispatch_by_dispatch(library, &bounded, &given);
    assert!(together == one_by_one);
}

#[test]
fn slices_take_and_give_sinks() {
    let attention = library(Variant::Full);
    let problem = AttentionProblem::new(AttentionShape::new(1, 2, 3, 4)).with_sink();
    let (q, sink) = (vec![0.5f32; 24], [1.0f32, -1.0]);
    let forward =
        pollster::block_on(attention.forward_with(&problem, &ForwardSlices::new(&q, &q, &q).with_sink(&sink)));
    let forward = forward.expect("it runs");
    let given = BackwardSlices::new(&q, &q, &q, &forward.o, &forward.lse, &q).with_sink(&sink);
    let gradients = pollster::block_on(attention.backward(&problem, &given)).expect("it runs");
    assert_eq!(gradients.dsink.len(), 2);
    assert!(gradients.dsink.iter().all(|dsink| *dsink < 0.0), "{:?}", gradients.dsink);

    let missing = pollster::block_on(attention.forward(&problem, &q, &q, &q));
    let expected = Error::SliceTooShort { operand: Operand::Sink, needed: 2, found: 0 };
    assert_eq!(missing.expect_err("the sink is missing"), expected);
    let plain = AttentionProblem::new(problem.shape);
    let unexpected =
        pollster::block_on(attention.forward_with(&plain, &ForwardSlices::new(&q, &q, &q).with_sink(&sink)));
    assert_eq!(unexpected.expect_err("there is no sink"), Error::BufferUnexpected { operand: Operand::Sink });
}
