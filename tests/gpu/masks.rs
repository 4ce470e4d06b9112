//! Causal and window masks, rows that see nothing, and empty tensors.

use wgpu_flash_attention::{Algorithm, Alignment, AttentionProblem, AttentionShape, Element, Mask};

use crate::support::{Variant, check, inputs, library, run};

const LENGTHS: [(u32, u32); 7] = [(1, 1), (1, 40), (40, 1), (33, 33), (70, 45), (45, 70), (64, 128)];

fn masks() -> Vec<Mask> {
    let windows = [
        (None, None),
        (None, Some(0)),
        (Some(0), Some(0)),
        (Some(3), Some(5)),
        (None, Some(2)),
        (Some(7), None),
        (Some(7), Some(0)),
        (Some(40), Some(40)),
        (Some(1000), Some(1000)),
        (Some(u32::MAX), Some(u32::MAX)),
        (Some(u32::MAX), Some(0)),
        (Some(0), Some(u32::MAX)),
    ];
    let of = |alignment| windows.map(|(window_left, window_right)| Mask { alignment, window_left, window_right });
    [of(Alignment::BottomRight), of(Alignment::TopLeft)].concat()
}

#[test]
fn every_mask_at_every_length() {
    for mask in masks() {
        for (n, (seqlen_q, seqlen_kv)) in LENGTHS.into_iter().enumerate() {
            let mut problem = AttentionProblem::new(AttentionShape::new(1, 1, seqlen_q, 16).with_seqlen_kv(seqlen_kv));
            problem.mask = mask;
            check(library(Variant::Full), &problem, &inputs(&problem, n as u64));
        }
    }
}

#[test]
fn every_mask_on_other_tiles_and_elements() {
    for (variant, element) in [
        (Variant::SmallTiles, Element::F32),
        (Variant::LargeTiles, Element::F32),
        (Variant::WebGpuDefaults, Element::F16),
    ] {
        for mask in masks() {
            let mut problem =
                AttentionProblem::new(AttentionShape::new(2, 2, 70, 16).with_seqlen_kv(45)).with_element(element);
            problem.mask = mask;
            check(library(variant), &problem, &inputs(&problem, 1));
        }
    }
}

#[test]
fn a_mask_that_hides_nothing_changes_no_answer() {
    let dense = AttentionProblem::new(AttentionShape::new(1, 2, 40, 16).with_seqlen_kv(50));
    let inputs = inputs(&dense, 2);
    let all = dense.clone().with_window(Some(u32::MAX), Some(u32::MAX));
    for algorithm in [Algorithm::Flash, Algorithm::Standard] {
        let [dense, all] = [&dense, &all]
            .map(|problem| run(library(Variant::Full), &problem.clone().with_algorithm(algorithm), &inputs));
        for (dense, all) in dense.o().iter().zip(all.o()).chain(dense.lse().iter().zip(all.lse())) {
            assert!((dense - all).abs() <= 1e-6 * dense.abs().max(1.0), "{algorithm:?}: {dense} and {all}");
        }
    }
}

#[test]
fn rows_that_see_nothing_are_zero() {
    for &element in Element::ALL {
        // The first 25 rows of each head lie before the first key: whole tiles, and part of one.
        let problem = AttentionProblem::new(AttentionShape::new(2, 2, 45, 16).with_seqlen_kv(20))
            .with_element(element)
            .with_causal();
        let output = check(library(Variant::Full), &problem, &inputs(&problem, 3));
        let lse = output.lse();
        for head in lse.chunks(45) {
            assert!(head[..25].iter().all(|lse| *lse == f64::NEG_INFINITY));
            assert!(head[25..].iter().all(|lse| lse.is_finite()));
        }
        for (n, o) in output.o().chunks(2 * 16).enumerate() {
            assert!(n % 45 >= 25 || o.iter().all(|o| *o == 0.0), "row {}", n % 45);
        }
    }
}

#[test]
fn windows_past_the_last_key_leave_rows_empty() {
    // Top-left with more rows than keys: late rows look only behind the end.
    let shape = AttentionShape::new(1, 1, 70, 16).with_seqlen_kv(9);
    let problem = AttentionProblem::new(shape).with_causal_top_left().with_window(Some(4), None);
    let output = check(library(Variant::Full), &problem, &inputs(&problem, 3));
    assert!(output.lse()[13..].iter().all(|lse| *lse == f64::NEG_INFINITY));
    assert!(output.lse()[..13].iter().all(|lse| lse.is_finite()));
}

#[test]
fn no_keys_at_all() {
    for &element in Element::ALL {
        for problem in [
            AttentionProblem::new(AttentionShape::new(2, 2, 19, 16).with_seqlen_kv(0)),
            AttentionProblem::new(AttentionShape::new(2, 2, 19, 16).with_seqlen_kv(0))
                .with_causal()
                .with_dropout(0.5, 1),
        ] {
            let problem = problem.with_element(element);
            let output = check(library(Variant::Full), &problem, &inputs(&problem, 3));
            assert_eq!(output.o(), [0.0; 2 * 2 * 19 * 16]);
            assert_eq!(output.lse(), [f64::NEG_INFINITY; 2 * 2 * 19]);
        }
    }
}

#[test]
fn empty_outputs_are_a_no_op() {
    let shape = AttentionShape::new(2, 2, 8, 16);
    let no_heads = AttentionShape { num_heads: 0, num_heads_kv: 0, ..shape };
    for shape in [AttentionShape { batch: 0, ..shape }, AttentionShape { seqlen_q: 0, ..shape }, no_heads] {
        for element in [Element::F32, Element::F16] {
            let problem = AttentionProblem::new(shape).with_element(element).with_causal();
            let output = check(library(Variant::Full), &problem, &inputs(&problem, 3));
            assert!(output.o().is_empty() && output.lse().is_empty());
            let nothing: [f32; 0] = [];
            if element == Element::F32 {
                let forward = library(Variant::Full).forward(&problem, &nothing, &[0.0; 512], &[0.0; 512]);
                assert!(pollster::block_on(forward).unwrap().o.is_empty());
            }
        }
    }
}
