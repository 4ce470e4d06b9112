//! Many decode steps of two prepared operations: no memory grows, and each row is that of one prefill. A program by itself, because
//! it looks at the memory of its process.

use std::time::Instant;

use wgpu_flash_attention::reference::{self, Arithmetic};
use wgpu_flash_attention::{
    AppendBuffers, AppendProblem, AttentionProblem, AttentionShape, CacheElement, FlashAttention, ForwardBuffers,
    KvCache, Operand, Plan,
};

const HEADS: u32 = 2;
const DIM: u32 = 16;
/// Bytes of a row of Q or O, and of K or V.
const ROW: u64 = HEADS as u64 * DIM as u64 * 4;
const ROW_KV: u64 = DIM as u64 * 4;
const PAGE_SIZE: u32 = 16;
/// Steps that share an encoder.
const AT_ONCE: u32 = 10;

fn values(of: f64, rows: u32, heads: u32) -> Vec<f32> {
    (0..rows * heads * DIM).map(|index| ((f64::from(index) * of).sin() * 1.5) as f32).collect()
}

fn buffer(attention: &FlashAttention, bytes: u64) -> wgpu::Buffer {
    let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST;
    let descriptor = wgpu::BufferDescriptor { label: None, size: bytes, usage, mapped_at_creation: false };
    attention.device().create_buffer(&descriptor)
}

fn filled<T: bytemuck::Pod>(attention: &FlashAttention, values: &[T]) -> wgpu::Buffer {
    let buffer = buffer(attention, size_of_val(values) as u64);
    attention.queue().write_buffer(&buffer, 0, bytemuck::cast_slice(values));
    buffer
}

fn read(attention: &FlashAttention, source: &wgpu::Buffer) -> Vec<f32> {
    let size = source.size();
    let usage = wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST;
    let descriptor = wgpu::BufferDescriptor { label: None, size, usage, mapped_at_creation: false };
    let copy = attention.device().create_buffer(&descriptor);
    let mut encoder = attention.device().create_command_encoder(&Default::default());
    encoder.copy_buffer_to_buffer(source, 0, &copy, 0, size);
    attention.queue().submit([encoder.finish()]);
    copy.map_async(wgpu::MapMode::Read, .., |result| result.expect("the copy can be mapped"));
    wait(attention);
    bytemuck::cast_slice(&copy.get_mapped_range(..).expect("the copy is mapped")).to_vec()
}

fn wait(attention: &FlashAttention) {
    attention.device().poll(wgpu::PollType::wait_indefinitely()).expect("the GPU finishes");
}

/// Bytes of this process in memory, where the system says so, and of the device, where the driver does.
fn memory(attention: &FlashAttention) -> [Option<u64>; 2] {
    let pages = std::fs::read_to_string("/proc/self/statm").ok();
    let of_host = pages.and_then(|pages| Some(pages.split(' ').nth(1)?.parse::<u64>().ok()? * 4096));
    let of_device = attention.device().generate_allocator_report().map(|report| report.total_allocated_bytes);
    [of_host, of_device]
}

/// How the kernels of a plan compute in f32.
fn arithmetic_of(plan: &Plan) -> Arithmetic {
    let on_matrices = plan.passes().iter().any(|pass| pass.kernel.name().contains("cooperative"));
    let arithmetic = if on_matrices { Arithmetic::MATRICES_IN_PARTS } else { Arithmetic::F32 };
    if plan.num_splits() > 1 { arithmetic.merging() } else { arithmetic }
}

/// Generates so many tokens, one after the other, over a cache in pages.
fn generate(steps: u32) {
    let attention = pollster::block_on(FlashAttention::request()).expect("these tests need a GPU adapter");
    let shape = AttentionShape::new(1, HEADS, 1, DIM).with_num_heads_kv(1).with_seqlen_kv(steps);
    let num_pages = steps.div_ceil(PAGE_SIZE);
    let cache = KvCache::paged(&shape, CacheElement::F32, num_pages, PAGE_SIZE);
    let append = AppendProblem::new(shape, cache).with_new_cache_seqlens();
    let append = pollster::block_on(attention.prepare_append(&append)).expect("the append can be prepared");
    let over = |seqlen_q| {
        let problem = AttentionProblem::new(AttentionShape { seqlen_q, ..shape }).with_causal();
        problem.with_cache(cache).with_seqlens_kv_at_call()
    };
    let decode = pollster::block_on(attention.prepare_forward(&over(1))).expect("attention can be prepared");

    // All tokens are there from the start; a step copies its own to the buffers that all steps use.
    let [q, k, v] = [(0.37, HEADS), (0.73, 1), (0.91, 1)].map(|(of, heads)| values(of, steps, heads));
    let all = [&q, &k, &v].map(|values| filled(&attention, values));
    let row_sizes = [ROW, ROW_KV, ROW_KV];
    let of_step = row_sizes.map(|bytes| buffer(&attention, bytes));
    let [q_row, k_row, v_row] = &of_step;
    let [k_cache, v_cache] =
        [Operand::KCache, Operand::VCache].map(|operand| buffer(&attention, append.plan().required_bytes(operand)));
    let page = |entry: u32| (u64::from(entry) * 7919 % u64::from(num_pages)) as u32;
    let table = filled(&attention, &(0..num_pages).map(page).collect::<Vec<_>>());
    let lengths = [0; 2].map(|length: u32| filled(&attention, &[length]));
    let (o, lse) = (buffer(&attention, ROW), buffer(&attention, u64::from(HEADS) * 4));
    let all_o = buffer(&attention, u64::from(steps) * ROW);

    // Only what encodes takes counts, not what copies the rows.
    let mut encoding = std::time::Duration::ZERO;
    let mut settled = [None; 2];
    for first in (0..steps).step_by(AT_ONCE as usize) {
        let mut encoder = attention.device().create_command_encoder(&Default::default());
        for step in first..steps.min(first + AT_ONCE) {
            for ((from, to), bytes) in all.iter().zip(&of_step).zip(row_sizes) {
                encoder.copy_buffer_to_buffer(from, u64::from(step) * bytes, to, 0, bytes);
            }
            let [before, after] = [&lengths[step as usize % 2], &lengths[(step as usize + 1) % 2]];
            let start = Instant::now();
            let buffers = AppendBuffers::new(k_row.slice(..), v_row.slice(..), k_cache.slice(..), v_cache.slice(..))
                .with(Operand::CacheSeqlens, before.slice(..))
                .with(Operand::NewCacheSeqlens, after.slice(..))
                .with(Operand::PageTable, table.slice(..));
            append.encode(&mut encoder, &buffers).expect("the append can be encoded");
            let slices = (q_row.slice(..), k_cache.slice(..), v_cache.slice(..), o.slice(..), lse.slice(..));
            let buffers = ForwardBuffers::new(slices.0, slices.1, slices.2, slices.3, slices.4)
                .with(Operand::SeqlensKv, after.slice(..))
                .with(Operand::PageTable, table.slice(..));
            decode.encode(&mut encoder, &buffers).expect("attention can be encoded");
            encoding += start.elapsed();
            encoder.copy_buffer_to_buffer(&o, 0, &all_o, u64::from(step) * ROW, ROW);
        }
        attention.queue().submit([encoder.finish()]);
        wait(&attention);
        // By then all that is made once is there.
        if first == steps / 4 / AT_ONCE * AT_ONCE {
            settled = memory(&attention);
        }
    }
    let at_end = memory(&attention);
    println!("{steps} steps: {:.1} µs each to encode", encoding.as_secs_f64() * 1e6 / f64::from(steps));
    for ((before, after), name) in settled.into_iter().zip(at_end).zip(["host", "device"]) {
        println!("{name}: {before:?} bytes after a quarter of the steps, {after:?} bytes after all");
        if let (Some(before), Some(after)) = (before, after) {
            // Allocators round; a bind group or a uniform for each step would be megabytes over a long generation.
            assert!(after <= before + before / 50, "{name}: {before} bytes became {after}");
        }
    }
    let found = read(&attention, &all_o);

    // One prefill of all rows over the same cache.
    let prefill = pollster::block_on(attention.prepare_forward(&over(steps))).expect("attention can be prepared");
    let q_all = &all[0];
    let (o, lse) = (buffer(&attention, u64::from(steps) * ROW), buffer(&attention, u64::from(steps * HEADS) * 4));
    let slices = (q_all.slice(..), k_cache.slice(..), v_cache.slice(..), o.slice(..), lse.slice(..));
    let buffers = ForwardBuffers::new(slices.0, slices.1, slices.2, slices.3, slices.4)
        .with(Operand::SeqlensKv, lengths[steps as usize % 2].slice(..))
        .with(Operand::PageTable, table.slice(..));
    let mut encoder = attention.device().create_command_encoder(&Default::default());
    prefill.encode(&mut encoder, &buffers).expect("attention can be encoded");
    attention.queue().submit([encoder.finish()]);
    let expected = read(&attention, &o);

    // Both are within the oracle's bounds of a row, which is that of one query over the keys up to it.
    let exact = |values: &[f32]| values.iter().map(|value| f64::from(*value)).collect::<Vec<_>>();
    let arithmetics = [arithmetic_of(decode.plan()), arithmetic_of(prefill.plan())];
    for step in (0..steps).step_by((steps / 50) as usize).chain([steps - 1]) {
        let row = (step * HEADS * DIM) as usize..((step + 1) * HEADS * DIM) as usize;
        let problem = AttentionProblem::new(shape.with_seqlen_kv(step + 1));
        let keys = ((step + 1) * DIM) as usize;
        let (q, k, v) = (exact(&q[row.clone()]), exact(&k[..keys]), exact(&v[..keys]));
        let oracle = reference::forward(&problem, &q, &k, &v).o;
        let errors = reference::forward_errors(&problem, &q, &k, &v).o;
        for (answer, arithmetic) in [&found, &expected].into_iter().zip(&arithmetics) {
            for ((found, expected), error) in answer[row.clone()].iter().zip(&oracle).zip(&errors) {
                let (off, bound) = ((f64::from(*found) - expected).abs(), error.bound(arithmetic));
                assert!(off <= bound, "step {step}: {off} from the oracle, {bound} is the most");
            }
        }
    }
    let near = |(a, b): (&f32, &f32)| (a - b).abs() < 1e-5;
    assert!(found.iter().zip(&expected).all(near), "each step gives what the prefill gives");
}

#[test]
fn a_few_hundred_steps() {
    generate(400);
}

/// `cargo test --release --test generation -- --ignored --nocapture`
#[test]
#[ignore = "takes minutes on a software driver"]
fn ten_thousand_steps() {
    generate(10_000);
}
