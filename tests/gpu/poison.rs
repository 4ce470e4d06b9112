//! A NaN reaches the rows that see it and nothing else. Guards and gaps are poisoned in every other test too.

use wgpu_flash_attention::{AttentionProblem, AttentionShape, Element, EntryLayout, ScoreMod};

use crate::support::{
    Inputs, Output, Variant, check, check_gradients, gradient_inputs, inputs, library, strided, with_matrices,
};

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

/// A key that a row sees counts even if its P is 0: by its score, a bias of −∞, or dropout. Where the edges of tiles lie makes
/// no difference.
#[test]
fn what_is_seen_counts_even_if_its_p_is_0() {
    let square = |rows: u32, keys: u32| AttentionShape::new(1, 2, rows, 8).with_num_heads_kv(1).with_seqlen_kv(keys);
    for (rows, keys) in [(1, 50), (1, 64), (3, 50), (40, 40), (70, 64)] {
        let plain = AttentionProblem::new(square(rows, keys));
        let bias = ScoreMod::Bias { layout: EntryLayout::contiguous([1, 1, 1, keys]), element: Element::F32 };
        for problem in [
            plain.clone(),
            plain.clone().with_causal_top_left(),
            plain.clone().with_dropout(0.6, 3),
            plain.clone().with_score(bias),
        ] {
            for fault in [f64::NAN, f64::INFINITY] {
                let mut given = inputs(&problem, 7);
                given.q.iter_mut().for_each(|q| *q = q.abs() + 0.1);
                match given.bias.first_mut() {
                    Some(bias) => *bias = f64::NEG_INFINITY,
                    None if problem.dropout.is_none() => given.k[..8].fill(-1000.0),
                    None => {}
                }
                given.v[3] = fault;
                // f32 on matrices may give NaN for an infinity.
                let matrices = with_matrices().filter(|_| fault.is_nan());
                for library in [Some(library(Variant::Full)), matrices].into_iter().flatten() {
                    let output = check(library, &problem, &given);
                    let o = output.o();
                    let of_dim = |dim: usize| o.chunks(8).filter(|row| row[dim].is_finite()).count();
                    assert_eq!((of_dim(3), of_dim(4)), (0, 2 * rows as usize), "{problem:?}");
                }
            }
        }
    }
}

/// Dropout drops NaN from gradients, and a row with NaN is NaN even if all that it sees is dropped.
#[test]
fn nan_and_dropout() {
    for ((rows, keys), dropout_p) in [((12, 1), 0.6), ((20, 20), 0.6), ((12, 1), 0.0), ((20, 20), 0.0)] {
        let shape = AttentionShape::new(1, 2, rows, 8).with_seqlen_kv(keys);
        let problem = AttentionProblem::new(shape).with_dropout(dropout_p, 3);
        for library in [Some(library(Variant::Full)), with_matrices()].into_iter().flatten() {
            let mut given = gradient_inputs(&problem, 9);
            given.inputs.k[3] = f64::NAN;
            if keys > 1 {
                // All scores of a head are NaN.
                given.inputs.k.chunks_mut(16).for_each(|heads| heads[0] = f64::NAN);
            }
            let output = check(library, &problem, &given.inputs);
            assert!(output.o()[..8].iter().all(|o| o.is_nan()));
            check_gradients(library, &problem, &given);
        }
    }
}
