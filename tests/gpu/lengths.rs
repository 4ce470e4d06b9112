//! Sequences with lengths of their own in padded tensors. All that lies past them is NaN.

use wgpu_flash_attention::{
    AttentionProblem, AttentionShape, Call, Element, EntryLayout, Error, InvalidProblem, KeyMask, ScoreMod,
    TensorLayout,
};

use crate::support::{
    GradientInputs, Library, Variant, check, check_gradients, gradient_inputs, inputs, library, run_calls,
    with_matrices,
};

fn shape() -> AttentionShape {
    AttentionShape::new(5, 4, 70, 8).with_num_heads_kv(2).with_seqlen_kv(75)
}

/// Whole, shorter, without rows, without keys, and more rows than keys.
fn padded(problem: AttentionProblem) -> AttentionProblem {
    problem.with_lengths(vec![70, 33, 0, 40, 64], vec![75, 64, 20, 0, 9])
}

/// Inputs with NaN in all padding.
fn poisoned(problem: &AttentionProblem, seed: u64) -> GradientInputs {
    let mut given = gradient_inputs(problem, seed);
    let shape = problem.shape;
    let poison = |values: &mut [f64], layout: &TensorLayout, heads: u32, rows: u32, dim: u32, is_q: bool| {
        for batch in 0..shape.batch {
            let (seqlen_q, seqlen_kv) = problem.lengths_of(batch);
            for row in if is_q { seqlen_q } else { seqlen_kv }..rows {
                for head in 0..heads {
                    let first = layout.index(batch, row, head) as usize;
                    values[first..first + dim as usize].fill(f64::NAN);
                }
            }
        }
    };
    let layout = problem.layout;
    poison(&mut given.inputs.q, &layout.q, shape.num_heads, shape.seqlen_q, shape.head_dim, true);
    poison(&mut given.inputs.k, &layout.k, shape.num_heads_kv, shape.seqlen_kv, shape.head_dim, false);
    poison(&mut given.inputs.v, &layout.v, shape.num_heads_kv, shape.seqlen_kv, shape.head_dim_v, false);
    poison(&mut given.d_o, &problem.gradient_layout().o, shape.num_heads, shape.seqlen_q, shape.head_dim_v, true);
    given
}

fn check_both(library: &Library, problem: &AttentionProblem, seed: u64) {
    let given = poisoned(problem, seed);
    let output = check(library, problem, &given.inputs);
    assert!(output.o().iter().all(|o| o.is_finite()), "{problem:?}");
    let gradients = check_gradients(library, problem, &given);
    assert!(gradients.all().iter().flatten().all(|gradient| gradient.is_finite()), "{problem:?}");
}

#[test]
fn every_element_and_mask() {
    for &element in Element::ALL {
        let problem = padded(AttentionProblem::new(shape()).with_element(element));
        check_both(library(Variant::Full), &problem, 1);
        check_both(library(Variant::Full), &problem.clone().with_causal(), 2);
        let windowed = problem.with_causal_top_left().with_window(Some(20), None).with_dropout(0.3, 5);
        check_both(library(Variant::Full), &windowed, 3);
    }
    let bits = KeyMask::Boolean(EntryLayout::packed_bits([1, 4, 70, 75]));
    let alibi = ScoreMod::Alibi(vec![0.1, 0.2, 0.3, 0.4]);
    let all = padded(AttentionProblem::new(shape())).with_causal().with_score(alibi).with_sink();
    check_both(library(Variant::Full), &all, 4);
    if library(Variant::Full).capabilities().max_storage_buffers > 8 {
        check_both(library(Variant::Full), &all.with_key_mask(bits), 5);
    }
}

#[test]
fn other_tiles_and_devices() {
    for variant in [Variant::SmallTiles, Variant::NoSubgroups, Variant::Checked, Variant::WebGpuDefaults] {
        check_both(library(variant), &padded(AttentionProblem::new(shape()).with_causal()), 11);
    }
}

#[test]
fn decoding_splits_and_bounded_work() {
    for (seqlen_q, num_splits) in [(1, 1), (3, 4), (40, 3)] {
        let shape = AttentionShape::new(3, 6, seqlen_q, 16).with_num_heads_kv(2).with_seqlen_kv(300);
        let library = library(Variant::Full).clone().splits(num_splits);
        let problem = AttentionProblem::new(shape).with_causal().with_sink();
        let problem = problem.with_lengths(vec![seqlen_q, seqlen_q, 0], vec![300, 41, 7]);
        check(&library, &problem, &poisoned(&problem, 21).inputs);
    }
    check_both(library(Variant::Full), &padded(AttentionProblem::new(shape()).with_bounded_work(1)), 22);
}

#[test]
fn on_matrices() {
    let Some(library) = with_matrices() else { return };
    for &element in Element::ALL {
        check_both(library, &padded(AttentionProblem::new(shape()).with_element(element).with_causal()), 31);
    }
}

#[test]
fn shorter_calls_clamp_lengths() {
    let problem = padded(AttentionProblem::new(shape()).with_causal());
    let given = inputs(&problem, 41);
    let call = Call::new().with_seqlen_q(50).with_seqlen_kv(60);
    let outputs = run_calls(library(Variant::Full), &problem, &given, &[Call::new(), call]);
    // Sequence 1 has 33 rows and 64 keys, of which the call keeps 60: the last row sees the last of them.
    let of = |call: usize, seqlen_q: usize, row: usize| outputs[call].lse()[4 * seqlen_q + row];
    assert!(of(0, 70, 33) == f64::NEG_INFINITY && of(1, 50, 33) == f64::NEG_INFINITY);
    assert!(of(0, 70, 32).is_finite() && of(1, 50, 32).is_finite());
}

#[test]
fn lengths_that_fit_no_tensor_are_refused() {
    let problem = || AttentionProblem::new(AttentionShape::new(2, 1, 5, 8).with_seqlen_kv(7));
    let refused = |seqlens_q: &[u32], seqlens_kv: &[u32], name: &'static str, reason: &str| {
        let problem = problem().with_lengths(seqlens_q.to_vec(), seqlens_kv.to_vec());
        let error = library(Variant::Full).plan_forward(&problem).build().expect_err("they do not fit");
        let reason = reason.to_owned();
        assert_eq!(error, Error::InvalidProblem(InvalidProblem::Lengths { name, reason }));
    };
    refused(&[5], &[7, 7], "seqlens_q", "1 lengths are given for 2 sequences");
    refused(&[5, 5], &[7, 8], "seqlens_kv", "that of sequence 1 is 8; the tensors have seqlen_kv = 7");
}
