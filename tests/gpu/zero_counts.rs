//! Counts of 0 in every combination. What there is to write is written: outputs hold NaN before.

use wgpu_flash_attention::{
    Algorithm, AttentionProblem, AttentionShape, BackwardOutput, BackwardSlices, Call, Element, Error, InvalidProblem,
    MergeBuffers, MergeProblem,
};

use crate::support::{
    Library, Variant, gradient_inputs, inputs, library, problem_of, run, run_backward, run_backward_calls, run_calls,
    with_matrices,
};

const ALGORITHMS: [Algorithm; 2] = [Algorithm::Flash, Algorithm::Standard];

/// All shapes with a count of 0 whose other counts are these.
fn with_zeros(shape: AttentionShape) -> impl Iterator<Item = AttentionShape> {
    (1..32).map(move |zeros: u32| {
        let count = |bit: u32, count: u32| if zeros >> bit & 1 == 1 { 0 } else { count };
        AttentionShape {
            batch: count(0, shape.batch),
            num_heads: count(1, shape.num_heads),
            num_heads_kv: count(2, shape.num_heads_kv),
            seqlen_q: count(3, shape.seqlen_q),
            seqlen_kv: count(4, shape.seqlen_kv),
            ..shape
        }
    })
}

/// Many rows, and few as in decoding.
fn shapes() -> impl Iterator<Item = AttentionShape> {
    let whole = AttentionShape::new(2, 4, 40, 8).with_num_heads_kv(2).with_seqlen_kv(70).with_head_dim_v(5);
    with_zeros(whole).chain(with_zeros(AttentionShape { seqlen_q: 1, ..whole }))
}

/// Where heads cannot be shared out, no direction is planned.
fn is_refused(library: &Library, problem: &AttentionProblem) -> bool {
    let AttentionShape { num_heads, num_heads_kv, .. } = problem.shape;
    if num_heads == 0 || num_heads_kv > 0 {
        return false;
    }
    let refusal = Error::from(InvalidProblem::HeadsMismatch { num_heads, num_heads_kv });
    assert_eq!(library.prepare(problem).unwrap_err(), refusal);
    assert_eq!(library.prepare_gradients(problem).unwrap_err(), refusal);
    true
}

/// So many elements, all 0: NaN would be what the output held before.
fn zeros(values: &[f64], len: u32, what: &str, problem: &AttentionProblem) {
    assert_eq!(values.len(), len as usize, "{what} of {problem:?}");
    assert!(values.iter().all(|value| *value == 0.0), "{what} is not 0 but {values:?}\n{problem:?}");
}

fn every_count(library: &Library, splits: Option<u32>) {
    let split = splits.map(|splits| library.clone().splits(splits));
    for shape in shapes() {
        let (rows, keys) = (shape.batch * shape.num_heads * shape.seqlen_q, shape.batch * shape.seqlen_kv);
        for algorithm in ALGORITHMS {
            let problem = AttentionProblem::new(shape).with_algorithm(algorithm).with_dropout(0.5, 1).with_causal();
            if is_refused(library, &problem) {
                continue;
            }
            // Something is 0, so there are no rows or they see nothing.
            let output = run(split.as_ref().unwrap_or(library), &problem, &inputs(&problem, 1));
            zeros(&output.o(), rows * shape.head_dim_v, "o", &problem);
            assert!(output.lse().iter().all(|lse| *lse == f64::NEG_INFINITY), "{:?}\n{problem:?}", output.lse());

            let problem = problem.with_f32_gradients();
            let gradients = run_backward(library, &problem, &gradient_inputs(&problem, 1));
            zeros(&gradients.dq(), rows * shape.head_dim, "dq", &problem);
            zeros(&gradients.dk(), keys * shape.num_heads_kv * shape.head_dim, "dk", &problem);
            zeros(&gradients.dv(), keys * shape.num_heads_kv * shape.head_dim_v, "dv", &problem);
        }
    }
}

#[test]
fn counts_of_zero_are_answered() {
    every_count(library(Variant::Full), None);
}

#[test]
fn counts_of_zero_are_answered_in_splits() {
    every_count(library(Variant::Full), Some(3));
}

#[test]
fn counts_of_zero_are_answered_on_a_device_like_a_browsers() {
    every_count(library(Variant::WebGpuDefaults), None);
}

#[test]
fn counts_of_zero_are_answered_on_matrices() {
    if let Some(library) = with_matrices() {
        every_count(library, None);
    }
}

#[test]
fn counts_of_zero_are_answered_by_dispatches_of_little_work() {
    let library = library(Variant::Full);
    for shape in shapes().filter(|shape| shape.num_heads == 0 || shape.num_heads_kv > 0) {
        for algorithm in ALGORITHMS {
            let problem =
                AttentionProblem::new(shape).with_element(Element::F16).with_algorithm(algorithm).with_bounded_work(1);
            let gradients = run_backward(library, &problem, &gradient_inputs(&problem, 1));
            let keys = shape.batch * shape.seqlen_kv * shape.num_heads_kv;
            zeros(&gradients.dk(), keys * shape.head_dim, "dk", &problem);
            zeros(&gradients.dv(), keys * shape.head_dim_v, "dv", &problem);
        }
    }
}

/// The lengths of a call, 0 where the prepared ones are not.
#[test]
fn calls_of_length_zero_are_answered() {
    let library = library(Variant::Full);
    let shape = AttentionShape::new(2, 4, 40, 8).with_num_heads_kv(2).with_seqlen_kv(70).with_head_dim_v(5);
    let call = |seqlen_q, seqlen_kv| {
        let mut call = Call::new();
        call.seqlen_q = seqlen_q;
        call.seqlen_kv = seqlen_kv;
        call
    };
    let calls = [call(Some(0), None), call(None, Some(0)), call(Some(0), Some(0))];
    for algorithm in ALGORITHMS {
        let problem = AttentionProblem::new(shape).with_algorithm(algorithm);
        let outputs = run_calls(library, &problem, &inputs(&problem, 1), &calls);
        let gradients = run_backward_calls(library, &problem, &gradient_inputs(&problem, 1), &calls);
        for ((call, output), gradients) in calls.iter().zip(outputs).zip(gradients) {
            let AttentionShape { seqlen_q, seqlen_kv, .. } = problem_of(&problem, call).shape;
            assert!(output.lse().iter().all(|lse| *lse == f64::NEG_INFINITY), "{:?}\n{call:?}", output.lse());
            for (values, rows) in [
                (output.o(), seqlen_q),
                (gradients.dq(), seqlen_q),
                (gradients.dk(), seqlen_kv),
                (gradients.dv(), seqlen_kv),
            ] {
                // Rows lie as prepared, so those of the second sequence are behind a gap.
                let own = values.iter().filter(|value| !value.is_nan());
                assert_eq!(own.clone().count() == 0, rows == 0, "{call:?}");
                assert!(own.copied().all(|value| value == 0.0), "{values:?}\n{call:?}");
            }
        }
    }
}

#[test]
fn counts_of_zero_pass_through_slices() {
    let library = library(Variant::Full);
    for shape in shapes().filter(|shape| shape.num_heads == 0 || shape.num_heads_kv > 0) {
        let problem = AttentionProblem::new(shape);
        let (rows, keys) = (shape.lse_len() as u32, shape.batch * shape.num_heads_kv * shape.seqlen_kv);
        let [q, k, v, o] = [rows * 8, keys * 8, keys * 5, rows * 5].map(|len| vec![1f32; len as usize]);
        let output = pollster::block_on(library.forward(&problem, &q, &k, &v)).unwrap();
        assert_eq!((output.o.len(), output.lse.len()), (o.len(), rows as usize), "{shape:?}");
        let slices = BackwardSlices::new(&q, &k, &v, &o, &output.lse, &o);
        let BackwardOutput { dq, dk, dv, .. } = pollster::block_on(library.backward(&problem, &slices)).unwrap();
        for (gradient, of) in [(dq, q), (dk, k), (dv, v)] {
            assert_eq!(gradient, vec![0.0; of.len()], "{shape:?}");
        }
    }
}

#[test]
fn counts_of_zero_are_merged() {
    let library = library(Variant::Full);
    let whole = AttentionShape::new(2, 4, 40, 8).with_num_heads_kv(2).with_seqlen_kv(70).with_head_dim_v(5);
    let shapes = with_zeros(whole).chain([whole]).filter(|shape| shape.num_heads == 0 || shape.num_heads_kv > 0);
    for shape in shapes {
        for num_splits in [0, 3] {
            let merge = MergeProblem::of(&AttentionProblem::new(shape), num_splits);
            let prepared = pollster::block_on(library.prepare_merge(&merge)).unwrap();
            let (o_len, lse_len) = (shape.lse_len() * 5, shape.lse_len());
            // Parts that see nothing.
            let parts = u64::from(num_splits);
            let o_parts = filled(library, parts * o_len, f32::NAN);
            let lse_parts = filled(library, parts * lse_len, f32::NEG_INFINITY);
            let (o, lse) = (filled(library, o_len, f32::NAN), filled(library, lse_len, f32::NAN));
            let mut encoder = library.device().create_command_encoder(&Default::default());
            let buffers = MergeBuffers::new(o_parts.slice(..), lse_parts.slice(..), o.slice(..), lse.slice(..));
            prepared.encode(&mut encoder, &buffers).unwrap();
            library.queue().submit([encoder.finish()]);
            let (o, lse) = (read(library, &o), read(library, &lse));
            assert!(o[..o_len as usize].iter().all(|o| *o == 0.0), "{o:?}\n{merge:?}");
            assert!(lse[..lse_len as usize].iter().all(|lse| *lse == f32::NEG_INFINITY), "{lse:?}\n{merge:?}");
            assert!(o[o_len as usize..].iter().chain(&lse[lse_len as usize..]).all(|value| value.is_nan()));
        }
    }
}

/// So many values and four more.
fn filled(library: &Library, len: u64, value: f32) -> wgpu::Buffer {
    let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST;
    let descriptor = wgpu::BufferDescriptor { label: None, size: 4 * (len + 4), usage, mapped_at_creation: false };
    let buffer = library.device().create_buffer(&descriptor);
    library.queue().write_buffer(&buffer, 0, &value.to_le_bytes().repeat(len as usize + 4));
    buffer
}

fn read(library: &Library, buffer: &wgpu::Buffer) -> Vec<f32> {
    let usage = wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST;
    let descriptor = wgpu::BufferDescriptor { label: None, size: buffer.size(), usage, mapped_at_creation: false };
    let copy = library.device().create_buffer(&descriptor);
    let mut encoder = library.device().create_command_encoder(&Default::default());
    encoder.copy_buffer_to_buffer(buffer, 0, &copy, 0, None);
    library.queue().submit([encoder.finish()]);
    copy.slice(..).map_async(wgpu::MapMode::Read, |result| result.expect("the copy can be mapped"));
    library.device().poll(wgpu::PollType::wait_indefinitely()).expect("the GPU finishes");
    let bytes = copy.slice(..).get_mapped_range().expect("the copy is mapped").to_vec();
    bytes.chunks(4).map(|word| f32::from_le_bytes(word.try_into().unwrap())).collect()
}
