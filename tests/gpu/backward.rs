//! The backward pass over shapes, element types, layouts, masks and device abilities.

use half::{bf16, f16};
use wgpu_flash_attention::{
    Algorithm, AttentionLayout, AttentionProblem, AttentionShape, BackwardSlices, Call, Element, ElementType, reference,
};

use crate::support::{
    Variant, check_gradients, gradient_inputs, library, limited, problem_of, run_backward, run_backward_calls,
    run_backward_dispatch_by_dispatch, strided,
};

fn check(variant: Variant, problem: &AttentionProblem, seed: u64) {
    check_gradients(library(variant), problem, &gradient_inputs(problem, seed));
}

#[test]
fn grouped_heads_at_widths_40_and_128() {
    for &element in Element::ALL {
        for head_dim in [40, 128] {
            let shape = AttentionShape::new(2, 6, 113, head_dim).with_num_heads_kv(2).with_seqlen_kv(203);
            let problem = AttentionProblem::new(shape).with_element(element);
            check(Variant::Full, &problem, 1);
            check(Variant::Full, &problem.clone().with_causal().with_window(Some(90), None).with_dropout(0.2, 5), 2);
        }
    }
}

#[test]
fn every_head_dim() {
    let widths = [(1, 1), (8, 3), (31, 31), (59, 64), (64, 1), (80, 80), (111, 96), (192, 128), (256, 256), (255, 2)];
    for (n, (head_dim, head_dim_v)) in widths.into_iter().enumerate() {
        // A software driver compiles for seconds per width and element.
        let element = Element::ALL[n % 3];
        let shape = AttentionShape::new(1, 2, 37 + n as u32, head_dim)
            .with_seqlen_kv(50 - n as u32)
            .with_head_dim_v(head_dim_v);
        check(Variant::Full, &AttentionProblem::new(shape).with_element(element), n as u64);
    }
}

#[test]
fn every_remainder_modulo_the_tile_sides() {
    for variant in Variant::TILES {
        for remainder in (0..64).step_by(if variant == Variant::Full { 1 } else { 5 }) {
            let (seqlen_q, seqlen_kv) = (64 - remainder, 32 + (remainder * 13 + 1) % 32);
            let shape = AttentionShape::new(1, 1, seqlen_q, 32).with_seqlen_kv(seqlen_kv);
            check(variant, &AttentionProblem::new(shape), u64::from(remainder));
        }
    }
}

#[test]
fn every_mask() {
    for (variant, lengths) in [
        (Variant::Full, &[(1, 1), (1, 300), (113, 203), (203, 113)][..]),
        (Variant::SmallTiles, &[(45, 51)]),
        (Variant::LargeTiles, &[(113, 203), (203, 113)]),
    ] {
        for &(seqlen_q, seqlen_kv) in lengths {
            let problem = AttentionProblem::new(AttentionShape::new(1, 2, seqlen_q, 32).with_seqlen_kv(seqlen_kv));
            check(variant, &problem.clone().with_causal(), 1);
            check(variant, &problem.clone().with_causal_top_left(), 2);
            for (left, right) in [(Some(0), Some(0)), (Some(30), Some(17)), (None, Some(8)), (Some(64), None)] {
                check(variant, &problem.clone().with_window(left, right), 3);
                check(variant, &problem.clone().with_causal_top_left().with_window(left, right), 4);
            }
        }
    }
}

#[test]
fn rows_that_see_nothing_have_gradients_of_zero() {
    for problem in [
        AttentionProblem::new(AttentionShape::new(1, 2, 90, 32).with_seqlen_kv(30)).with_causal(),
        AttentionProblem::new(AttentionShape::new(1, 2, 90, 32).with_seqlen_kv(30))
            .with_causal_top_left()
            .with_window(Some(10), None),
        AttentionProblem::new(AttentionShape::new(1, 2, 9, 32).with_seqlen_kv(0)),
    ] {
        let gradients = check_gradients(library(Variant::Full), &problem, &gradient_inputs(&problem, 1));
        for (row, dq) in gradients.dq().chunks(2 * 32).enumerate() {
            let is_empty = problem.visible_keys(row as u32).is_empty();
            assert_eq!(dq.iter().all(|dq| *dq == 0.0), is_empty, "row {row}");
        }
    }
    // Keys that no row sees, and no rows at all.
    let unseen = AttentionProblem::new(AttentionShape::new(1, 2, 10, 32).with_seqlen_kv(90)).with_causal_top_left();
    let no_rows = AttentionProblem::new(AttentionShape::new(1, 2, 0, 32).with_seqlen_kv(70));
    for (problem, first) in [(unseen, 10), (no_rows, 0)] {
        for algorithm in [Algorithm::Flash, Algorithm::Standard] {
            let problem = problem.clone().with_algorithm(algorithm);
            let gradients = run_backward(library(Variant::Full), &problem, &gradient_inputs(&problem, 1));
            for gradient in [gradients.dk(), gradients.dv()] {
                assert!(gradient.iter().skip(first * 64).all(|value| *value == 0.0), "{problem:?}");
            }
        }
    }
}

#[test]
fn every_layout_and_element() {
    for (variant, elements) in [(Variant::Full, Element::ALL), (Variant::NoShaderF16, &[Element::F16])] {
        for &element in elements {
            // 7 puts every second row of a contiguous tensor on an odd element.
            for head_dim in [7, 32] {
                let shape = AttentionShape::new(3, 4, 21, head_dim).with_num_heads_kv(2);
                let plain = AttentionProblem::new(shape).with_element(element).with_causal();
                for problem in [
                    plain.clone(),
                    plain.clone().with_layout(AttentionLayout::bhsd(&shape)),
                    plain.clone().with_layout(AttentionLayout::packed_qkv(&shape)),
                    plain.clone().with_layout(strided(&shape, false)),
                    plain.clone().with_layout(strided(&shape, true)),
                    plain.clone().with_gradient_layout(AttentionLayout::bhsd(&shape)),
                    plain.clone().with_gradient_layout(strided(&shape, true)),
                    plain.with_f32_gradients(),
                ] {
                    check(variant, &problem, 5);
                }
            }
        }
    }
}

#[test]
fn gradients_in_f32_have_the_precision_of_f32() {
    for element in [Element::F16, Element::Bf16] {
        let problem = AttentionProblem::new(AttentionShape::new(1, 2, 50, 32).with_seqlen_kv(70)).with_element(element);
        let given = gradient_inputs(&problem, 2);
        let whole = run_backward(library(Variant::Full), &problem.clone().with_f32_gradients(), &given);
        let rounded = run_backward(library(Variant::Full), &problem, &given);
        let gradients = [(whole.dq(), rounded.dq()), (whole.dk(), rounded.dk()), (whole.dv(), rounded.dv())];
        for ((whole, rounded), name) in gradients.into_iter().zip(["dq", "dk", "dv"]) {
            for (whole, rounded) in whole.iter().zip(&rounded) {
                assert_eq!(element.round(*whole), *rounded, "{name} in {element:?}, from {whole}");
            }
            assert!(whole.iter().any(|value| element.round(*value) != *value));
        }
    }
}

#[test]
fn every_device_ability() {
    for variant in Variant::ALL {
        let every_path = matches!(variant, Variant::Full | Variant::WebGpuDefaults);
        for element in Element::ALL.iter().copied().filter(|element| every_path || *element != Element::Bf16) {
            for (head_dim, head_dim_v) in [(40, 24)].into_iter().chain(every_path.then_some((31, 20))) {
                let shape = AttentionShape::new(1, 4, 67, head_dim)
                    .with_seqlen_kv(45)
                    .with_num_heads_kv(2)
                    .with_head_dim_v(head_dim_v);
                let problem = AttentionProblem::new(shape).with_element(element);
                check(variant, &problem.with_window(Some(20), Some(3)).with_dropout(0.2, 77), 9);
            }
        }
    }
}

#[test]
fn wide_heads_fit_a_device_with_default_limits() {
    let problem = AttentionProblem::new(AttentionShape::new(1, 1, 40, 256)).with_element(Element::F16).with_causal();
    check(Variant::WebGpuDefaults, &problem, 8);
    let wide = AttentionProblem::new(AttentionShape::new(1, 1, 40, 256)).with_causal().with_dropout(0.1, 3);
    check(Variant::WebGpuDefaults, &wide, 8);
}

#[test]
fn any_scale() {
    for scale in [0.0, 1.0, -0.7, 1e-30] {
        check(
            Variant::Full,
            &AttentionProblem::new(AttentionShape::new(1, 2, 33, 32)).with_softmax_scale(scale).with_causal(),
            2,
        );
    }
}

#[test]
fn dropout_is_that_of_the_forward_pass() {
    // With V of one column of ones and dO of ones, dV_j is the sum of what dropout left of P in column j, entry by entry.
    let shape = AttentionShape::new(1, 1, 1, 32).with_seqlen_kv(200).with_head_dim_v(1);
    let problem = AttentionProblem::new(shape).with_softmax_scale(0.0).with_dropout(0.4, 0x1234_5678_9abc_def0);
    let mut given = gradient_inputs(&problem, 2);
    given.d_o.fill(1.0);
    for variant in Variant::TILES {
        for algorithm in [Algorithm::Flash, Algorithm::Standard] {
            let dv = run_backward(library(variant), &problem.clone().with_algorithm(algorithm), &given).dv();
            for (key, dv) in dv.into_iter().enumerate() {
                assert_eq!(dv != 0.0, reference::keeps(&problem, 0, 0, 0, key as u32), "key {key}, {variant:?}");
            }
        }
    }
}

#[test]
fn bounded_or_divided_work_gives_the_same_bits() {
    // 2 sequences of 4 heads over 2 KV heads; one head of Q is 6,400 bytes in f32.
    let shape = AttentionShape::new(2, 4, 100, 16).with_num_heads_kv(2);
    for element in [Element::F32, Element::F16] {
        let problem = AttentionProblem::new(shape).with_element(element).with_causal().with_dropout(0.2, 9);
        let problem = problem.with_layout(AttentionLayout::bhsd(&shape));
        let given = gradient_inputs(&problem, 1);
        let whole = run_backward(library(Variant::Full), &problem, &given);
        let dispatches = |problem: &AttentionProblem| {
            library(Variant::Full).prepare_gradients(problem).unwrap().num_dispatches(&Call::default()).unwrap()
        };
        assert_eq!(dispatches(&problem), 3);
        let mut before = 3;
        for max_flops in [problem.backward_flops() / 2, 1] {
            let bounded = problem.clone().with_bounded_work(max_flops);
            assert!(dispatches(&bounded) > before, "{max_flops}: {} dispatches", dispatches(&bounded));
            before = dispatches(&bounded);
            assert!(run_backward(library(Variant::Full), &bounded, &given) == whole);
            assert!(run_backward_dispatch_by_dispatch(library(Variant::Full), &bounded, &given) == whole);
        }
        for device in [
            limited(|capabilities| capabilities.max_workgroups_per_dimension = 1),
            limited(|capabilities| capabilities.max_binding = 14 << 10),
        ] {
            assert!(run_backward(&device, &problem, &given) == whole, "{element:?}");
        }
    }
}

#[test]
fn rows_that_share_words_survive_a_split() {
    // 7 halves to a row: the pieces of a split meet within 4-byte words.
    let shape = AttentionShape::new(2, 4, 75, 7).with_num_heads_kv(2);
    for element in [Element::F16, Element::Bf16] {
        for layout in [AttentionLayout::bshd(&shape), AttentionLayout::bhsd(&shape)] {
            let problem = AttentionProblem::new(shape).with_element(element).with_layout(layout);
            let given = gradient_inputs(&problem, 1);
            let whole = run_backward(library(Variant::Full), &problem, &given);
            let divided = limited(|capabilities| capabilities.max_workgroups_per_dimension = 1);
            assert!(run_backward(&divided, &problem, &given) == whole, "{element:?}");
        }
    }
}

#[test]
fn shorter_calls_and_other_seeds() {
    let problem =
        AttentionProblem::new(AttentionShape::new(2, 2, 60, 16).with_seqlen_kv(70)).with_causal().with_dropout(0.3, 1);
    let given = gradient_inputs(&problem, 1);
    let calls = [Call::default(), Call::new().with_philox_seed(77).with_philox_offset(3), Call::new().with_seqlen_q(0)];
    let found = run_backward_calls(library(Variant::Full), &problem, &given, &calls);
    for (call, found) in calls[..2].iter().zip(&found) {
        let alone = run_backward(library(Variant::Full), &problem_of(&problem, call), &given);
        assert!(*found == alone, "{call:?}");
    }
    assert!(found[2].dq().is_empty() && found[2].dk().iter().chain(&found[2].dv()).all(|value| *value == 0.0));
}

/// The call that takes slices, against the same problem through buffers.
fn slices<T: ElementType + PartialEq>() {
    let shape = AttentionShape::new(2, 4, 13, 7).with_num_heads_kv(2).with_seqlen_kv(9).with_head_dim_v(5);
    let problem = AttentionProblem::new(shape).with_element(T::ELEMENT).with_causal();
    let given = gradient_inputs(&problem, 9);
    let typed = |values: &[f64]| -> Vec<T> { values.iter().map(|value| T::from_f64(*value)).collect() };
    let library = library(Variant::Full);
    let inputs = &given.inputs;
    let forward = reference::forward(&problem, &inputs.q, &inputs.k, &inputs.v);
    let [q, k, v, o, d_o] = [&inputs.q, &inputs.k, &inputs.v, &forward.o, &given.d_o].map(|values| typed(values));
    let lse: Vec<f32> = forward.lse.iter().map(|lse| *lse as f32).collect();
    let d_lse: Option<Vec<f32>> = given.d_lse.as_ref().map(|d_lse| d_lse.iter().map(|d_lse| *d_lse as f32).collect());
    let slices = {
        let mut slices = BackwardSlices::new(&q, &k, &v, &o, &lse, &d_o);
        slices.d_lse = d_lse.as_deref();
        slices
    };
    let exact = |values: Vec<T>| values.into_iter().map(|value| value.to_f64()).collect::<Vec<_>>();
    let found = pollster::block_on(library.backward(&problem, &slices)).unwrap();
    let expected = run_backward(library, &problem, &given);
    assert_eq!((exact(found.dq), exact(found.dk)), (expected.dq(), expected.dk()));
    assert_eq!(exact(found.dv), expected.dv());
    let found = pollster::block_on(library.backward_in_f32(&problem, &slices)).unwrap();
    let expected = run_backward(library, &problem.with_f32_gradients(), &given);
    assert_eq!(found.dk.into_iter().map(f64::from).collect::<Vec<_>>(), expected.dk());
}

#[test]
fn slices_go_in_and_out() {
    slices::<f32>();
    slices::<f16>();
    slices::<bf16>();
}
