//! Bias and boolean masks: tensors with an entry for each sequence, head, row and key, in every kernel.

use wgpu_flash_attention::reference;
use wgpu_flash_attention::{
    AttentionProblem, AttentionShape, BackwardSlices, Element, EntryLayout, Error, ForwardSlices, InvalidProblem,
    KeyMask, Operand, Plan, ScoreMod,
};

use crate::support::{
    GradientInputs, Inputs, Variant, check, check_both, check_gradients, gradient_inputs, inputs, library,
    with_matrices,
};

/// Batch, heads, rows and keys, those of the problem or 1.
type Repeats = [bool; 4];

fn counts(shape: &AttentionShape, repeated: Repeats) -> [u32; 4] {
    let whole = [shape.batch, shape.num_heads, shape.seqlen_q, shape.seqlen_kv];
    std::array::from_fn(|n| if repeated[n] { 1 } else { whole[n] })
}

fn biased(problem: &AttentionProblem, repeated: Repeats, element: Element) -> AttentionProblem {
    let layout = EntryLayout::contiguous(counts(&problem.shape, repeated));
    problem.clone().with_score(ScoreMod::Bias { layout, element })
}

fn masked(problem: &AttentionProblem, repeated: Repeats) -> AttentionProblem {
    let layout = EntryLayout::packed_bits(counts(&problem.shape, repeated));
    problem.clone().with_key_mask(KeyMask::Boolean(layout))
}

const ALL: Repeats = [false; 4];
const REPEATS: [Repeats; 5] = [
    ALL,
    [true, false, false, false],
    [false, true, false, false],
    [false, true, true, false],
    [true, true, false, true],
];

fn shape() -> AttentionShape {
    AttentionShape::new(2, 4, 37, 16).with_num_heads_kv(2).with_seqlen_kv(45)
}

#[test]
fn every_way_to_repeat() {
    let library = library(Variant::Full);
    for (seed, repeated) in (1..).zip(REPEATS) {
        let problem = AttentionProblem::new(shape());
        check_both(library, &biased(&problem, repeated, Element::F32), seed);
        check_both(library, &masked(&problem, repeated), seed);
    }
}

#[test]
fn every_element_with_other_masks() {
    for &element in Element::ALL {
        let dense = AttentionProblem::new(shape()).with_element(element);
        let windowed = dense.clone().with_causal().with_window(Some(20), None).with_dropout(0.3, 5);
        let alibi = ScoreMod::Alibi(vec![0.1, 0.2, 0.3, 0.4]);
        check_both(library(Variant::Full), &biased(&dense, ALL, element), 11);
        check_both(library(Variant::Full), &masked(&windowed, ALL), 12);
        if library(Variant::Full).capabilities().max_storage_buffers > 9 {
            let all = masked(&biased(&windowed, REPEATS[1], Element::F32), REPEATS[2]).with_score(alibi);
            check_both(library(Variant::Full), &all, 13);
        }
    }
}

#[test]
fn other_tiles_and_devices() {
    let problem = AttentionProblem::new(shape()).with_causal().with_dropout(0.3, 5);
    for variant in [Variant::SmallTiles, Variant::NoSubgroups, Variant::Checked, Variant::WebGpuDefaults] {
        check_both(library(variant), &masked(&problem, ALL), 21);
        check_both(library(variant), &biased(&problem, ALL, Element::F32), 22);
    }
}

#[test]
fn decoding_splits_and_bounded_work() {
    for (seqlen_q, num_splits) in [(1, 1), (3, 4), (40, 3)] {
        let shape = AttentionShape::new(2, 6, seqlen_q, 16).with_num_heads_kv(2).with_seqlen_kv(300);
        let library = library(Variant::Full).clone().splits(num_splits);
        let problem = AttentionProblem::new(shape);
        for problem in [masked(&problem, ALL), biased(&problem, ALL, Element::F32)] {
            check(&library, &problem, &inputs(&problem, 31));
        }
    }
    let bounded = AttentionProblem::new(shape()).with_bounded_work(1);
    check_both(library(Variant::Full), &masked(&bounded, ALL), 32);
    check_both(library(Variant::Full), &biased(&bounded, ALL, Element::F32), 33);
}

#[test]
fn on_matrices() {
    let Some(library) = with_matrices() else { return };
    for &element in Element::ALL {
        let problem = AttentionProblem::new(AttentionShape { head_dim: 8, head_dim_v: 8, ..shape() });
        let problem = problem.with_element(element).with_causal().with_dropout(0.2, 3);
        check_both(library, &masked(&problem, ALL), 41);
        check_both(library, &biased(&problem, ALL, element), 42);
    }
}

/// What a row does not see reaches it never, and a row that sees nothing is 0, forward and backward.
#[test]
fn hidden_keys_and_rows() {
    let problem = masked(&AttentionProblem::new(shape()), [true, true, false, false]);
    let words = 2;
    for (library, dim) in
        [Some((library(Variant::Full), 16)), with_matrices().map(|library| (library, 16))].iter().flatten()
    {
        for fault in [f64::NAN, f64::INFINITY] {
            let mut given: GradientInputs = gradient_inputs(&problem, 51);
            // Rows 3 to 5 see nothing, and no row sees key 7.
            for (word, bits) in given.inputs.key_mask.iter_mut().enumerate() {
                *bits = if (3 * words..6 * words).contains(&word) { 0 } else { u32::MAX };
                if word % words == 0 {
                    *bits &= !(1 << 7);
                }
            }
            let poison = |values: &mut [f64], row: usize, heads: usize| {
                values[row * heads * dim..(row + 1) * heads * dim].fill(fault);
            };
            poison(&mut given.inputs.k, 7, 2);
            poison(&mut given.inputs.v, 7, 2);
            let output = check(library, &problem, &given.inputs);
            assert!(output.o().iter().all(|o| o.is_finite()), "{fault}");
            poison(&mut given.inputs.q, 4, 4);
            poison(&mut given.d_o, 4, 4);
            let gradients = check_gradients(library, &problem, &given);
            for gradient in gradients.all() {
                assert!(gradient.iter().all(|value| value.is_finite()), "{fault}");
            }
        }
    }
}

/// −∞ in a bias is a score of −∞: rows of nothing else are empty.
#[test]
fn infinite_biases() {
    let problem = biased(&AttentionProblem::new(shape()), ALL, Element::F32);
    for library in [Some(library(Variant::Full)), with_matrices()].into_iter().flatten() {
        let mut given = gradient_inputs(&problem, 61);
        let keys = problem.shape.seqlen_kv as usize;
        for (n, bias) in given.inputs.bias.iter_mut().enumerate() {
            let (row, key) = (n / keys, n % keys);
            if row % 7 == 2 || (key * 5 + row) % 3 == 0 {
                *bias = f64::NEG_INFINITY;
            }
        }
        let Inputs { bias, .. } = &given.inputs;
        assert!(bias.iter().any(|bias| bias.is_finite()));
        let output = check(library, &problem, &given.inputs);
        assert!(output.lse().contains(&f64::NEG_INFINITY));
        check_gradients(library, &problem, &given);
    }
}

/// The slice form takes them too, and says what it misses.
#[test]
fn from_slices() {
    let problem = masked(&biased(&AttentionProblem::new(shape()), REPEATS[1], Element::F32), REPEATS[2]);
    let attention = library(Variant::Full);
    let given = gradient_inputs(&problem, 71);
    let f32s = |values: &[f64]| values.iter().map(|value| *value as f32).collect::<Vec<f32>>();
    let [q, k, v, bias, d_o] =
        [&given.inputs.q, &given.inputs.k, &given.inputs.v, &given.inputs.bias, &given.d_o].map(|values| f32s(values));
    let words = &given.inputs.key_mask;
    let slices = ForwardSlices::new(&q, &k, &v);
    let whole = slices.with_bias(&bias).with_key_mask(words);
    let found = pollster::block_on(attention.forward_with(&problem, &whole)).unwrap();
    let expected = reference::forward(given.inputs.case(&problem), &given.inputs.q, &given.inputs.k, &given.inputs.v);
    let plan = attention.plan_forward(&problem).build().unwrap();
    assert_eq!(plan.required_len(Operand::Bias), bias.len() as u64);
    assert_eq!(plan.required_len(Operand::KeyMask), words.len() as u64);
    let near = |found: &[f32], expected: &[f64], what: &str| {
        assert_eq!(found.len(), expected.len());
        let all = found.iter().zip(expected).all(|(f, e)| f64::from(*f) == *e || (f64::from(*f) - e).abs() < 1e-4);
        assert!(all, "{what}");
    };
    near(&found.o, &expected.o, "o");
    near(&found.lse, &expected.lse, "lse");
    let backward = BackwardSlices::new(&q, &k, &v, &found.o, &found.lse, &d_o);
    let backward = backward.with_bias(&bias).with_key_mask(words);
    let tensors = [&given.inputs.q[..], &given.inputs.k, &given.inputs.v];
    let expected =
        reference::backward(given.inputs.case(&problem), tensors[0], tensors[1], tensors[2], &given.d_o, None);
    if attention.capabilities().max_storage_buffers > 8 {
        let gradients = pollster::block_on(attention.backward(&problem, &backward)).unwrap();
        near(&gradients.dq, &expected.dq, "dq");
        near(&gradients.dk, &expected.dk, "dk");
        near(&gradients.dv, &expected.dv, "dv");
    }

    let error = |slices: &ForwardSlices<'_, f32>, problem: &AttentionProblem| {
        pollster::block_on(attention.forward_with(problem, slices)).err()
    };
    let short = |operand, needed, found| Some(Error::SliceTooShort { operand, needed, found });
    let (entries, words_needed) = (bias.len() as u64, words.len() as u64);
    assert_eq!(error(&slices.with_key_mask(words), &problem), short(Operand::Bias, entries, 0));
    assert_eq!(error(&slices.with_bias(&bias), &problem), short(Operand::KeyMask, words_needed, 0));
    let less = slices.with_bias(&bias[1..]).with_key_mask(words);
    assert_eq!(error(&less, &problem), short(Operand::Bias, entries, entries - 1));
    let halves = vec![half::f16::ZERO; bias.len()];
    let mismatch = Error::ElementMismatch { expected: Element::F32, found: Element::F16 };
    assert_eq!(error(&slices.with_bias(&halves).with_key_mask(words), &problem), Some(mismatch));
    let unexpected = Some(Error::BufferUnexpected { operand: Operand::Bias });
    assert_eq!(error(&slices.with_bias(&bias), &AttentionProblem::new(shape())), unexpected);
}

#[test]
fn impossible_ones_are_refused() {
    let problem = AttentionProblem::new(shape());
    let capabilities = library(Variant::Full).capabilities();
    let layout = EntryLayout::contiguous([2, 4, 37, 45]);
    let far = EntryLayout { stride_row: 1 << 33, ..layout };
    let long = EntryLayout { offset: u64::MAX, ..layout };
    let bias = |layout, element| problem.clone().with_score(ScoreMod::Bias { layout, element });
    for (faulty, reason) in [
        (bias(far, Element::F32), "stride_row is 8589934592, past 32 bits"),
        (bias(long, Element::F32), "its last entry has the number 18446744073709551615, past 32 bits"),
        (bias(layout, Element::Bf16), "it is in Bf16; it must be in F32 or, as the problem, in F32"),
    ] {
        for plan in [Plan::forward(&faulty, capabilities).build(), Plan::backward(&faulty, capabilities).build()] {
            let expected = InvalidProblem::ScoreMod { name: "bias", reason: reason.into() };
            assert_eq!(plan.map(|_| ()), Err(Error::InvalidProblem(expected)));
        }
    }
    let strided = EntryLayout { stride_key: 2, ..EntryLayout::packed_bits([2, 4, 37, 45]) };
    let mask = KeyMask::Boolean(strided);
    let once = Plan::forward(&problem.clone().with_key_mask(mask), capabilities).build();
    let reason = "stride_key is 2; bits of neighbouring keys are neighbours, or all keys have one".to_owned();
    assert_eq!(once.map(|_| ()), Err(Error::InvalidProblem(InvalidProblem::KeyMask { name: "boolean", reason })));
    let mask = KeyMask::Boolean(EntryLayout::packed_bits([2, 4, 37, 45]));
    let twice = problem.with_key_mask(mask.clone()).with_key_mask(mask);
    let reason = "it is given twice; each kind of mask may be given once".to_owned();
    assert_eq!(
        Plan::forward(&twice, capabilities).build().map(|_| ()),
        Err(Error::InvalidProblem(InvalidProblem::KeyMask { name: "boolean", reason }))
    );
}
