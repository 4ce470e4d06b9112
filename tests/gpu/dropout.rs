//! The dropout mask, entry by entry: every kernel must drop exactly what the oracle drops.

use wgpu_flash_attention::{Algorithm, AttentionProblem, AttentionShape, Dropout, Element, reference};

use crate::support::{Inputs, Variant, check, inputs, library, run};

const WIDTH: u32 = 64;

/// Which keys each row kept, as `[batch, row, head, key]`. All scores are equal, and V holds unit vectors for one
/// window of keys at a time, so an entry of O is not 0 exactly where its key was kept.
fn kept_by_the_kernel(variant: Variant, problem: &AttentionProblem) -> Vec<bool> {
    let shape = problem.shape;
    let keys = shape.seqlen_kv as usize;
    let rows = (shape.batch * shape.seqlen_q * shape.num_heads) as usize;
    let mut kept = vec![false; rows * keys];
    for first in (0..shape.seqlen_kv).step_by(WIDTH as usize) {
        let rows_of_v = (0..shape.batch * shape.seqlen_kv * shape.num_heads_kv).map(|n| n / shape.num_heads_kv);
        let v = rows_of_v.flat_map(|row| {
            let key = row % shape.seqlen_kv;
            (0..WIDTH).map(move |dim| f64::from(u8::from(key == first + dim)))
        });
        let inputs = Inputs {
            q: vec![0.0; rows * shape.head_dim as usize],
            k: vec![1.0; (shape.batch * shape.seqlen_kv * shape.num_heads_kv * shape.head_dim) as usize],
            v: v.collect(),
            ..Inputs::default()
        };
        let o = run(library(variant), problem, &inputs).o();
        for (row, o) in o.chunks(WIDTH as usize).enumerate() {
            for key in first..(first + WIDTH).min(shape.seqlen_kv) {
                kept[row * keys + key as usize] = o[(key - first) as usize] != 0.0;
            }
        }
    }
    kept
}

fn check_mask(variant: Variant, problem: &AttentionProblem) {
    let shape = problem.shape;
    for algorithm in [Algorithm::Flash, Algorithm::Standard] {
        let kept = kept_by_the_kernel(variant, &problem.clone().with_algorithm(algorithm));
        for (n, kept) in kept.into_iter().enumerate() {
            let n = n as u32;
            let (key, head) = (n % shape.seqlen_kv, n / shape.seqlen_kv % shape.num_heads);
            let row = n / shape.seqlen_kv / shape.num_heads % shape.seqlen_q;
            let batch = n / shape.seqlen_kv / shape.num_heads / shape.seqlen_q;
            let seen = problem.visible_keys(row).contains(&key);
            assert_eq!(
                kept,
                seen && reference::keeps(problem, batch, head, row, key),
                "{variant:?} {algorithm:?}: batch {batch}, head {head}, row {row}, key {key}\n{problem:?}"
            );
        }
    }
}

fn problem(dropout: Dropout) -> AttentionProblem {
    let shape = AttentionShape::new(2, 4, 39, 4).with_num_heads_kv(2).with_seqlen_kv(150).with_head_dim_v(WIDTH);
    let mut problem = AttentionProblem::new(shape);
    problem.dropout = Some(dropout);
    problem
}

#[test]
fn the_mask_is_the_oracles_at_every_chance() {
    for dropout_p in [0.0, 0.1, 0.5, 0.999] {
        check_mask(Variant::Full, &problem(Dropout::new(dropout_p, 1)));
    }
}

#[test]
fn the_mask_is_the_oracles_for_every_seed_and_offset() {
    for philox_seed in [0, 0xdead_beef, 0x1234_5678_9abc_def0, u64::MAX] {
        for philox_offset in [0, 1, u32::MAX] {
            check_mask(Variant::Full, &problem(Dropout::new(0.3, philox_seed).with_philox_offset(philox_offset)));
        }
    }
}

#[test]
fn the_mask_does_not_depend_on_tiles_or_device_abilities() {
    for variant in Variant::ALL {
        let problem = problem(Dropout::new(0.4, 0xfeed_0000_0001).with_philox_offset(3));
        check_mask(variant, &problem);
        if variant == Variant::Full || variant == Variant::NoShaderF16 {
            check_mask(variant, &problem.with_element(Element::F16).with_causal());
        }
    }
}

#[test]
fn the_mask_does_not_depend_on_other_masks() {
    let problem = problem(Dropout::new(0.4, 5));
    check_mask(Variant::Full, &problem.clone().with_causal());
    check_mask(Variant::Full, &problem.clone().with_window(Some(9), Some(30)));
    check_mask(Variant::Full, &problem.with_causal_top_left());
}

#[test]
fn kept_entries_are_scaled() {
    for &element in Element::ALL {
        for dropout_p in [0.0, 0.1, 0.5, 0.999] {
            let shape = AttentionShape::new(2, 4, 39, 16).with_num_heads_kv(2).with_seqlen_kv(70);
            let problem = AttentionProblem::new(shape).with_element(element).with_causal().with_dropout(dropout_p, 11);
            check(library(Variant::Full), &problem, &inputs(&problem, 12));
        }
    }
}

#[test]
fn lse_is_that_of_the_softmax_before_dropout() {
    let dry = AttentionProblem::new(AttentionShape::new(1, 2, 39, 16));
    let inputs = inputs(&dry, 1);
    for algorithm in [Algorithm::Flash, Algorithm::Standard] {
        let lse = |problem: &AttentionProblem| {
            run(library(Variant::Full), &problem.clone().with_algorithm(algorithm), &inputs).lse()
        };
        for (dry, dropped) in lse(&dry).into_iter().zip(lse(&dry.clone().with_dropout(0.9, 2))) {
            assert!((dry - dropped).abs() <= 1e-6 * dry.abs().max(1.0), "{algorithm:?}: {dry} and {dropped}");
        }
    }
}
