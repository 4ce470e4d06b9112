//! Keys split over workgroups, decoding, and the merge of partial results.

use half::f16;
use wgpu_flash_attention::unstable::Kernel;
use wgpu_flash_attention::{
    Algorithm, AttentionLayout, AttentionProblem, AttentionShape, Call, DeviceClass, Element, Error, ForwardBuffers,
    InvalidProblem, MergeBuffers, MergeProblem, Operand, Tiles, reference,
};

use crate::support::{
    Guarded, Inputs, Library, Random, Variant, check, check_answer, inputs, library, limited, problem_of, run,
    run_calls, run_dispatch_by_dispatch, strided,
};

const STANDARD: Tiles = Tiles::new(64, 32, 4, 8);

/// Flash attention on small tiles, so that short sequences have many of them.
fn split(num_splits: u32) -> Library {
    limited(|_| ()).tiles(Tiles::new(16, 8, 2, 4), STANDARD).splits(num_splits)
}

fn decoding(tiles: Tiles, num_splits: u32) -> Library {
    limited(|_| ()).tiles(tiles, STANDARD).splits(num_splits)
}

fn problems(shape: AttentionShape) -> Vec<AttentionProblem> {
    let problem = AttentionProblem::new(shape);
    vec![
        problem.clone(),
        problem.clone().with_causal(),
        problem.clone().with_causal_top_left().with_dropout(0.3, 7),
        problem.clone().with_window(Some(9), Some(4)),
        problem.with_layout(strided(&shape, true)).with_dropout(0.2, 9).with_softmax_scale(-0.4),
    ]
}

#[test]
fn splits_have_the_oracles_answers() {
    for num_splits in [2, 3, 64] {
        let library = split(num_splits);
        let shape = AttentionShape::new(2, 4, 37, 16).with_num_heads_kv(2).with_seqlen_kv(75).with_head_dim_v(12);
        for (problem, element) in problems(shape).into_iter().zip(Element::ALL.iter().copied().cycle()) {
            let problem = problem.with_element(element);
            check(&library, &problem, &inputs(&problem, 1));
        }
        // More rows than keys: whole tiles of rows see nothing.
        let problem = AttentionProblem::new(AttentionShape::new(1, 2, 70, 8).with_seqlen_kv(20)).with_causal();
        check(&library, &problem, &inputs(&problem, 2));
    }
}

#[test]
fn splits_at_every_width() {
    for (head_dim, head_dim_v) in [(1, 1), (3, 7), (31, 20), (64, 64), (59, 111), (128, 128), (256, 256)] {
        let shape = AttentionShape::new(1, 2, 5, head_dim).with_seqlen_kv(50).with_head_dim_v(head_dim_v);
        let problem = AttentionProblem::new(shape).with_element(Element::F16).with_causal();
        check(&library(Variant::Full).clone().splits(2), &problem, &inputs(&problem, 3));
    }
}

#[test]
fn no_keys_and_no_rows() {
    for (seqlen_q, seqlen_kv) in [(5, 0), (0, 5), (1, 1)] {
        let problem = AttentionProblem::new(AttentionShape::new(1, 2, seqlen_q, 8).with_seqlen_kv(seqlen_kv));
        check(&split(3), &problem, &inputs(&problem, 4));
        check(&decoding(Tiles::decode(2, 16, 4, 4), 3), &problem, &inputs(&problem, 4));
    }
}

#[test]
fn decoding_has_the_oracles_answers() {
    // Few, for each compiles its own pipelines.
    for (num_splits, tiles) in [
        (1, Tiles::decode(4, 16, 4, 4)),
        (2, Tiles::decode(3, 32, 2, 4)),
        (5, Tiles::decode(8, 8, 1, 2)),
        (3, Tiles::decode(1, 8, 8, 2)),
    ] {
        let library = decoding(tiles, num_splits);
        // Groups of 1, 3 and 4 heads; 1 row and several, which fill tiles, and do not.
        for (heads, heads_kv, seqlen_q) in [(2, 2, 1), (6, 2, 3), (8, 2, 1), (4, 1, 5)] {
            let shape = AttentionShape::new(2, heads, seqlen_q, 16)
                .with_num_heads_kv(heads_kv)
                .with_seqlen_kv(101)
                .with_head_dim_v(12);
            for (problem, element) in problems(shape).into_iter().zip(Element::ALL.iter().copied().cycle()) {
                let problem = problem.with_element(element);
                check(&library, &problem, &inputs(&problem, 5));
            }
        }
    }
}

#[test]
fn decoding_at_every_width() {
    for (head_dim, head_dim_v) in [(1, 1), (3, 7), (31, 20), (64, 64), (59, 111), (128, 128), (256, 256)] {
        let shape =
            AttentionShape::new(1, 4, 1, head_dim).with_num_heads_kv(1).with_seqlen_kv(77).with_head_dim_v(head_dim_v);
        let problem = AttentionProblem::new(shape).with_element(Element::F16);
        check(&decoding(Tiles::decode(4, 16, 8, 4), 2), &problem, &inputs(&problem, 6));
    }
}

#[test]
fn decoding_without_abilities() {
    let shape = AttentionShape::new(2, 6, 2, 16).with_num_heads_kv(2).with_seqlen_kv(90);
    for &element in Element::ALL {
        let problem = AttentionProblem::new(shape).with_element(element).with_causal().with_dropout(0.1, 3);
        for variant in [Variant::NoSubgroups, Variant::NoShaderF16, Variant::WebGpuDefaults, Variant::Checked] {
            let library = library(variant).clone().tiles(Tiles::decode(4, 16, 4, 4), STANDARD).splits(2);
            check(&library, &problem, &inputs(&problem, 7));
        }
    }
}

/// What a GPU would run: the planner splits these by itself.
#[test]
fn the_planners_own_choice() {
    let library = limited(|capabilities| {
        capabilities.device_class = DeviceClass::Discrete;
        // On matrices nothing is split.
        capabilities.matrix_side = None;
    });
    let decode = AttentionShape::new(1, 8, 1, 64).with_num_heads_kv(2).with_seqlen_kv(1000);
    let small = AttentionShape::new(1, 2, 100, 64).with_seqlen_kv(300);
    for (shape, kernel) in [(decode, Kernel::FlashDecodeSplit), (small, Kernel::FlashForwardSplit)] {
        for problem in
            [AttentionProblem::new(shape), AttentionProblem::new(shape).with_causal().with_element(Element::F16)]
        {
            let plan = library.prepare(&problem).unwrap().plan().clone();
            let kernels: Vec<Kernel> = plan.passes().iter().map(|pass| pass.kernel).collect();
            assert_eq!(kernels, [kernel, Kernel::Combine]);
            assert!(plan.num_splits() > 1 && plan.scratch_bytes() > 0);
            check(&library, &problem, &inputs(&problem, 8));
        }
    }
}

#[test]
fn the_dropout_mask_does_not_depend_on_splits() {
    let shape = AttentionShape::new(1, 4, 3, 8).with_num_heads_kv(2).with_seqlen_kv(64);
    let problem = AttentionProblem::new(shape).with_dropout(0.5, 11);
    let mut given = inputs(&problem, 9);
    given.q.fill(0.0);
    // Key j alone has a value, and only in dimension j mod 8; a kept key shows.
    for key in [0, 17, 63] {
        given.v.fill(0.0);
        for head in 0..2 {
            given.v[(key * 2 + head) * 8 + key % 8] = 1.0;
        }
        for library in [split(1), split(3), decoding(Tiles::decode(6, 8, 4, 2), 3)] {
            let o = run(&library, &problem, &given).o();
            for (at, row) in o.chunks(8).enumerate() {
                let (row_index, head) = (at as u32 / 4, at as u32 % 4);
                let kept = reference::keeps(&problem, 0, head, row_index, key as u32);
                assert_eq!(row[key % 8] != 0.0, kept, "row {row_index}, head {head}, key {key}");
            }
        }
    }
}

#[test]
fn shorter_calls_of_split_operations() {
    let calls = [(3, 101), (3, 1), (1, 64), (2, 0), (0, 20), (3, 9)]
        .map(|(seqlen_q, seqlen_kv)| Call::new().with_seqlen_q(seqlen_q).with_seqlen_kv(seqlen_kv));
    let shape = AttentionShape::new(2, 4, 3, 16).with_num_heads_kv(2).with_seqlen_kv(101);
    for problem in [
        AttentionProblem::new(shape),
        AttentionProblem::new(shape).with_causal().with_dropout(0.1, 3).with_element(Element::F16),
        AttentionProblem::new(shape).with_layout(AttentionLayout::bhsd(&shape)).with_window(Some(30), Some(4)),
    ] {
        let given = inputs(&problem, 10);
        let standard = run_calls(&split(1), &problem.clone().with_algorithm(Algorithm::Standard), &given, &calls);
        for library in [split(4), decoding(Tiles::decode(4, 8, 4, 2), 1), decoding(Tiles::decode(4, 8, 4, 2), 5)] {
            let flash = run_calls(&library, &problem, &given, &calls);
            for ((call, flash), standard) in calls.iter().zip(&flash).zip(&standard) {
                check_answer(&problem_of(&problem, call), &given, flash, standard);
            }
        }
    }
}

/// Limits that cut an operation into parts leave its bits alone.
#[test]
fn split_operations_are_cut_into_dispatches() {
    let shape = AttentionShape::new(2, 8, 40, 16).with_num_heads_kv(2).with_seqlen_kv(60);
    let problem =
        AttentionProblem::new(shape).with_layout(AttentionLayout::bhsd(&shape)).with_causal().with_dropout(0.2, 9);
    let given = inputs(&problem, 11);
    for tiles in [Tiles::new(16, 8, 2, 4), Tiles::decode(4, 8, 4, 2)] {
        let whole = run(&decoding(tiles, 3), &problem, &given);
        for max_grid in [40, 2] {
            let library = limited(|capabilities| capabilities.max_workgroups_per_dimension = max_grid);
            let library = library.tiles(tiles, STANDARD).splits(3);
            assert!(run(&library, &problem, &given) == whole, "{tiles}, grids of {max_grid}");
            assert!(run_dispatch_by_dispatch(&library, &problem, &given) == whole, "{tiles}, one by one");
        }
        let bounded = problem.clone().with_bounded_work(problem.forward_flops() / 20);
        let count = decoding(tiles, 3).prepare(&bounded).unwrap().num_dispatches(&Call::default()).unwrap();
        assert!(count > 2, "{count} dispatches");
        assert!(run(&decoding(tiles, 3), &bounded, &given) == whole, "{tiles}, bounded");
    }
}

#[test]
fn split_runs_are_identical() {
    let shape = AttentionShape::new(2, 4, 3, 16).with_num_heads_kv(2).with_seqlen_kv(120);
    let problem = AttentionProblem::new(shape).with_element(Element::F16).with_causal().with_dropout(0.1, 3);
    let given = inputs(&problem, 12);
    for library in [split(3), decoding(Tiles::decode(4, 8, 4, 2), 3)] {
        let first = run(&library, &problem, &given);
        for _ in 0..49 {
            assert!(run(&library, &problem, &given) == first);
        }
    }
}

#[test]
fn a_nan_reaches_the_rows_that_see_it() {
    let problem =
        AttentionProblem::new(AttentionShape::new(1, 1, 6, 8).with_seqlen_kv(50)).with_window(Some(20), Some(3));
    for library in [split(4), decoding(Tiles::decode(4, 8, 2, 2), 3)] {
        for (key, in_v) in [(20, true), (20, false), (47, true), (47, false), (49, true)] {
            let mut given = inputs(&problem, 13);
            let tensor = if in_v { &mut given.v } else { &mut given.k };
            tensor[key * 8 + 3] = f64::NAN;
            check(&library, &problem, &given);
        }
    }
}

#[test]
fn splits_that_do_not_exist() {
    let problem = AttentionProblem::new(AttentionShape::new(1, 1, 6, 8));
    for (problem, num_splits) in [(problem.clone(), 0), (problem.with_algorithm(Algorithm::Standard), 2)] {
        let error = split(1).plan_forward(&problem).with_splits(num_splits).build().unwrap_err();
        assert!(matches!(error, Error::InvalidPlan { what: "num_splits", .. }), "{error}");
    }
}

/// The results of the library on parts of the keys, one behind another, in f32 or f16 values.
fn parts(problem: &AttentionProblem, given: &Inputs, cuts: &[(u32, u32)]) -> (Vec<f64>, Vec<f32>) {
    let (mut o, mut lse) = (Vec::new(), Vec::new());
    let row = (problem.shape.num_heads_kv * problem.shape.head_dim) as usize;
    for &(from, to) in cuts {
        let mut part = AttentionProblem::new(problem.shape.with_seqlen_kv(to - from)).with_element(problem.element);
        part.softmax_scale = problem.softmax_scale;
        let cut = |values: &[f64]| values[from as usize * row..to as usize * row].to_vec();
        let inputs = Inputs { k: cut(&given.k), v: cut(&given.v), ..given.clone() };
        let output = run(library(Variant::Full), &part, &inputs);
        o.extend(output.o());
        lse.extend(output.lse().into_iter().map(|lse| lse as f32));
    }
    (o, lse)
}

fn f32s(values: &[f64]) -> Vec<f32> {
    values.iter().map(|value| *value as f32).collect()
}

fn close(found: &[f32], wanted: &[f64], rounding: f64) {
    assert_eq!(found.len(), wanted.len());
    for (found, wanted) in found.iter().zip(wanted) {
        let same = f64::from(*found) == *wanted;
        assert!(
            same || (f64::from(*found) - wanted).abs() <= rounding * wanted.abs().max(1.0),
            "{found}, not {wanted}"
        );
    }
}

#[test]
fn merged_parts_are_the_whole() {
    let attention = library(Variant::Full);
    for head_dim in [16, 7] {
        let problem = AttentionProblem::new(AttentionShape::new(1, 2, 9, head_dim).with_seqlen_kv(60));
        let given = inputs(&problem, 14);
        let whole = check(attention, &problem, &given);
        // In any order, of any length, one of none.
        for cuts in [vec![(0, 60)], vec![(31, 60), (0, 31)], vec![(0, 1), (1, 1), (1, 20), (20, 60)]] {
            let (o, lse) = parts(&problem, &given, &cuts);
            let merge = MergeProblem::of(&problem, cuts.len() as u32);
            let merged = pollster::block_on(attention.merge::<f32, f32>(&merge, &f32s(&o), &lse)).unwrap();
            close(&merged.o, &whole.o(), 4e-6);
            close(&merged.lse, &whole.lse(), 1e-5);
            // The oracle's rule on the same parts.
            let rows = lse.len() / cuts.len();
            for row in 0..rows {
                let lses: Vec<f64> = (0..cuts.len()).map(|part| lse[part * rows + row].into()).collect();
                let total = lses.iter().map(|lse| lse.exp()).sum::<f64>().ln();
                assert!((f64::from(merged.lse[row]) - total).abs() <= 1e-6 * total.abs().max(1.0));
            }
        }
    }
}

#[test]
fn parts_are_merged_in_any_grouping_and_type() {
    let attention = library(Variant::Full);
    let problem = AttentionProblem::new(AttentionShape::new(2, 2, 5, 8).with_seqlen_kv(60));
    let mut given = inputs(&problem, 15);
    // `parts` cuts one sequence.
    let problem = AttentionProblem::new(AttentionShape { batch: 1, ..problem.shape });
    for tensor in [&mut given.q, &mut given.k, &mut given.v] {
        tensor.truncate(tensor.len() / 2);
    }
    let (o, lse) = parts(&problem, &given, &[(0, 10), (10, 35), (35, 60)]);
    let (o, len, rows) = (f32s(&o), o.len() / 3, lse.len() / 3);
    let merge = |count: u32, o: &[f32], lse: &[f32]| {
        pollster::block_on(attention.merge::<f32, f32>(&MergeProblem::of(&problem, count), o, lse)).unwrap()
    };
    let all = merge(3, &o, &lse);
    let first = merge(2, &o[..2 * len], &lse[..2 * rows]);
    let nested = merge(2, &[&first.o, &o[2 * len..]].concat(), &[&first.lse, &lse[2 * rows..]].concat());
    let as_f64 = |values: &[f32]| values.iter().map(|value| f64::from(*value)).collect::<Vec<_>>();
    close(&nested.o, &as_f64(&all.o), 2e-6);
    close(&nested.lse, &as_f64(&all.lse), 1e-6);

    // f16 from f32 parts is the f32 merge, rounded once; from f16 parts each is rounded before.
    let halves = MergeProblem::of(&problem.clone().with_element(Element::F16), 3);
    let from_f32 =
        pollster::block_on(attention.merge::<f32, f16>(&halves.clone().with_parts_in_f32(), &o, &lse)).unwrap();
    let o_f16: Vec<f16> = o.iter().map(|value| f16::from_f32(*value)).collect();
    let from_f16 = pollster::block_on(attention.merge::<f16, f16>(&halves, &o_f16, &lse)).unwrap();
    let largest = o.iter().fold(0.0f64, |largest, o| largest.max(f64::from(o.abs())));
    for (found, rounding) in [(from_f32, 1.01 / 2048.0), (from_f16, 2.01 / 2048.0)] {
        for (found, wanted) in found.o.iter().zip(&all.o) {
            assert!((found.to_f64() - f64::from(*wanted)).abs() <= rounding * largest, "{found}, not {wanted}");
        }
    }
}

/// Parts with gaps between them that hold NaN, in rows with gaps, and a row that one part does not see, where it holds NaN.
#[test]
fn what_lies_between_parts_is_not_read() {
    let attention = library(Variant::Full);
    let shape = AttentionShape::new(2, 2, 3, 6);
    let problem = AttentionProblem::new(shape).with_layout(strided(&shape, true));
    let rows = shape.lse_len() as usize;
    let len = problem.layout.o.required_len(2, 3, 2, 6).unwrap() as usize;
    let (stride, lse_stride) = (len + 7, rows + 3);
    let mut o = vec![f32::NAN; 2 * stride];
    let mut lse = vec![f32::NAN; 2 * lse_stride];
    for part in 0..2 {
        for (batch, row, head) in [0, 1].iter().flat_map(|b| (0..3).flat_map(move |row| [0, 1].map(|h| (*b, row, h)))) {
            let flat = ((batch * 2 + head) * 3 + row) as usize;
            // Part 1 does not see row 1; nothing sees row 2.
            let seen = row == 0 || (row == 1 && part == 0);
            lse[part * lse_stride + flat] = if seen { part as f32 } else { f32::NEG_INFINITY };
            if seen {
                let first = part * stride + problem.layout.o.index(batch, row, head) as usize;
                o[first..first + 6].fill(10.0 * (part + 1) as f32);
            }
        }
    }
    let merge = MergeProblem::of(&problem, 2).with_strides(stride as u64, lse_stride as u64);
    let merged = pollster::block_on(attention.merge::<f32, f32>(&merge, &o, &lse)).unwrap();
    let e = std::f64::consts::E;
    for (batch, row, head) in (0..2).flat_map(|b| (0..3).flat_map(move |row| [0, 1].map(|h| (b, row, h)))) {
        let first = problem.layout.o.index(batch, row, head) as usize;
        let (o, total) =
            [((10.0 + 20.0 * e) / (1.0 + e), (1.0 + e).ln()), (10.0, 0.0), (0.0, f64::NEG_INFINITY)][row as usize];
        close(&merged.o[first..first + 6], &[o; 6], 1e-6);
        close(&merged.lse[((batch * 2 + head) * 3 + row) as usize..][..1], &[total], 1e-6);
    }
}

#[test]
fn no_parts_see_nothing() {
    let merge = MergeProblem::of(&AttentionProblem::new(AttentionShape::new(1, 2, 5, 8)), 0);
    let merged = pollster::block_on(library(Variant::Full).merge::<f32, f32>(&merge, &[], &[])).unwrap();
    assert!(merged.o.iter().all(|o| *o == 0.0) && merged.lse.iter().all(|lse| *lse == f32::NEG_INFINITY));
}

#[test]
fn merges_are_refused() {
    let attention = library(Variant::Full);
    let problem = AttentionProblem::new(AttentionShape::new(1, 2, 5, 8)).with_element(Element::F16);
    let merge = MergeProblem::of(&problem, 2);
    let mut other = merge.clone();
    other.parts_element = Element::Bf16;
    let refusal = |merge: &MergeProblem| pollster::block_on(attention.prepare_merge(merge)).err().unwrap();
    assert_eq!(refusal(&other), InvalidProblem::PartsElement { element: Element::F16, found: Element::Bf16 }.into());
    let huge = merge.clone().with_strides(u64::MAX / 2, 10);
    assert_eq!(refusal(&huge), InvalidProblem::LayoutOverflows(Operand::OParts).into());
    let large = merge.clone().with_strides(u64::MAX / 4, 10);
    assert!(matches!(refusal(&large), Error::TooLarge { .. }), "{}", refusal(&large));
    let short = pollster::block_on(attention.merge::<f16, f16>(&merge, &[f16::ZERO; 159], &[0.0; 20])).err().unwrap();
    assert!(matches!(short, Error::SliceTooShort { needed: 160, found: 159, .. }), "{short}");
    let mismatch = pollster::block_on(attention.merge::<f32, f16>(&merge, &[], &[])).err().unwrap();
    assert!(matches!(mismatch, Error::ElementMismatch { .. }), "{mismatch}");
}

/// Two forward calls, each on half of the keys and into its half of the parts, and their merge, in one encoder.
#[test]
fn parts_are_merged_in_the_callers_buffers() {
    let library = library(Variant::Full);
    let whole = AttentionProblem::new(AttentionShape::new(1, 2, 8, 16).with_seqlen_kv(64));
    let half = AttentionProblem::new(whole.shape.with_seqlen_kv(32));
    let given = inputs(&whole, 16);
    let [q, k, v] = [&given.q, &given.k, &given.v].map(|values| f32s(values));
    let expected = pollster::block_on(library.forward(&whole, &q, &k, &v)).unwrap();

    let storage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST;
    let buffer = |size: usize, usage| {
        let descriptor = wgpu::BufferDescriptor { label: None, size: size as u64, usage, mapped_at_creation: false };
        library.device().create_buffer(&descriptor)
    };
    let upload = |values: &[f32]| {
        let uploaded = buffer(4 * values.len(), storage);
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        library.queue().write_buffer(&uploaded, 0, &bytes);
        uploaded
    };
    let (o_bytes, lse_bytes, half_bytes) = (4 * 8 * 2 * 16, 4 * 2 * 8, 2 * k.len() as u64);
    let [q, k, v] = [&q, &k, &v].map(|values| upload(values));
    let (o_parts, lse_parts) = (buffer(2 * o_bytes, storage), buffer(2 * lse_bytes, storage));
    let (o, lse) = (buffer(o_bytes, storage), buffer(lse_bytes, storage));
    let forward = library.prepare(&half).unwrap();
    let merge = pollster::block_on(library.prepare_merge(&MergeProblem::of(&half, 2))).unwrap();
    let mut encoder = library.device().create_command_encoder(&Default::default());
    for part in [0, 1] {
        // The calls write different buffers: one operation's scratch serves both.
        let (o, lse) = (part * o_bytes as u64, part * lse_bytes as u64);
        let [k, v] = [&k, &v].map(|buffer| buffer.slice(part * half_bytes..));
        let o = o_parts.slice(o..o + o_bytes as u64);
        let lse = lse_parts.slice(lse..lse + lse_bytes as u64);
        let buffers = ForwardBuffers::new(q.slice(..), k, v, o, lse);
        forward.encode(&mut encoder, &buffers).unwrap();
    }
    let buffers = MergeBuffers::new(o_parts.slice(..), lse_parts.slice(..), o.slice(..), lse.slice(..));
    merge.encode(&mut encoder, &buffers).unwrap();
    let copy = buffer(o_bytes, wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST);
    encoder.copy_buffer_to_buffer(&o, 0, &copy, 0, None);
    library.queue().submit([encoder.finish()]);
    copy.slice(..).map_async(wgpu::MapMode::Read, |result| result.expect("the copy can be mapped"));
    library.device().poll(wgpu::PollType::wait_indefinitely()).expect("the GPU finishes");
    let bytes = copy.slice(..).get_mapped_range().expect("the copy is mapped").to_vec();
    let merged: Vec<f32> = bytes.chunks(4).map(|word| f32::from_le_bytes(word.try_into().unwrap())).collect();
    let expected: Vec<f64> = expected.o.iter().map(|o| f64::from(*o)).collect();
    close(&merged, &expected, 4e-6);
}

/// In fewer rows than prepared, and one dispatch at a time on a device that binds little: the same bits.
#[test]
fn a_merge_is_encoded_in_every_form() {
    let library = limited(|capabilities| capabilities.max_binding = 5120);
    let part = AttentionProblem::new(AttentionShape::new(2, 3, 16, 8));
    let merge = MergeProblem::of(&part, 2);
    let prepared = pollster::block_on(library.prepare_merge(&merge)).unwrap();
    let (whole, short) = (Call::default(), Call::new().with_seqlen_q(5));
    assert!(prepared.num_dispatches(&whole).unwrap() > 1);
    let floats = |operand| prepared.plan().required_len(operand) as usize;
    let mut random = Random(3);
    let mut values = |operand| (0..floats(operand)).map(|_| random.normal() as f32).collect::<Vec<f32>>();
    let bytes = |values: &[f32]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
    let (o_parts, lse_parts) = (values(Operand::OParts), values(Operand::LseParts));
    let answer = |encode: &dyn Fn(&mut wgpu::CommandEncoder, &MergeBuffers)| {
        let [o_parts, lse_parts] = [&o_parts, &lse_parts].map(|values| Guarded::new(&library, &bytes(values)));
        let [o, lse] =
            [Operand::O, Operand::Lse].map(|operand| Guarded::poisoned(&library, 4 * floats(operand) as u64));
        let mut encoder = library.device().create_command_encoder(&Default::default());
        encode(&mut encoder, &MergeBuffers::new(o_parts.slice(), lse_parts.slice(), o.slice(), lse.slice()));
        library.queue().submit([encoder.finish()]);
        (o.read(&library), lse.read(&library))
    };
    let expected = answer(&|encoder, buffers| prepared.encode(encoder, buffers).unwrap());
    for call in [whole, short] {
        let together = answer(&|encoder, buffers| prepared.encode_call(encoder, buffers, &call).unwrap());
        let count = prepared.num_dispatches(&call).unwrap();
        let one_by_one = answer(&|encoder, buffers| {
            for index in 0..count {
                prepared.encode_dispatches(encoder, buffers, &call, index..index + 1).unwrap();
            }
        });
        assert!(together == one_by_one);
        assert_eq!(together == expected, call == whole);
        // The rows of a shorter call are those of the longer one.
        assert_eq!(together.0[..4 * 5 * 3 * 8], expected.0[..4 * 5 * 3 * 8]);
    }
    // It has no scratch memory: nothing is lost.
    prepared.destroy();
    assert!(answer(&|encoder, buffers| prepared.encode(encoder, buffers).unwrap()) == expected);
}
