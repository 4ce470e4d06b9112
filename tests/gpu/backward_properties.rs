//! What holds of every backward pass: the same bits in every run, algebra, where a NaN goes, and each misuse's error.

use wgpu::BufferUsages;
use wgpu_flash_attention::{
    Algorithm, AttentionProblem, AttentionShape, BackwardBuffers, BackwardSlices, Call, Element, Error, InvalidProblem,
    Operand, Plan, TensorLayout,
};

use crate::support::{
    GradientInputs, GradientTensors, Inputs, Variant, check_gradients, from_bytes, gradient_inputs, library, limited,
    run_backward, run_backward_calls,
};

#[test]
fn fifty_runs_are_identical() {
    for algorithm in [Algorithm::Flash, Algorithm::Standard] {
        for element in [Element::F32, Element::F16] {
            let shape = AttentionShape::new(2, 4, 70, 32).with_num_heads_kv(2).with_seqlen_kv(90);
            let problem = AttentionProblem::new(shape)
                .with_element(element)
                .with_causal()
                .with_dropout(0.3, 17)
                .with_algorithm(algorithm);
            let given = gradient_inputs(&problem, 1);
            let runs = run_backward_calls(library(Variant::Full), &problem, &given, &[Call::default(); 25]);
            let alone = (0..25).map(|_| run_backward(library(Variant::Full), &problem, &given));
            for (n, run) in runs.iter().cloned().chain(alone).enumerate() {
                assert!(run == runs[0], "{algorithm:?} {element:?}: run {n} differs from the first");
            }
        }
    }
}

fn max_of(values: &[f64]) -> f64 {
    values.iter().fold(0.0, |max, value| max.max(value.abs()))
}

#[test]
fn grouped_heads_sum_the_gradients_of_repeated_heads() {
    let shape = AttentionShape::new(2, 6, 35, 16).with_seqlen_kv(50).with_num_heads_kv(2);
    let grouped = AttentionProblem::new(shape).with_causal();
    let repeated = AttentionProblem::new(shape.with_num_heads_kv(6)).with_causal();
    let few = gradient_inputs(&grouped, 1);
    let repeat = |values: &[f64]| -> Vec<f64> { values.chunks(16).flat_map(|head| head.repeat(3)).collect() };
    let inputs = Inputs { k: repeat(&few.inputs.k), v: repeat(&few.inputs.v), ..few.inputs.clone() };
    let many = GradientInputs { inputs, ..few.clone() };
    let grouped = run_backward(library(Variant::Full), &grouped, &few);
    let repeated = run_backward(library(Variant::Full), &repeated, &many);
    assert_eq!(grouped.dq(), repeated.dq());
    for (grouped, repeated) in [(grouped.dk(), repeated.dk()), (grouped.dv(), repeated.dv())] {
        let max = max_of(&grouped);
        for (n, found) in grouped.iter().enumerate() {
            let (kv_head, dim) = (n / 16, n % 16);
            let sum: f64 = (0..3).map(|member| repeated[(kv_head * 3 + member) * 16 + dim]).sum();
            assert!((found - sum).abs() <= 4e-6 * max, "{found}, not {sum}");
        }
    }
}

#[test]
fn the_scores_gradient_sums_to_zero() {
    // Σⱼ dS = 0, so a K of which all rows are one vector gives dQ = 0; and dV summed over keys is dO summed over rows.
    let problem = AttentionProblem::new(AttentionShape::new(1, 2, 40, 16).with_seqlen_kv(75));
    let mut given = gradient_inputs(&problem, 2);
    let row: Vec<f64> = given.inputs.k[..16].to_vec();
    given.inputs.k.chunks_mut(16).for_each(|key| key.copy_from_slice(&row));
    let gradients = check_gradients(library(Variant::Full), &problem, &given);
    assert!(max_of(&gradients.dq()) <= 1e-6, "{}", max_of(&gradients.dq()));
    let column_sums =
        |values: &[f64]| -> Vec<f64> { (0..32).map(|column| values.iter().skip(column).step_by(32).sum()).collect() };
    for (found, expected) in column_sums(&gradients.dv()).into_iter().zip(column_sums(&given.d_o)) {
        assert!((found - expected).abs() <= 2e-5, "{found}, not {expected}");
    }
}

#[test]
fn gradients_are_linear_in_d_o_and_d_lse() {
    let problem = AttentionProblem::new(AttentionShape::new(1, 1, 30, 16).with_seqlen_kv(40)).with_causal();
    let both = gradient_inputs(&problem, 3);
    let only_o = GradientInputs { d_lse: None, ..both.clone() };
    let only_lse = GradientInputs { d_o: vec![0.0; both.d_o.len()], ..both.clone() };
    let [both, only_o, only_lse] =
        [both, only_o, only_lse].map(|given| run_backward(library(Variant::Full), &problem, &given).dk());
    let max = max_of(&both);
    assert!(max_of(&only_lse) > 0.1 * max);
    for ((both, only_o), only_lse) in both.iter().zip(&only_o).zip(&only_lse) {
        assert!((both - only_o - only_lse).abs() <= 4e-6 * max);
    }
}

#[test]
fn a_nan_reaches_what_sees_it() {
    const DIM: usize = 16;
    const SEQLEN: usize = 45;
    let dense = AttentionProblem::new(AttentionShape::new(1, 1, SEQLEN as u32, DIM as u32));
    let with_nan = |values: &[f64]| -> Vec<usize> {
        (0..SEQLEN).filter(|row| values[row * DIM..][..DIM].iter().any(|value| value.is_nan())).collect()
    };
    // Element by element; of matrices, backward_matrices.rs asks it row by row.
    let portable = limited(|capabilities| capabilities.matrix_side = None);
    for library in [&portable, library(Variant::SmallTiles), library(Variant::LargeTiles)] {
        for problem in [dense.clone().with_causal(), dense.clone().with_window(Some(4), Some(2)), dense.clone()] {
            let clean = gradient_inputs(&problem, 2);
            let sees = |row: usize, key: usize| problem.visible_keys(row as u32).contains(&(key as u32));
            let all = |condition: &dyn Fn(usize) -> bool| (0..SEQLEN).filter(|n| condition(*n)).collect::<Vec<_>>();
            // In a row of Q or dO: its dQ, and the dK and dV of the keys that it sees.
            let places: [fn(&mut GradientInputs) -> &mut Vec<f64>; 2] =
                [|given| &mut given.inputs.q, |given| &mut given.d_o];
            for place in places {
                let mut given = clean.clone();
                place(&mut given)[20 * DIM + 3] = f64::NAN;
                let found = check_gradients(library, &problem, &given);
                assert_eq!(with_nan(&found.dq()), [20], "{problem:?}");
                assert_eq!(with_nan(&found.dk()), all(&|key| sees(20, key)), "{problem:?}");
                assert_eq!(with_nan(&found.dv()), all(&|key| sees(20, key)), "{problem:?}");
            }
            // In a row of K: the dQ of the rows that see it.
            let mut given = clean.clone();
            given.inputs.k[20 * DIM + 3] = f64::NAN;
            let found = check_gradients(library, &problem, &given);
            assert_eq!(with_nan(&found.dq()), all(&|row| sees(row, 20)), "{problem:?}");
        }
    }
}

#[test]
fn memory_beyond_the_tensors_is_three_numbers_a_row() {
    let problem = AttentionProblem::new(AttentionShape::new(2, 4, 1000, 64));
    let plan = Plan::backward(&problem, library(Variant::Full).capabilities()).build().unwrap();
    // LSE, and the pair of LSE and D.
    assert_eq!(plan.extra_bytes(), 3 * 4 * problem.shape.lse_len());
}

const SHAPE: AttentionShape = AttentionShape::new(2, 4, 10, 8).with_num_heads_kv(2);

fn problem() -> AttentionProblem {
    AttentionProblem::new(SHAPE)
}

fn refusal(problem: &AttentionProblem) -> Error {
    library(Variant::Full).prepare_gradients(problem).expect_err("the problem is refused")
}

#[test]
fn gradients_that_overlap_or_overflow_or_have_another_type() {
    let broadcast = TensorLayout { stride_batch: 0, ..problem().layout.k };
    let mut overlapping = problem();
    overlapping.layout.k = broadcast;
    assert_eq!(refusal(&overlapping), InvalidProblem::LayoutOverlaps(Operand::Dk).into());
    // With a layout of its own for the gradient, the input may broadcast.
    let apart = overlapping.clone().with_gradient_layout(problem().layout);
    check_gradients_of_broadcast(&apart);
    for (operand, change) in [
        (Operand::Dq, (|layout| layout.q.offset = u64::MAX) as fn(&mut wgpu_flash_attention::AttentionLayout)),
        (Operand::Dv, |layout| layout.v.stride_row = u64::MAX / 4),
        (Operand::DO, |layout| layout.o.stride_head = u64::MAX / 2),
    ] {
        let mut layout = problem().layout;
        change(&mut layout);
        assert_eq!(refusal(&problem().with_gradient_layout(layout)), InvalidProblem::LayoutOverflows(operand).into());
    }
    let mut mixed = problem().with_element(Element::F16);
    mixed.gradient_element = Some(Element::Bf16);
    let expected = InvalidProblem::GradientElement { element: Element::F16, found: Element::Bf16 };
    assert_eq!(refusal(&mixed), expected.into());
}

/// All sequences read the K of the first; each gets a gradient of its own.
fn check_gradients_of_broadcast(problem: &AttentionProblem) {
    let mut given = gradient_inputs(problem, 2);
    given.inputs.k.iter_mut().for_each(|value| *value = if value.is_nan() { 0.0 } else { *value });
    check_gradients(library(Variant::Full), problem, &given);
}

#[test]
fn problems_that_the_forward_pass_refuses() {
    let heads = AttentionProblem::new(SHAPE.with_num_heads_kv(3));
    assert_eq!(refusal(&heads), InvalidProblem::HeadsMismatch { num_heads: 4, num_heads_kv: 3 }.into());
    assert_eq!(refusal(&problem().with_dropout(1.0, 1)), InvalidProblem::DropoutP(1.0).into());
    let small = limited(|capabilities| capabilities.max_buffer = 1000);
    assert!(matches!(small.prepare_gradients(&problem()), Err(Error::TooLarge { operand: Operand::Q, .. })));
    let bindings = limited(|capabilities| capabilities.max_binding = 512);
    assert!(matches!(bindings.prepare_gradients(&problem()), Err(Error::TooLarge { .. })));
}

#[test]
fn plans_for_the_other_direction() {
    let full = library(Variant::Full);
    let backward = full.plan_backward(&problem()).build().unwrap();
    let forward = full.plan_forward(&problem()).build().unwrap();
    let wrong = Err("direction");
    let what = |error: Error| match error {
        Error::InvalidPlan { what, .. } => what,
        other => panic!("{other}"),
    };
    assert_eq!(pollster::block_on(full.prepare_forward_plan(backward)).map(|_| ()).map_err(what), wrong);
    assert_eq!(pollster::block_on(full.prepare_backward_plan(forward)).map(|_| ()).map_err(what), wrong);
}

#[test]
fn buffers_that_do_not_fit() {
    let full = library(Variant::Full);
    let prepared = full.prepare_gradients(&problem()).unwrap();
    let given = gradient_inputs(&problem(), 1);
    let buffer = |usage| {
        let descriptor = wgpu::BufferDescriptor { label: None, size: 1 << 16, usage, mapped_at_creation: false };
        full.device().create_buffer(&descriptor)
    };
    let (storage, copies) = (buffer(BufferUsages::STORAGE), buffer(BufferUsages::COPY_SRC));
    let encode = |operand, slice: wgpu::BufferSlice<'_>| {
        let tensors = GradientTensors::new(full, &problem(), &given);
        let mut encoder = full.device().create_command_encoder(&Default::default());
        let result = prepared.encode(&mut encoder, &tensors.buffers().with(operand, slice));
        full.queue().submit([encoder.finish()]);
        result.expect_err("the buffer is refused")
    };
    for operand in prepared.plan().operands() {
        let needed = prepared.plan().required_bytes(operand);
        let found = needed - 4;
        assert_eq!(encode(operand, storage.slice(..found)), Error::BufferTooSmall { operand, needed, found });
        assert_eq!(encode(operand, storage.slice(4..)), Error::BufferAlignment { operand, needed: 16, found: 4 });
        assert_eq!(encode(operand, copies.slice(..)), Error::BufferUsage { operand, needed: "STORAGE" });
    }
}

#[test]
fn gradients_that_share_a_buffer() {
    let full = library(Variant::Full);
    let prepared = full.prepare_gradients(&problem()).unwrap();
    let tensors = GradientTensors::new(full, &problem(), &gradient_inputs(&problem(), 1));
    let encode = |buffers: BackwardBuffers| {
        let mut encoder = full.device().create_command_encoder(&Default::default());
        prepared.encode(&mut encoder, &buffers)
    };
    let good = tensors.buffers();
    let aliased = |output, other| Err(Error::BufferAliased { output, other });
    assert_eq!(encode(good.with(Operand::Dq, good.get(Operand::Q))), aliased(Operand::Dq, Operand::Q));
    assert_eq!(encode(good.with(Operand::Dv, good.get(Operand::Dk))), aliased(Operand::Dk, Operand::Dv));
    // Only the gradient of LSE may be left out, and what is no tensor of the operation is not given.
    let missing = |operand| {
        let needed = prepared.plan().required_bytes(operand);
        Err(Error::BufferTooSmall { operand, needed, found: 0 })
    };
    assert_eq!(encode(good.with(Operand::Lse, None)), missing(Operand::Lse));
    assert_eq!(encode(good.with(Operand::DLse, None)), Ok(()));
    for operand in [Operand::RowStats, Operand::OParts, Operand::Params] {
        assert_eq!(encode(good.with(operand, good.get(Operand::Lse))), Err(Error::BufferUnexpected { operand }));
    }
    // Inputs may share: O as its own gradient.
    assert_eq!(encode(good.with(Operand::DO, good.get(Operand::O))), Ok(()));
}

/// dQ, dK and dV in one buffer, one behind the other: the same bits as in buffers of their own.
#[test]
fn gradients_in_one_buffer() {
    let full = library(Variant::Full);
    let problem = problem().with_element(Element::F16);
    let given = gradient_inputs(&problem, 3);
    let expected = run_backward(full, &problem, &given);
    let prepared = full.prepare_gradients(&problem).unwrap();
    let tensors = GradientTensors::new(full, &problem, &given);
    let alignment = u64::from(full.device().limits().min_storage_buffer_offset_alignment);
    let gradients = [Operand::Dq, Operand::Dk, Operand::Dv];
    let mut places = Vec::new();
    let mut end = 0;
    for operand in gradients {
        let first = u64::next_multiple_of(end, alignment);
        end = first + prepared.plan().required_bytes(operand);
        places.push(first..end);
    }
    let usage = BufferUsages::STORAGE | BufferUsages::COPY_SRC;
    let descriptor = wgpu::BufferDescriptor { label: None, size: end, usage, mapped_at_creation: false };
    let together = full.device().create_buffer(&descriptor);
    let with = |places: &[std::ops::Range<u64>]| {
        gradients
            .iter()
            .zip(places)
            .fold(tensors.buffers(), |buffers, (operand, place)| buffers.with(*operand, together.slice(place.clone())))
    };
    let mut encoder = full.device().create_command_encoder(&Default::default());
    // Where they touch or start too close, they are refused.
    let mut close = places.clone();
    close[1] = places[1].start - 16..places[1].end;
    let refused = prepared.encode(&mut encoder, &with(&close)).unwrap_err();
    assert_eq!(refused, Error::BufferAliased { output: Operand::Dq, other: Operand::Dk });
    prepared.encode(&mut encoder, &with(&places)).unwrap();
    let usage = BufferUsages::MAP_READ | BufferUsages::COPY_DST;
    let copy = full.device().create_buffer(&wgpu::BufferDescriptor { usage, ..descriptor });
    encoder.copy_buffer_to_buffer(&together, 0, &copy, 0, end);
    full.queue().submit([encoder.finish()]);
    copy.slice(..).map_async(wgpu::MapMode::Read, |result| result.unwrap());
    full.device().poll(wgpu::PollType::wait_indefinitely()).unwrap();
    let bytes = copy.slice(..).get_mapped_range().unwrap();
    for ((place, expected), operand) in places.iter().zip(expected.all()).zip(gradients) {
        let found = from_bytes(Element::F16, &bytes[place.start as usize..place.end as usize]);
        assert!(found[..expected.len()] == expected, "{operand}");
    }
}

#[test]
fn calls_and_dispatches_that_were_not_prepared() {
    let full = library(Variant::Full);
    let prepared = full.prepare_gradients(&problem()).unwrap();
    let tensors = GradientTensors::new(full, &problem(), &gradient_inputs(&problem(), 1));
    let mut encoder = full.device().create_command_encoder(&Default::default());
    let long = Call::new().with_seqlen_kv(11);
    let expected = Error::LengthExceedsPrepared { name: "seqlen_kv", found: 11, prepared: 10 };
    assert_eq!(prepared.encode_call(&mut encoder, &tensors.buffers(), &long), Err(expected.clone()));
    assert_eq!(prepared.num_dispatches(&long), Err(expected));
    let found = prepared.encode_dispatches(&mut encoder, &tensors.buffers(), &Call::default(), 2..4);
    assert_eq!(found, Err(Error::NoSuchDispatch { start: 2, end: 4, count: 3 }));
}

#[test]
fn slices_that_do_not_fit() {
    let (q, kv, lse) = (vec![0f32; 640], vec![0f32; 320], vec![0f32; 80]);
    let good = BackwardSlices::new(&q, &kv, &kv, &q, &lse, &q);
    let backward = |problem: &AttentionProblem, slices: &BackwardSlices<'_, f32>| {
        pollster::block_on(library(Variant::Full).backward(problem, slices)).map(|output| output.dk.len())
    };
    assert_eq!(backward(&problem(), &good), Ok(320));
    let short = |operand, needed, found| Err(Error::SliceTooShort { operand, needed, found });
    let with = |change: fn(&mut BackwardSlices<f32>)| {
        let mut slices = good;
        change(&mut slices);
        backward(&problem(), &slices)
    };
    assert_eq!(with(|slices| slices.d_o = &slices.d_o[1..]), short(Operand::DO, 640, 639));
    assert_eq!(with(|slices| slices.lse = &slices.lse[1..]), short(Operand::Lse, 80, 79));
    assert_eq!(with(|slices| slices.d_lse = Some(&slices.lse[..7])), short(Operand::DLse, 80, 7));
    let mismatch = Err(Error::ElementMismatch { expected: Element::F16, found: Element::F32 });
    assert_eq!(backward(&problem().with_element(Element::F16), &good), mismatch);
}
