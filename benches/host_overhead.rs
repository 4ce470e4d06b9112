//! What encoding a prepared forward costs the host, in microseconds per encode: nothing is submitted.
//!
//! `cargo bench --bench host_overhead`

use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use wgpu_flash_attention::{
    AttentionProblem, AttentionShape, Call, FlashAttention, ForwardBuffers, Operand, PreparedForward,
};

/// Encodes that share one command encoder. Making and finishing the encoder is not counted.
const ENCODES: u64 = 64;

const TENSORS: [Operand; 5] = [Operand::Q, Operand::K, Operand::V, Operand::O, Operand::Lse];

fn buffers(attention: &FlashAttention, prepared: &PreparedForward) -> [wgpu::Buffer; 5] {
    TENSORS.map(|operand| {
        attention.device().create_buffer(&wgpu::BufferDescriptor {
            label: Some(operand.name()),
            size: prepared.plan().required_bytes(operand),
            usage: wgpu::BufferUsages::STORAGE,
            mapped_at_creation: false,
        })
    })
}

fn slices([q, k, v, o, lse]: &[wgpu::Buffer; 5]) -> ForwardBuffers<'_> {
    ForwardBuffers::new(q.slice(..), k.slice(..), v.slice(..), o.slice(..), lse.slice(..))
}

/// The time of `count` encodes.
fn encodes(attention: &FlashAttention, count: u64, mut encode: impl FnMut(&mut wgpu::CommandEncoder, u64)) -> Duration {
    let mut spent = Duration::ZERO;
    for first in (0..count).step_by(ENCODES as usize) {
        let mut encoder = attention.device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        let start = Instant::now();
        for index in first..count.min(first + ENCODES) {
            encode(&mut encoder, index);
        }
        spent += start.elapsed();
        drop(encoder);
        // What the encodes wrote is carried out, or it would pile up.
        attention.queue().submit([]);
        attention.device().poll(wgpu::PollType::wait_indefinitely()).expect("the device works");
    }
    spent
}

fn host_overhead(criterion: &mut Criterion) {
    let attention = pollster::block_on(FlashAttention::request()).expect("a benchmark needs an adapter");
    println!("adapter: {}, {}", attention.capabilities().adapter_name, attention.capabilities().driver);
    let problem = AttentionProblem::new(AttentionShape::new(1, 4, 64, 64)).with_dropout(0.1, 1);
    let prepared = pollster::block_on(attention.prepare_forward(&problem)).expect("the problem is sound");
    let own = buffers(&attention, &prepared);
    let mut group = criterion.benchmark_group("encode");
    group.sample_size(20);

    group.bench_function("the same call", |bencher| {
        bencher.iter_custom(|count| {
            encodes(&attention, count, |encoder, _| {
                prepared.encode(encoder, &slices(&own)).expect("the buffers fit");
            })
        });
    });

    let mut seed = 0;
    group.bench_function("a new seed each time", |bencher| {
        bencher.iter_custom(|count| {
            encodes(&attention, count, |encoder, _| {
                seed += 1;
                let call = Call::new().with_philox_seed(seed);
                prepared.encode_call(encoder, &slices(&own), &call).expect("the buffers fit");
            })
        });
    });

    group.bench_function("new buffers each time", |bencher| {
        bencher.iter_custom(|count| {
            let mut spent = Duration::ZERO;
            for first in (0..count).step_by(ENCODES as usize) {
                let count = ENCODES.min(count - first);
                let fresh: Vec<_> = (0..count).map(|_| buffers(&attention, &prepared)).collect();
                spent += encodes(&attention, count, |encoder, index| {
                    prepared.encode(encoder, &slices(&fresh[index as usize])).expect("the buffers fit");
                });
            }
            spent
        });
    });
    group.finish();
}

criterion_group!(benches, host_overhead);
criterion_main!(benches);
