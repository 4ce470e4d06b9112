//! What encoding a prepared operation costs the host, in microseconds per encode: nothing is submitted.
//!
//! `cargo bench --bench host_overhead`, and with `--features tracing` what its spans cost, without and under a subscriber.

use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use wgpu_flash_attention::{
    AppendBuffers, AppendProblem, AttentionProblem, AttentionShape, CacheElement, Call, FlashAttention, ForwardBuffers,
    KvCache, Operand, Plan, PreparedForward, Rotary,
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

    let same_call = |prepared: &PreparedForward, count| {
        encodes(&attention, count, |encoder, _| {
            prepared.encode(encoder, &slices(&own)).expect("the buffers fit");
        })
    };
    group.bench_function("the same call", |bencher| bencher.iter_custom(|count| same_call(&prepared, count)));

    let labelled = attention.clone().with_label("bench");
    let labelled = pollster::block_on(labelled.prepare_forward(&problem)).expect("the problem is sound");
    group.bench_function("the same call, with a label", |bencher| {
        bencher.iter_custom(|count| same_call(&labelled, count));
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
    one_token(criterion, &attention);

    // Last, because it stays.
    #[cfg(feature = "tracing")]
    {
        tracing::subscriber::set_global_default(spans::Counted::default()).expect("there is no other");
        let mut group = criterion.benchmark_group("encode");
        group.sample_size(20);
        group.bench_function("the same call, under a subscriber", |bencher| {
            bencher.iter_custom(|count| same_call(&prepared, count));
        });
        group.finish();
    }
}

/// One token of one layer over a cache, as in a generation: every layer has buffers of its own, and the lengths before and after
/// a step change places.
fn one_token(criterion: &mut Criterion, attention: &FlashAttention) {
    const LAYERS: usize = 32;
    let shape = AttentionShape::new(1, 8, 1, 64).with_num_heads_kv(2).with_seqlen_kv(1024);
    let cache = KvCache::paged(&shape, CacheElement::F16, 64, 16);
    let append = AppendProblem::new(shape, cache)
        .with_rotary(Rotary::halves(64, 1024))
        .with_rotated_q_in_place()
        .with_new_cache_seqlens();
    let append = pollster::block_on(attention.prepare_append(&append)).expect("the problem is sound");
    let over = AttentionProblem::new(shape).with_causal().with_cache(cache).with_seqlens_kv_at_call();
    let decode = pollster::block_on(attention.prepare_forward(&over)).expect("the problem is sound");

    let of = |plan: &Plan, operand: Operand| {
        attention.device().create_buffer(&wgpu::BufferDescriptor {
            label: Some(operand.name()),
            size: plan.required_bytes(operand),
            usage: wgpu::BufferUsages::STORAGE,
            mapped_at_creation: false,
        })
    };
    let shared = [Operand::Q, Operand::K, Operand::V, Operand::RotaryCos, Operand::RotarySin]
        .map(|operand| of(append.plan(), operand));
    let lengths = [(); 2].map(|()| of(append.plan(), Operand::CacheSeqlens));
    let layers: Vec<_> = (0..LAYERS)
        .map(|_| {
            let caches =
                [Operand::KCache, Operand::VCache, Operand::PageTable].map(|operand| of(append.plan(), operand));
            (caches, of(decode.plan(), Operand::O), of(decode.plan(), Operand::Lse))
        })
        .collect();
    let mut group = criterion.benchmark_group("encode a token of a layer");
    group.sample_size(20);
    group.bench_function("append and attention", |bencher| {
        bencher.iter_custom(|count| {
            encodes(attention, count, |encoder, index| {
                let ([k_cache, v_cache, table], o, lse) = &layers[index as usize % LAYERS];
                let [q, k, v, cos, sin] = &shared;
                let step = index as usize / LAYERS;
                let [before, after] = [&lengths[step % 2], &lengths[(step + 1) % 2]];
                let buffers = AppendBuffers::new(k.slice(..), v.slice(..), k_cache.slice(..), v_cache.slice(..))
                    .with(Operand::Q, q.slice(..))
                    .with(Operand::RotaryCos, cos.slice(..))
                    .with(Operand::RotarySin, sin.slice(..))
                    .with(Operand::CacheSeqlens, before.slice(..))
                    .with(Operand::NewCacheSeqlens, after.slice(..))
                    .with(Operand::PageTable, table.slice(..));
                append.encode(encoder, &buffers).expect("the buffers fit");
                let own = (q.slice(..), k_cache.slice(..), v_cache.slice(..), o.slice(..), lse.slice(..));
                let buffers = ForwardBuffers::new(own.0, own.1, own.2, own.3, own.4)
                    .with(Operand::SeqlensKv, after.slice(..))
                    .with(Operand::PageTable, table.slice(..));
                decode.encode(encoder, &buffers).expect("the buffers fit");
            })
        });
    });
    group.finish();
}

/// The least that a subscriber can do: it takes every span of the library and counts it.
#[cfg(feature = "tracing")]
mod spans {
    use std::sync::atomic::{AtomicU64, Ordering};
    use tracing::span::{Attributes, Id, Record};
    use tracing::{Event, Metadata, Subscriber};

    #[derive(Default)]
    pub struct Counted(AtomicU64);

    impl Subscriber for Counted {
        fn enabled(&self, metadata: &Metadata) -> bool {
            metadata.target() == "wgpu_flash_attention"
        }

        fn new_span(&self, _: &Attributes) -> Id {
            Id::from_u64(self.0.fetch_add(1, Ordering::Relaxed) + 1)
        }

        fn record(&self, _: &Id, _: &Record) {}
        fn record_follows_from(&self, _: &Id, _: &Id) {}
        fn event(&self, _: &Event) {}
        fn enter(&self, _: &Id) {}
        fn exit(&self, _: &Id) {}
    }
}

criterion_group!(benches, host_overhead);
criterion_main!(benches);
