//! Forward attention on the adapter at hand: flash beside standard. `flash bench` is the tool for records.
//!
//! `cargo bench --bench attention`

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use wgpu_flash_attention::{
    Algorithm, AttentionProblem, AttentionShape, FlashAttention, ForwardBuffers, Operand, reference,
};

fn forward(criterion: &mut Criterion) {
    let attention = pollster::block_on(FlashAttention::request()).expect("a benchmark needs an adapter");
    let (device, queue) = (attention.device(), attention.queue());
    println!("adapter: {}, {}", attention.capabilities().adapter_name, attention.capabilities().driver);
    let mut group = criterion.benchmark_group("forward f32 1x4xNx64");
    group.sample_size(10);
    for seqlen in [256, 512, 1024] {
        for algorithm in [Algorithm::Flash, Algorithm::Standard] {
            let problem = AttentionProblem::new(AttentionShape::new(1, 4, seqlen, 64)).with_algorithm(algorithm);
            let prepared = pollster::block_on(attention.prepare_forward(&problem)).expect("the problem is sound");
            let values = |operand: Operand| -> Vec<f32> {
                let phase = operand.binding() as f32;
                (0..prepared.plan().required_len(operand)).map(|i| (i as f32 * 0.37 + phase).sin()).collect()
            };
            let inputs = [Operand::Q, Operand::K, Operand::V].map(values);

            // A speed counts when the answer is right.
            let [q, k, v] = &inputs;
            let output = pollster::block_on(attention.forward(&problem, q, k, v)).expect("the device works");
            let [q64, k64, v64] = [q, k, v].map(|values| values.iter().map(|&x| f64::from(x)).collect::<Vec<_>>());
            let (row, _) = reference::forward_row(&problem, &q64, &k64, &v64, 0, 3, seqlen - 1);
            for (found, expected) in output.o[output.o.len() - 64..].iter().zip(row) {
                assert!((f64::from(*found) - expected).abs() < 1e-5, "{found} should be {expected}");
            }

            let buffer = |operand: Operand| {
                device.create_buffer(&wgpu::BufferDescriptor {
                    label: Some(operand.name()),
                    size: prepared.plan().required_bytes(operand),
                    usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST,
                    mapped_at_creation: false,
                })
            };
            let [q, k, v, o, lse] = [Operand::Q, Operand::K, Operand::V, Operand::O, Operand::Lse].map(buffer);
            for (buffer, values) in [&q, &k, &v].into_iter().zip(&inputs) {
                queue.write_buffer(buffer, 0, bytemuck::cast_slice(values));
            }
            let buffers = ForwardBuffers::new(q.slice(..), k.slice(..), v.slice(..), o.slice(..), lse.slice(..));
            group.throughput(Throughput::Elements(problem.forward_flops()));
            group.bench_function(BenchmarkId::new(algorithm.name(), seqlen), |bencher| {
                bencher.iter(|| {
                    let mut encoder = device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
                    prepared.encode(&mut encoder, &buffers).expect("the buffers fit");
                    queue.submit([encoder.finish()]);
                    device.poll(wgpu::PollType::wait_indefinitely()).expect("the device works");
                });
            });
        }
    }
    group.finish();
}

criterion_group!(benches, forward);
criterion_main!(benches);
