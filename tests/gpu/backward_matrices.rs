//! Gradients on cooperative matrices, which take f16: f16 and bf16 with P and dS rounded to it, f32 in two parts. By the same
//! rule as the other kernels.

use wgpu_flash_attention::{Algorithm, AttentionLayout, AttentionProblem, AttentionShape, Element, reference};

use crate::support::{GradientInputs, check_gradients, gradient_inputs, run_backward, strided, with_matrices};

fn check(problem: &AttentionProblem, seed: u64) {
    let Some(library) = with_matrices() else { return };
    for &element in Element::ALL {
        let problem = problem.clone().with_element(element);
        let kernels = library.prepare_gradients(&problem).unwrap().plan().passes().to_vec();
        assert!(kernels.iter().any(|pass| pass.kernel.name() == "flash_backward_dkdv_cooperative"), "{kernels:?}");
        check_gradients(library, &problem, &gradient_inputs(&problem, seed));
    }
}

#[test]
fn every_mask_and_dropout() {
    let problem = AttentionProblem::new(AttentionShape::new(1, 3, 113, 40).with_num_heads_kv(1).with_seqlen_kv(203));
    check(&problem, 1);
    check(&problem.clone().with_causal(), 2);
    check(&problem.clone().with_causal_top_left(), 3);
    check(&problem.clone().with_window(Some(7), Some(3)), 4);
    check(&problem.clone().with_causal().with_dropout(0.3, 5).with_softmax_scale(-0.4), 5);
    check(&problem.clone().with_dropout(0.1, 9), 6);
    // Rows that see nothing.
    check(&AttentionProblem::new(AttentionShape::new(1, 2, 150, 40).with_seqlen_kv(40)).with_causal(), 7);
}

#[test]
fn every_width_and_layout() {
    // A software driver compiles wider ones for minutes.
    for (n, (head_dim, head_dim_v)) in [(1, 3), (31, 24), (16, 40)].into_iter().enumerate() {
        let shape = AttentionShape::new(1, 2, 70, head_dim).with_head_dim_v(head_dim_v);
        check(&AttentionProblem::new(shape).with_causal(), n as u64);
    }
    let shape = AttentionShape::new(2, 4, 45, 24).with_num_heads_kv(2);
    for layout in [AttentionLayout::bhsd(&shape), strided(&shape, true)] {
        check(&AttentionProblem::new(shape).with_layout(layout).with_causal(), 3);
    }
    // In f32 they are what is rounded otherwise.
    let Some(library) = with_matrices() else { return };
    let problem = AttentionProblem::new(shape).with_element(Element::F16);
    let given = gradient_inputs(&problem, 3);
    let in_f32 = run_backward(library, &problem.clone().with_f32_gradients(), &given).dk();
    let rounded = run_backward(library, &problem, &given).dk();
    assert!(in_f32.iter().map(|value| Element::F16.round(*value)).eq(rounded.iter().copied()) && in_f32 != rounded);
}

/// Matrix units round sums toward 0: a sum of many terms of one sign would drift away in one of them.
#[test]
fn long_sums_do_not_drift() {
    let Some(library) = with_matrices() else { return };
    let problem = AttentionProblem::new(AttentionShape::new(1, 1, 5_000, 16).with_seqlen_kv(40));
    let mut given = gradient_inputs(&problem, 2);
    for tensor in [&mut given.d_o, &mut given.inputs.q] {
        tensor.iter_mut().for_each(|value| *value = Element::F32.round(value.abs() + 1.0));
    }
    check_gradients(library, &problem, &given);
}

/// A gradient is as small or as large as the loss makes it, far outside what f16 holds with all of its bits.
#[test]
fn gradients_scale_with_d_o() {
    let Some(library) = with_matrices() else { return };
    let problem = AttentionProblem::new(AttentionShape::new(1, 2, 90, 32).with_seqlen_kv(130))
        .with_element(Element::F16)
        .with_causal();
    let in_f32 = problem.clone().with_f32_gradients();
    let given = gradient_inputs(&problem, 2);
    let scaled = |factor: f64| {
        let d_o = given.d_o.iter().map(|value| value * factor).collect();
        run_backward(library, &in_f32, &GradientInputs { d_o, ..given.clone() })
    };
    let plain = scaled(1.0);
    // Powers of two, so that dO itself is not rounded.
    for exponent in [-9, 11] {
        let factor = 2f64.powi(exponent);
        let found = scaled(factor);
        for (plain, found) in [(plain.dq(), found.dq()), (plain.dk(), found.dk()), (plain.dv(), found.dv())] {
            let max = plain.iter().fold(0.0, |max: f64, value| max.max(value.abs()));
            for (plain, found) in plain.iter().zip(found) {
                // dS is rounded to 11 bits in both runs, at scales that need not be exact powers of two.
                assert!((plain - found / factor).abs() <= max / 1024.0, "2^{exponent}: {found} for {plain}");
            }
        }
    }
    // Rows whose gradients grow along the walk, so that the scale must follow.
    let mut growing = given.clone();
    for (n, row) in growing.d_o.chunks_mut(32).enumerate() {
        let factor = 2f64.powi(n as i32 / 2 / 6 - 8);
        row.iter_mut().for_each(|value| *value *= factor);
    }
    check_gradients(library, &problem, &growing);
}

#[test]
fn a_nan_reaches_the_rows_and_keys_that_see_it() {
    const DIM: usize = 16;
    const SEQLEN: usize = 45;
    let Some(library) = with_matrices() else { return };
    let dense = AttentionProblem::new(AttentionShape::new(1, 1, SEQLEN as u32, DIM as u32));
    let with_nan = |values: &[f64]| -> Vec<usize> {
        (0..SEQLEN).filter(|row| values[row * DIM..][..DIM].iter().any(|value| value.is_nan())).collect()
    };
    let all = |condition: &dyn Fn(usize) -> bool| (0..SEQLEN).filter(|n| condition(*n)).collect::<Vec<_>>();
    let problems = [dense.clone().with_causal(), dense.clone().with_window(Some(4), Some(2)), dense];
    let of_all_elements =
        |problem: AttentionProblem| Element::ALL.iter().map(move |&element| problem.clone().with_element(element));
    for problem in problems.into_iter().flat_map(of_all_elements) {
        let sees = |row: usize, key: usize| problem.visible_keys(row as u32).contains(&(key as u32));
        let clean = gradient_inputs(&problem, 2);
        let places: [fn(&mut GradientInputs) -> &mut Vec<f64>; 2] =
            [|given| &mut given.inputs.q, |given| &mut given.d_o];
        for place in places {
            let mut given = clean.clone();
            place(&mut given)[20 * DIM + 3] = f64::NAN;
            let found = run_backward(library, &problem, &given);
            assert_eq!(with_nan(&found.dq()), [20], "{problem:?}");
            assert_eq!(with_nan(&found.dk()), all(&|key| sees(20, key)), "{problem:?}");
            assert_eq!(with_nan(&found.dv()), all(&|key| sees(20, key)), "{problem:?}");
        }
        let mut given = clean.clone();
        given.inputs.k[20 * DIM + 3] = f64::NAN;
        let found = run_backward(library, &problem, &given);
        assert_eq!(with_nan(&found.dq()), all(&|row| sees(row, 20)), "{problem:?}");
    }
}

#[test]
fn fifty_runs_are_identical() {
    let Some(library) = with_matrices() else { return };
    for element in [Element::F16, Element::F32] {
        let problem = AttentionProblem::new(AttentionShape::new(1, 2, 100, 32)).with_element(element).with_causal();
        let given = gradient_inputs(&problem, 9);
        let first = run_backward(library, &problem, &given);
        for _ in 0..49 {
            assert!(run_backward(library, &problem, &given) == first);
        }
    }
}

/// f32 and bf16 pass through f16 in units of their rows, so each row may be as large or as small as it likes, whatever
/// stands in the rows beside it.
#[test]
fn rows_of_every_magnitude() {
    const DIM: usize = 16;
    const SEQLEN: usize = 70;
    let Some(library) = with_matrices() else { return };
    // With keys that no row sees.
    let shape = AttentionShape::new(1, 1, SEQLEN as u32, DIM as u32).with_seqlen_kv(100);
    for element in [Element::F32, Element::Bf16] {
        let problem = AttentionProblem::new(shape).with_element(element).with_causal_top_left();
        let mut given = gradient_inputs(&problem, 4);
        // Key j gathers from the rows from j on, of which the first are the largest.
        let factor = |row: usize| 2f64.powi(30 - row as i32);
        for (row, d_o) in given.d_o.chunks_mut(DIM).enumerate() {
            d_o.iter_mut().for_each(|value| *value *= factor(row));
        }
        for unseen in [&mut given.inputs.k, &mut given.inputs.v] {
            for (n, value) in unseen[SEQLEN * DIM..].iter_mut().enumerate() {
                *value = element.round([1e30, -1e-30, 0.0][n / DIM % 3]);
            }
        }
        let run = |algorithm| run_backward(library, &problem.clone().with_algorithm(algorithm), &given);
        let (flash, standard) = (run(Algorithm::Flash), run(Algorithm::Standard));
        let wanted = reference::backward(
            &problem,
            &given.inputs.q,
            &given.inputs.k,
            &given.inputs.v,
            &given.d_o,
            given.d_lse.as_deref(),
        );
        for (name, flash, standard, wanted) in [
            ("dq", flash.dq(), standard.dq(), &wanted.dq),
            ("dk", flash.dk(), standard.dk(), &wanted.dk),
            ("dv", flash.dv(), standard.dv(), &wanted.dv),
        ] {
            let in_units = |values: &[f64]| -> Vec<f64> {
                values.iter().enumerate().map(|(n, value)| value / factor(n / DIM)).collect()
            };
            let wanted = in_units(wanted);
            let largest = wanted.iter().fold(0.0, |max: f64, value| max.max(value.abs()));
            let error = |found: Vec<f64>| {
                in_units(&found)
                    .iter()
                    .zip(&wanted)
                    .fold(0.0, |max: f64, (found, wanted)| max.max((found - wanted).abs()))
            };
            let (flash, standard) = (error(flash), error(standard));
            assert!(flash <= 3.0 * standard + 2e-5 * largest, "{element:?} {name}: {flash:e}, standard {standard:e}");
        }
    }
}

/// LSE may have a gradient where O has none, or hardly any: such a row must not take the precision of the rows beside it.
#[test]
fn rows_with_a_gradient_of_lse_alone() {
    let Some(library) = with_matrices() else { return };
    for &element in Element::ALL {
        for factor in [0.0, 2f64.powi(-20)] {
            let problem =
                AttentionProblem::new(AttentionShape::new(1, 1, 40, 8).with_seqlen_kv(50)).with_element(element);
            // An odd seed gives LSE a gradient.
            let mut given = gradient_inputs(&problem, 3);
            assert!(given.d_lse.is_some());
            given.d_o[3 * 8..4 * 8].iter_mut().for_each(|value| *value = element.round(*value * factor));
            check_gradients(library, &problem, &given);
        }
    }
}
