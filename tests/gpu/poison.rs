//! A NaN reaches the rows that see it and nothing else. Guards and gaps are poisoned in every other test too.

use wgpu_flash_attention::{AttentionProblem, AttentionShape, Element};

use crate::support::{Inputs, Output, Variant, check, inputs, library, strided};

const SEQLEN: usize = 45;
const DIM: usize = 16;

/// Contiguous `[1, SEQLEN, 1, DIM]`: row r starts at r · DIM.
fn problems() -> [AttentionProblem; 4] {
    let dense = AttentionProblem::new(AttentionShape::new(1, 1, SEQLEN as u32, DIM as u32));
    [
        dense.clone(),
        dense.clone().with_causal(),
        dense.clone().with_window(Some(4), Some(2)),
        dense.with_window(Some(4), Some(2)).with_element(Element::F16),
    ]
}

fn with_nan(inputs: &Inputs, change: impl FnOnce(&mut Inputs)) -> Inputs {
    let mut inputs = inputs.clone();
    change(&mut inputs);
    inputs
}

/// `check` holds every NaN of both algorithms to the oracle's; this names the rows, so that the oracle is held too.
fn rows_with_nan(output: &Output) -> Vec<usize> {
    let o = output.o();
    (0..SEQLEN).filter(|row| o[row * DIM..][..DIM].iter().any(|o| o.is_nan())).collect()
}

fn rows_that_see(problem: &AttentionProblem, key: usize) -> Vec<usize> {
    (0..SEQLEN).filter(|row| problem.visible_keys(*row as u32).contains(&(key as u32))).collect()
}

#[test]
fn a_nan_in_q_reaches_its_row() {
    for variant in Variant::TILES {
        for problem in problems() {
            let clean = inputs(&problem, 1);
            for row in [0, 17, SEQLEN - 1] {
                let inputs = with_nan(&clean, |inputs| inputs.q[row * DIM + 3] = f64::NAN);
                let output = check(library(variant), &problem, &inputs);
                assert_eq!(rows_with_nan(&output), [row]);
                assert!(output.lse()[row].is_nan());
            }
        }
    }
}

#[test]
fn a_nan_in_k_reaches_the_rows_that_see_it() {
    for variant in Variant::TILES {
        for problem in problems() {
            let clean = inputs(&problem, 1);
            for key in [0, 20, SEQLEN - 1] {
                let inputs = with_nan(&clean, |inputs| inputs.k[key * DIM + 3] = f64::NAN);
                let output = check(library(variant), &problem, &inputs);
                assert_eq!(rows_with_nan(&output), rows_that_see(&problem, key), "{problem:?}");
            }
        }
    }
}

#[test]
fn a_nan_in_v_reaches_one_dim_of_the_rows_that_see_it() {
    for variant in Variant::TILES {
        for problem in problems() {
            let clean = inputs(&problem, 1);
            for key in [0, 20, SEQLEN - 1] {
                let inputs = with_nan(&clean, |inputs| inputs.v[key * DIM + 3] = f64::NAN);
                let output = check(library(variant), &problem, &inputs);
                assert_eq!(rows_with_nan(&output), rows_that_see(&problem, key), "{problem:?}");
                let other_dims = output.o().into_iter().enumerate().filter(|(n, _)| n % DIM != 3);
                assert!(other_dims.into_iter().all(|(_, o)| !o.is_nan()));
                assert!(output.lse().iter().all(|lse| lse.is_finite()));
            }
        }
    }
}

#[test]
fn one_head_and_batch_do_not_poison_another() {
    let problem = AttentionProblem::new(AttentionShape::new(2, 2, 20, 16)).with_causal();
    let clean = inputs(&problem, 1);
    // Batch 1, row 10, head 0.
    let at = ((20 + 10) * 2) * 16;
    let poison: [fn(&mut Inputs) -> &mut Vec<f64>; 3] = [|i| &mut i.q, |i| &mut i.k, |i| &mut i.v];
    for tensor in poison {
        let inputs = with_nan(&clean, |inputs| tensor(inputs)[at] = f64::NAN);
        let o = check(library(Variant::Full), &problem, &inputs).o();
        for (n, row) in o.chunks(16).enumerate() {
            let (head, row_number, batch) = (n % 2, n / 2 % 20, n / 40);
            let may = batch == 1 && head == 0 && row_number >= 10;
            assert!(may || row.iter().all(|o| !o.is_nan()), "batch {batch}, head {head}, row {row_number}");
        }
    }
}

#[test]
fn gaps_of_nan_do_not_leak_at_any_width() {
    // Widths that are no multiple of 4 read past the row into the gap if anything does.
    for &element in Element::ALL {
        for (head_dim, head_dim_v) in [(1, 2), (2, 3), (5, 6), (33, 31)] {
            for odd in [false, true] {
                let shape = AttentionShape::new(2, 2, 18, head_dim).with_seqlen_kv(21).with_head_dim_v(head_dim_v);
                let layout = strided(&shape, odd);
                let problem = AttentionProblem::new(shape).with_element(element).with_layout(layout).with_causal();
                let output = check(library(Variant::Full), &problem, &inputs(&problem, 1));
                assert!(output.lse().iter().all(|lse| lse.is_finite()));
            }
        }
    }
}

#[test]
fn huge_values_stay_finite() {
    // The largest f32 in V, seen by no row but its own.
    let problem =
        AttentionProblem::new(AttentionShape::new(1, 1, SEQLEN as u32, DIM as u32)).with_window(Some(0), Some(0));
    let mut inputs = inputs(&problem, 1);
    inputs.v[20 * DIM] = f64::from(f32::MAX);
    let o = check(library(Variant::Full), &problem, &inputs).o();
    assert_eq!(o[20 * DIM], f64::from(f32::MAX));
}
