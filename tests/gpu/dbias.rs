//! The gradient of a bias.

use wgpu_flash_attention::{
    AttentionProblem, AttentionShape, BackwardSlices, Call, Capabilities, Element, ElementType, EntryLayout, Error,
    InvalidProblem, KeyMask, Operand, Plan, ScoreMod, reference,
};

use crate::support::{
    Variant, check_gradients, gradient_inputs, library, limited, run_backward, run_backward_calls,
    run_backward_dispatch_by_dispatch, with_matrices,
};

fn shape() -> AttentionShape {
    AttentionShape::new(2, 4, 70, 16).with_num_heads_kv(2).with_seqlen_kv(45)
}

/// With a bias whose dimensions of batch, heads, rows and keys have entries of their own, or share one.
fn biased(problem: AttentionProblem, own: [bool; 4], element: Element) -> AttentionProblem {
    let shape = problem.shape;
    let whole = [shape.batch, shape.num_heads, shape.seqlen_q, shape.seqlen_kv];
    let counts = std::array::from_fn(|n| if own[n] { whole[n] } else { 1 });
    problem.with_score(ScoreMod::Bias { layout: EntryLayout::contiguous(counts), element }).with_bias_gradient()
}

const ALL: [bool; 4] = [true; 4];

#[test]
fn every_way_to_share() {
    let dense = AttentionProblem::new(shape());
    for bits in 0..16u32 {
        let own = std::array::from_fn(|n| bits >> n & 1 == 1);
        let problem = biased(dense.clone(), own, Element::F32);
        let problem = if bits % 3 == 0 { problem.with_causal() } else { problem };
        check_gradients(library(Variant::Full), &problem, &gradient_inputs(&problem, u64::from(bits)));
    }
}

#[test]
fn every_element_mask_and_modifier() {
    let full = library(Variant::Full);
    for &element in Element::ALL {
        let dense = AttentionProblem::new(shape()).with_element(element);
        let windowed = dense.clone().with_causal().with_window(Some(20), None).with_dropout(0.3, 5);
        let capped = biased(dense.clone().with_score(ScoreMod::Softcap(2.0)), [false, true, true, true], element);
        let capped_after = biased(dense.clone(), ALL, Element::F32).with_score(ScoreMod::Softcap(2.0));
        let alibi = biased(dense.clone().with_score(ScoreMod::Alibi(vec![0.1, 0.2, 0.3, 0.4])), ALL, element);
        let padded = biased(dense, [true, false, false, true], element).with_lengths(vec![70, 31], vec![12, 45]);
        // A software driver compiles each for seconds.
        let for_all = [biased(windowed, ALL, element), capped_after];
        let for_f32 = [capped, alibi.with_sink(), padded.with_causal()].into_iter().filter(|_| element == Element::F32);
        for (seed, problem) in (21..).zip(for_all.into_iter().chain(for_f32)) {
            check_gradients(full, &problem, &gradient_inputs(&problem, seed));
        }
    }
    let bits = KeyMask::Boolean(EntryLayout::packed_bits([2, 1, 70, 45]));
    let masked = biased(AttentionProblem::new(shape()), [true, true, false, true], Element::F32).with_key_mask(bits);
    check_gradients(full, &masked, &gradient_inputs(&masked, 30));
}

#[test]
fn other_devices_and_odd_shapes() {
    let shape = AttentionShape::new(3, 3, 33, 7).with_seqlen_kv(35).with_head_dim_v(45);
    for variant in [Variant::NoShaderF16, Variant::Checked, Variant::WebGpuDefaults] {
        for (own, element) in [(ALL, Element::F16), ([false, true, true, false], Element::F32)] {
            let problem = biased(AttentionProblem::new(shape).with_element(Element::F16), own, element).with_causal();
            check_gradients(library(variant), &problem, &gradient_inputs(&problem, 41));
        }
    }
    let Some(library) = with_matrices() else { return };
    let problem = biased(
        AttentionProblem::new(AttentionShape { head_dim: 8, head_dim_v: 8, ..self::shape() }),
        ALL,
        Element::F32,
    );
    check_gradients(library, &problem, &gradient_inputs(&problem, 42));
}

/// Entries of −∞, rows of nothing else, and rows that see no key: gradients of 0, and no NaN anywhere.
#[test]
fn infinite_entries_and_empty_rows() {
    let shape = AttentionShape { seqlen_q: 70, seqlen_kv: 45, ..shape() };
    for own in [ALL, [false, true, true, true]] {
        let problem = biased(AttentionProblem::new(shape), own, Element::F32).with_causal();
        let mut given = gradient_inputs(&problem, 51);
        let keys = shape.seqlen_kv as usize;
        for (n, bias) in given.inputs.bias.iter_mut().enumerate() {
            let (row, key) = (n / keys % 70, n % keys);
            if row % 7 == 2 || (key * 5 + row) % 3 == 0 {
                *bias = f64::NEG_INFINITY;
            }
        }
        let dbias = check_gradients(library(Variant::Full), &problem, &given).dbias();
        let hidden = |n: usize| n / keys % 70 < 25 || n / keys % 70 % 7 == 2 || given.inputs.bias[n].is_infinite();
        for (n, value) in dbias.iter().enumerate() {
            assert!(value.is_finite() && (!hidden(n) || *value == 0.0), "entry {n}: {value}");
        }
        assert!(dbias.iter().any(|value| *value != 0.0));
    }
}

/// What a row does not see reaches no entry.
#[test]
fn hidden_keys_and_rows_are_not_read() {
    let bits = KeyMask::Boolean(EntryLayout::packed_bits([1, 1, 70, 45]));
    let problem = biased(AttentionProblem::new(shape()), [false, true, false, true], Element::F32).with_key_mask(bits);
    let mut given = gradient_inputs(&problem, 61);
    // Rows 3 to 5 see nothing, and no row sees key 7.
    for (word, bits) in given.inputs.key_mask.iter_mut().enumerate() {
        *bits = if (6..12).contains(&word) { 0 } else { u32::MAX };
        *bits &= if word % 2 == 0 { !(1 << 7) } else { u32::MAX };
    }
    for (values, row, width) in [(&mut given.inputs.k, 7, 32), (&mut given.inputs.v, 7, 32)] {
        values[row * width..][..width].fill(f64::NAN);
    }
    given.inputs.q[4 * 64..5 * 64].fill(f64::NAN);
    given.d_o[4 * 64..5 * 64].fill(f64::INFINITY);
    let dbias = check_gradients(library(Variant::Full), &problem, &given).dbias();
    assert!(dbias.iter().all(|value| value.is_finite()));
    assert_eq!(dbias[7], 0.0);
}

/// A small bound cuts entries first, whose sums stay whole: the same bits. Where all share an entry, sums are divided.
#[test]
fn bounded_work_and_single_dispatches() {
    let library = library(Variant::Full);
    for (own, is_whole) in [(ALL, true), ([false, true, true, true], false), ([false; 4], false)] {
        for element in [Element::F32, Element::F16] {
            let problem = biased(AttentionProblem::new(shape()).with_element(element), own, element);
            let given = gradient_inputs(&problem, 71);
            let whole = run_backward(library, &problem, &given);
            let bounded = problem.clone().with_bounded_work(1);
            check_gradients(library, &bounded, &given);
            let together = run_backward(library, &bounded, &given);
            let one_by_one = run_backward_dispatch_by_dispatch(library, &bounded, &given);
            assert!(together == one_by_one);
            assert!(!is_whole || whole.dbias() == together.dbias());
            let plan = library.plan_backward(&bounded).build().unwrap();
            let dispatches = plan.dispatches(&Call::new(), &Default::default()).unwrap();
            let of_bias = dispatches.iter().filter(|d| plan.passes()[d.pass].kernel.name().contains("dbias"));
            // Two tiles of rows and two of keys, of two sequences and four heads.
            assert_eq!(of_bias.count(), 32 + usize::from(element == Element::F16));
        }
    }
    // As much work as four tiles: entries are cut, sums are not.
    let problem = biased(AttentionProblem::new(shape()), [false, true, true, true], Element::F32);
    let given = gradient_inputs(&problem, 72);
    let whole = run_backward(library, &problem, &given);
    let bounded = run_backward(library, &problem.with_bounded_work(2 * 70 * 45 * 2 * 32), &given);
    assert!(whole.dbias() == bounded.dbias());
}

/// Sums of 65,536 terms of one sign, as f64 has them. On a driver that ends long loops, they are divided.
#[test]
fn long_sums_do_not_drift() {
    let shape = AttentionShape::new(4, 2, 8192, 4).with_seqlen_kv(8);
    let problem = biased(AttentionProblem::new(shape), [false, false, false, true], Element::F32);
    let mut given = gradient_inputs(&problem, 80);
    // All P are 1/8; dP is 0 for seven keys and 1.1 for the last, D is 1.1/8: terms of −1.1/64, and of 7.7/64.
    for values in [&mut given.inputs.q, &mut given.inputs.k, &mut given.inputs.v, &mut given.inputs.bias] {
        values.fill(0.0);
    }
    given.inputs.v.chunks_mut(64).for_each(|of_sequence| of_sequence[7 * 8..].fill(0.25));
    given.d_o.fill(f64::from(1.1f32));
    let cut = limited(|capabilities| {
        capabilities.max_loop_turns = Some(12_000);
        capabilities.matrix_side = None;
    });
    for library in [library(Variant::Full), &cut] {
        let dbias = run_backward(library, &problem, &given).dbias();
        let terms = 8.0 * 8192.0 * 1.1 / 64.0;
        for (key, value) in dbias.iter().enumerate() {
            let expected = if key == 7 { 7.0 * terms } else { -terms };
            assert!((value / expected - 1.0).abs() < 2e-6, "key {key}: {value}, not {expected}");
        }
    }
}

#[test]
fn shorter_calls_write_all_entries() {
    for element in [Element::F32, Element::F16] {
        let problem = biased(AttentionProblem::new(shape()).with_element(element), ALL, element);
        let given = gradient_inputs(&problem, 90);
        let calls = [Call::new(), Call::new().with_seqlen_q(11).with_seqlen_kv(20), Call::new().with_seqlen_q(0)];
        let found = run_backward_calls(library(Variant::Full), &problem, &given, &calls);
        let entry = |n: usize| (n / 45 % 70, n % 45);
        for (n, value) in found[1].dbias().iter().enumerate() {
            let (row, key) = entry(n);
            assert!(row < 11 && key < 20 || *value == 0.0, "{n}: {value}");
        }
        assert!(found[0].dbias().iter().any(|value| *value != 0.0));
        assert!(found[1].dbias().iter().any(|value| *value != 0.0));
        assert!(found[2].dbias().iter().all(|value| *value == 0.0));
    }
}

#[test]
fn problems_of_nothing() {
    let library = library(Variant::Full);
    for (batch, heads, rows, keys) in [(0, 2, 3, 4), (1, 0, 3, 4), (1, 2, 0, 4), (1, 2, 3, 0)] {
        for own in [ALL, [false; 4]] {
            let shape = AttentionShape::new(batch, heads, rows, 4).with_num_heads_kv(2).with_seqlen_kv(keys);
            let problem = biased(AttentionProblem::new(shape), own, Element::F32);
            check_gradients(library, &problem, &gradient_inputs(&problem, 100));
        }
    }
}

#[test]
fn slices_give_it_in_f32() {
    let attention = library(Variant::Full);
    let problem =
        biased(AttentionProblem::new(shape()).with_element(Element::F16), [false, true, true, true], Element::F16);
    let given = gradient_inputs(&problem, 110);
    let halves =
        |values: &[f64]| values.iter().map(|value| <half::f16 as ElementType>::from_f64(*value)).collect::<Vec<_>>();
    let [q, k, v, bias, d_o] = [&given.inputs.q, &given.inputs.k, &given.inputs.v, &given.inputs.bias, &given.d_o]
        .map(|values| halves(values));
    let forward = reference::forward(given.inputs.case(&problem), &given.inputs.q, &given.inputs.k, &given.inputs.v);
    let lse: Vec<f32> = forward.lse.iter().map(|lse| *lse as f32).collect();
    let o = halves(&forward.o);
    let slices = BackwardSlices::new(&q, &k, &v, &o, &lse, &d_o).with_bias(&bias);
    let found = pollster::block_on(attention.backward_in_f32(&problem, &slices)).expect("it runs").dbias;
    let expected = run_backward(attention, &problem.with_f32_gradients(), &given).dbias();
    let found: Vec<f64> = found.iter().map(|value| f64::from(*value)).collect();
    assert!(found == expected);
}

#[test]
fn without_a_bias_or_bindings_it_is_refused() {
    let capabilities = Capabilities::webgpu_defaults();
    let plain = AttentionProblem::new(shape()).with_bias_gradient();
    let reason = "its gradient is asked for, and the problem has no bias".to_owned();
    let refusal = InvalidProblem::ScoreMod { name: "bias", reason };
    assert_eq!(Plan::backward(&plain, &capabilities).build().map(|_| ()), Err(refusal.into()));
    // Q, K, V, dO, LSE and D, dBias, bias, tables and mask.
    let bits = KeyMask::Boolean(EntryLayout::packed_bits([1, 1, 70, 45]));
    let many = biased(AttentionProblem::new(shape()).with_score(ScoreMod::Softcap(2.0)), ALL, Element::F32);
    let many = many.with_key_mask(bits);
    let error = Plan::backward(&many, &capabilities).build().unwrap_err();
    assert!(matches!(error, Error::Unsupported { feature: "this many storage buffers", .. }), "{error}");
    assert!(Plan::forward(&many, &capabilities).build().is_ok());
    let plan =
        Plan::backward(&biased(AttentionProblem::new(shape()), ALL, Element::F32), &capabilities).build().unwrap();
    assert_eq!(plan.required_len(Operand::DBias), 2 * 4 * 70 * 45);
}
