//! Identities of attention that hold whatever the numbers are.

use wgpu_flash_attention::{AttentionProblem, AttentionShape, Element, reference};

use crate::support::{Inputs, Random, Variant, check, inputs, library, limited, run};

/// A bound on how far two right answers of one f32 problem with |O| near `max` lie apart.
fn rounding(max: f64) -> f64 {
    4e-6 * max
}

fn max_of(values: &[f64]) -> f64 {
    values.iter().fold(0.0, |max, value| max.max(value.abs()))
}

#[test]
fn the_order_of_keys_does_not_matter() {
    let problem = AttentionProblem::new(AttentionShape::new(1, 1, 20, 16).with_seqlen_kv(75));
    let forth = inputs(&problem, 1);
    let mut order: Vec<usize> = (0..75).collect();
    let mut random = Random(2);
    for n in (1..order.len()).rev() {
        order.swap(n, (random.word() % (n as u64 + 1)) as usize);
    }
    let permuted = |values: &[f64]| order.iter().flat_map(|key| &values[key * 16..][..16]).copied().collect();
    let back = Inputs { k: permuted(&forth.k), v: permuted(&forth.v), ..forth.clone() };
    let [forth, back] = [forth, back].map(|inputs| check(library(Variant::Full), &problem, &inputs));
    let max = max_of(&forth.o());
    for (forth, back) in forth.o().into_iter().zip(back.o()) {
        assert!((forth - back).abs() <= rounding(max), "{forth} and {back}");
    }
}

#[test]
fn constant_values_come_out_unchanged() {
    for &element in Element::ALL {
        let problem = AttentionProblem::new(AttentionShape::new(2, 2, 40, 16).with_seqlen_kv(75))
            .with_element(element)
            .with_causal();
        let mut inputs = inputs(&problem, 1);
        inputs.v.fill(1.5);
        let o = check(library(Variant::Full), &problem, &inputs).o();
        assert!(o.iter().all(|o| (o - 1.5).abs() <= rounding(1.5)), "{element:?}");
    }
}

#[test]
fn grouped_heads_equal_repeated_heads() {
    for &element in Element::ALL {
        let shape = AttentionShape::new(2, 6, 35, 16).with_seqlen_kv(50).with_num_heads_kv(2);
        let grouped = AttentionProblem::new(shape).with_element(element).with_causal();
        let repeated = AttentionProblem::new(shape.with_num_heads_kv(6)).with_element(element).with_causal();
        let few = inputs(&grouped, 1);
        let repeat = |values: &[f64]| -> Vec<f64> { values.chunks(16).flat_map(|head| head.repeat(3)).collect() };
        let many = Inputs { k: repeat(&few.k), v: repeat(&few.v), ..few.clone() };
        let grouped = run(library(Variant::Full), &grouped, &few);
        let repeated = run(library(Variant::Full), &repeated, &many);
        assert!(grouped == repeated, "{element:?}: bits differ");
    }
}

#[test]
fn parts_merge_into_the_whole() {
    let (seqlen_kv, cut) = (75, 31);
    let whole = AttentionProblem::new(AttentionShape::new(1, 1, 20, 16).with_seqlen_kv(seqlen_kv));
    let inputs = inputs(&whole, 1);
    let part = |from: u32, to: u32| {
        let problem = AttentionProblem::new(AttentionShape { seqlen_kv: to - from, ..whole.shape });
        let cut = |values: &[f64]| values[from as usize * 16..to as usize * 16].to_vec();
        run(library(Variant::Full), &problem, &Inputs { k: cut(&inputs.k), v: cut(&inputs.v), ..inputs.clone() })
    };
    let parts = [part(0, cut), part(cut, seqlen_kv)].map(|part| (part.o(), part.lse()));
    let whole = check(library(Variant::Full), &whole, &inputs);
    let (o, lse, max) = (whole.o(), whole.lse(), max_of(&whole.o()));
    for row in 0..20 {
        let merged_lse = parts.iter().map(|(_, lse)| lse[row].exp()).sum::<f64>().ln();
        assert!((merged_lse - lse[row]).abs() <= 1e-5 * lse[row].abs().max(1.0));
        for (dim, found) in o.iter().enumerate().skip(row * 16).take(16) {
            let merged: f64 = parts.iter().map(|(o, lse)| (lse[row] - merged_lse).exp() * o[dim]).sum();
            assert!((merged - found).abs() <= rounding(max), "{merged} and {found}");
        }
    }
}

#[test]
fn a_window_of_one_key_copies_its_value() {
    let problem = AttentionProblem::new(AttentionShape::new(1, 2, 70, 16)).with_window(Some(0), Some(0));
    let inputs = inputs(&problem, 1);
    // On matrices f32 passes in two parts of f16, together 23 bits.
    let portable = limited(|capabilities| capabilities.matrix_side = None);
    assert_eq!(check(&portable, &problem, &inputs).o(), inputs.v);
    for (o, v) in check(library(Variant::Full), &problem, &inputs).o().iter().zip(&inputs.v) {
        assert!((o - v).abs() <= v.abs() * 2f64.powi(-22), "{o}, not {v}");
    }
}

#[test]
fn equal_scores_average_the_values() {
    let problem = AttentionProblem::new(AttentionShape::new(1, 1, 3, 16).with_seqlen_kv(64));
    let mut inputs = inputs(&problem, 1);
    inputs.q.fill(0.0);
    let output = check(library(Variant::Full), &problem, &inputs);
    assert!(output.lse().iter().all(|lse| (lse - 64f64.ln()).abs() < 1e-6));
    let (row, _) = reference::forward_row(&problem, &inputs.q, &inputs.k, &inputs.v, 0, 0, 0);
    let mean = inputs.v.chunks(16).map(|v| v[5]).sum::<f64>() / 64.0;
    assert!((row[5] - mean).abs() < 1e-14 && (output.o()[5] - mean).abs() < 1e-6);
}
