//! The forward pass on cooperative matrices, also where the planner would not take them: on a software driver.

use wgpu_flash_attention::{AttentionProblem, AttentionShape, DeviceClass, Element, FlashAttention, ScoreMod};

use crate::support::{Variant, adapter, check, inputs, library, run, with_matrices};

fn check_case(problem: &AttentionProblem, seed: u64) {
    check_kernel("flash_forward_cooperative", problem, seed);
}

fn check_kernel(kernel: &str, problem: &AttentionProblem, seed: u64) {
    let Some(library) = with_matrices() else { return };
    for &element in Element::ALL {
        let problem = problem.clone().with_element(element);
        // Rows with units of their own are loaded by a subgroup, each lane several quads of a wide one. A software driver compiles
        // many of them for minutes.
        let widest = problem.shape.head_dim.max(problem.shape.head_dim_v);
        let is_software = library.capabilities().device_class == DeviceClass::Cpu;
        if is_software && element != Element::F16 && widest > 6 * library.capabilities().subgroup_min_size {
            println!("skipped: head_dim {widest} in {element:?} for a software driver");
            continue;
        }
        let prepared = library.prepare(&problem).unwrap();
        assert_eq!(prepared.plan().passes()[0].kernel.name().trim_end_matches("_split"), kernel);
        check(library, &problem, &inputs(&problem, seed));
    }
}

#[test]
fn every_mask_and_dropout() {
    let problem = AttentionProblem::new(AttentionShape::new(2, 4, 113, 64).with_num_heads_kv(2).with_seqlen_kv(203));
    check_case(&problem, 1);
    check_case(&problem.clone().with_causal(), 2);
    check_case(&problem.clone().with_causal_top_left(), 3);
    check_case(&problem.clone().with_window(Some(7), Some(3)), 4);
    check_case(&problem.clone().with_causal().with_dropout(0.3, 5).with_softmax_scale(-0.4), 5);
    // Rows that see nothing.
    check_case(&AttentionProblem::new(AttentionShape::new(1, 2, 150, 40).with_seqlen_kv(40)).with_causal(), 6);
}

/// Few rows: those of the heads that share a KV head are packed into one tile.
#[test]
fn few_rows_of_heads_that_share_keys() {
    let check = |problem: AttentionProblem, seed| check_kernel("flash_forward_cooperative_packed", &problem, seed);
    // Seven rows of six heads to a KV head: 42 packed rows. A tile of 64 holds parts of rows.
    let problem = AttentionProblem::new(AttentionShape::new(2, 12, 7, 32).with_num_heads_kv(2).with_seqlen_kv(83));
    check(problem.clone(), 1);
    check(problem.clone().with_causal().with_dropout(0.3, 5), 2);
    check(problem.clone().with_window(Some(7), Some(3)).with_softmax_scale(-0.4), 3);
    let slopes = vec![0.5, -0.25, 0.125, 1.0, 0.0, 2.0, 0.5, 0.25, 0.75, 1.5, 0.3, 0.1];
    let modified = problem.with_score(ScoreMod::Softcap(2.0)).with_score(ScoreMod::Alibi(slopes));
    check(modified.with_causal(), 4);
    // More packed rows than a tile has.
    let shape = AttentionShape::new(1, 9, 17, 24).with_num_heads_kv(1).with_seqlen_kv(40);
    check(AttentionProblem::new(shape).with_causal(), 5);
}

#[test]
fn every_mask_and_dropout_of_narrow_heads() {
    let problem = AttentionProblem::new(AttentionShape::new(2, 4, 113, 32).with_num_heads_kv(2).with_seqlen_kv(203));
    check_case(&problem, 1);
    check_case(&problem.clone().with_causal(), 2);
    check_case(&problem.clone().with_window(Some(7), Some(3)), 4);
    check_case(&problem.clone().with_causal().with_dropout(0.3, 5).with_softmax_scale(-0.4), 5);
    check_case(&AttentionProblem::new(AttentionShape::new(1, 2, 150, 24).with_seqlen_kv(40)).with_causal(), 6);
}

/// f32 and bf16 pass through f16 in units of their rows, so each row may be as large or as small as it likes, whatever
/// stands in the rows that are not seen.
#[test]
fn rows_of_every_magnitude() {
    const DIM: usize = 16;
    const SEQLEN: usize = 150;
    let Some(library) = with_matrices() else { return };
    let shape = AttentionShape::new(1, 1, SEQLEN as u32, DIM as u32).with_seqlen_kv(200);
    for element in [Element::F32, Element::Bf16] {
        let causal = AttentionProblem::new(shape).with_element(element).with_causal_top_left();
        for problem in [causal.clone(), causal.with_window(Some(20), Some(0))] {
            let mut inputs = inputs(&problem, 4);
            // The last key that a row sees outgrows the others, 1,000 times every 10 keys: O_i is as large as V_i. Q and K grow
            // and shrink together.
            let factor = |row: usize| 2f64.powi(row as i32 - 75);
            let scale = |rows: &mut [f64], factor: &dyn Fn(usize) -> f64| {
                rows.iter_mut().enumerate().for_each(|(n, value)| *value *= factor(n / DIM));
            };
            scale(&mut inputs.v, &factor);
            scale(&mut inputs.q, &|row| 2f64.powi(40 + (row % 3) as i32));
            scale(&mut inputs.k, &|row| 2f64.powi(-40 - (row % 5) as i32));
            for unseen in [&mut inputs.k, &mut inputs.v] {
                for (n, value) in unseen[SEQLEN * DIM..].iter_mut().enumerate() {
                    *value = element.round([1e30, -1e-30, 0.0][n / DIM % 3]);
                }
            }
            check(library, &problem, &inputs);
        }
    }
}

/// Matrix units round sums toward 0: a sum of many terms of one sign would drift away in one of them.
#[test]
fn long_sums_do_not_drift() {
    let Some(library) = with_matrices() else { return };
    let problem = AttentionProblem::new(AttentionShape::new(1, 1, 40, 16).with_seqlen_kv(10_000));
    let mut inputs = inputs(&problem, 3);
    inputs.v.iter_mut().for_each(|value| *value = Element::F32.round(value.abs() + 1.0));
    check(library, &problem, &inputs);
}

#[test]
fn every_width() {
    for (head_dim, head_dim_v) in [(1, 3), (31, 24), (31, 40), (80, 96), (128, 59)] {
        let shape = AttentionShape::new(1, 2, 70, head_dim).with_head_dim_v(head_dim_v);
        check_case(&AttentionProblem::new(shape).with_causal(), 7);
    }
}

#[test]
fn a_nan_reaches_the_rows_that_see_it() {
    let Some(library) = with_matrices() else { return };
    let dense = AttentionProblem::new(AttentionShape::new(1, 1, 45, 16));
    let of_all_elements =
        |problem: AttentionProblem| Element::ALL.iter().map(move |&element| problem.clone().with_element(element));
    let problems = [dense.clone().with_causal(), dense.clone().with_window(Some(4), Some(2)), dense];
    for problem in problems.into_iter().flat_map(of_all_elements) {
        let mut inputs = inputs(&problem, 1);
        inputs.v[20 * 16 + 3] = f64::NAN;
        let o = run(library, &problem, &inputs).o();
        for (at, o) in o.iter().enumerate() {
            let sees = at % 16 == 3 && problem.visible_keys(at as u32 / 16).contains(&20);
            assert_eq!(o.is_nan(), sees, "row {}, dim {}", at / 16, at % 16);
        }
    }
}

#[test]
fn runs_are_identical() {
    let Some(library) = with_matrices() else { return };
    for (element, head_dim) in [(Element::F16, 64), (Element::F32, 32)] {
        let problem =
            AttentionProblem::new(AttentionShape::new(1, 2, 100, head_dim)).with_element(element).with_causal();
        let inputs = inputs(&problem, 9);
        let first = run(library, &problem, &inputs);
        for _ in 0..49 {
            assert!(run(library, &problem, &inputs) == first);
        }
    }
}

/// Permission for experimental features is asked for where there are matrices, and nowhere else.
#[test]
fn the_permission_for_experimental_features_comes_with_matrices() {
    let descriptor = FlashAttention::device_descriptor(adapter());
    let experimental = descriptor.required_features & wgpu::Features::all_experimental_mask();
    let matrices = library(Variant::Full).capabilities().matrix_side.is_some();
    assert_eq!(descriptor.experimental_features.is_enabled(), matrices);
    let expected = if matrices { wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX } else { wgpu::Features::empty() };
    assert_eq!(experimental, expected);
}
