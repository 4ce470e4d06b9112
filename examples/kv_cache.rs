//! A generation over a KV cache: the prompt, then token after token. Lengths stay on the GPU, nothing is prepared again and
//! nothing is read back between the steps. Three prepared operations serve all layers and steps: the append, attention of many
//! rows for the prompt, and attention of one row for the rest.
//!
//! `cargo run --release --example kv_cache` generates, and compares the last rows with those of one long prefill.

use wgpu_flash_attention::{
    AppendBuffers, AppendProblem, AttentionProblem, AttentionShape, CacheElement, Call, FlashAttention, ForwardBuffers,
    KvCache, Operand, Rotary,
};

const LAYERS: usize = 2;
const PROMPT: u32 = 12;
const STEPS: u32 = 20;
const HEADS: (u32, u32) = (8, 2);
const HEAD_DIM: u32 = 64;
const PAGE_SIZE: u32 = 16;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let difference = pollster::block_on(run())?;
    println!("{STEPS} steps of {LAYERS} layers differ from one prefill by {difference:.1e}");
    if difference > 1e-4 {
        return Err("the two do not agree".into());
    }
    Ok(())
}

/// A number that stands for what a model would compute: Q, K or V of a layer and token.
fn value(of: f32, layer: usize, token: u32, n: usize) -> f32 {
    ((layer * 1000 + token as usize * 77 + n) as f32 * of).sin()
}

/// How far the rows of the last step are from those of a prefill of all tokens, at most.
async fn run() -> Result<f32, Box<dyn std::error::Error>> {
    let attention = FlashAttention::request().await?;
    let (device, queue) = (attention.device().clone(), attention.queue().clone());
    let total = PROMPT + STEPS;
    let pages = total.div_ceil(PAGE_SIZE);
    // At most PROMPT rows in a call, at most `total` positions in the cache.
    let shape = AttentionShape::new(1, HEADS.0, PROMPT, HEAD_DIM).with_num_heads_kv(HEADS.1).with_seqlen_kv(total);
    let cache = KvCache::paged(&shape, CacheElement::F32, LAYERS as u32 * pages, PAGE_SIZE);

    // Once.
    let rotary = Rotary::halves(HEAD_DIM, total);
    let append =
        AppendProblem::new(shape, cache).with_rotary(rotary).with_rotated_q_in_place().with_new_cache_seqlens();
    let append = attention.prepare_append(&append).await?;
    let over = |seqlen_q| {
        let problem = AttentionProblem::new(AttentionShape { seqlen_q, ..shape }).with_causal();
        problem.with_cache(cache).with_seqlens_kv_at_call()
    };
    let prefill = attention.prepare_forward(&over(PROMPT)).await?;
    let decode = attention.prepare_forward(&over(1)).await?;

    let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST | wgpu::BufferUsages::COPY_SRC;
    let buffer = |size: u64| {
        device.create_buffer(&wgpu::BufferDescriptor {
            label: None,
            size: size.max(16),
            usage,
            mapped_at_creation: false,
        })
    };
    let of_append = |operand| buffer(append.plan().required_bytes(operand));
    let of_prefill = |operand| buffer(prefill.plan().required_bytes(operand));
    // One pool of pages for all layers; each has a page table of its own.
    let (k_cache, v_cache) = (of_append(Operand::KCache), of_append(Operand::VCache));
    let tables: Vec<wgpu::Buffer> = (0..LAYERS as u32)
        .map(|layer| {
            let table = of_append(Operand::PageTable);
            let entries: Vec<u32> = (0..pages).map(|page| page * LAYERS as u32 + layer).collect();
            queue.write_buffer(&table, 0, bytemuck::cast_slice(&entries));
            table
        })
        .collect();
    // The length before a step, and after it, by turns. Buffers start as 0.
    let lengths = [of_append(Operand::CacheSeqlens), of_append(Operand::CacheSeqlens)];
    let [cos, sin] = [of_append(Operand::RotaryCos), of_append(Operand::RotarySin)];
    let angle = |n: u32| (n / (HEAD_DIM / 2)) as f32 / 1e4f32.powf((n % (HEAD_DIM / 2)) as f32 * 2.0 / HEAD_DIM as f32);
    let angles: Vec<f32> = (0..total * HEAD_DIM / 2).map(angle).collect();
    let [cosines, sines] =
        [f32::cos, f32::sin].map(|f: fn(f32) -> f32| angles.iter().map(|a| f(*a)).collect::<Vec<_>>());
    queue.write_buffer(&cos, 0, bytemuck::cast_slice(&cosines));
    queue.write_buffer(&sin, 0, bytemuck::cast_slice(&sines));
    let [q, k, v] = [of_append(Operand::Q), of_append(Operand::K), of_append(Operand::V)];
    let outputs: Vec<_> = (0..LAYERS).map(|_| (of_prefill(Operand::O), of_prefill(Operand::Lse))).collect();

    // Many times: the prompt, then a token a step. Each layer is one append and one attention.
    let mut first = 0;
    for step in 0..=STEPS {
        let count = if step == 0 { PROMPT } else { 1 };
        let call = Call::new().with_seqlen_q(count);
        let [before, after] = [&lengths[step as usize % 2], &lengths[(step as usize + 1) % 2]];
        for (layer, (o, lse)) in outputs.iter().enumerate() {
            for (buffer, of, heads) in [(&q, 0.37, HEADS.0), (&k, 0.73, HEADS.1), (&v, 0.91, HEADS.1)] {
                let row = (heads * HEAD_DIM) as usize;
                let values = (first..first + count).flat_map(|token| (0..row).map(move |n| value(of, layer, token, n)));
                queue.write_buffer(buffer, 0, bytemuck::cast_slice(&values.collect::<Vec<f32>>()));
            }
            let mut encoder = device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
            let buffers = AppendBuffers::new(k.slice(..), v.slice(..), k_cache.slice(..), v_cache.slice(..))
                .with(Operand::Q, q.slice(..))
                .with(Operand::CacheSeqlens, before.slice(..))
                .with(Operand::NewCacheSeqlens, after.slice(..))
                .with(Operand::PageTable, tables[layer].slice(..))
                .with(Operand::RotaryCos, cos.slice(..))
                .with(Operand::RotarySin, sin.slice(..));
            append.encode_call(&mut encoder, &buffers, &call)?;
            let slices = (q.slice(..), k_cache.slice(..), v_cache.slice(..), o.slice(..), lse.slice(..));
            let buffers = ForwardBuffers::new(slices.0, slices.1, slices.2, slices.3, slices.4)
                .with(Operand::SeqlensKv, after.slice(..))
                .with(Operand::PageTable, tables[layer].slice(..));
            let forward = if step == 0 { &prefill } else { &decode };
            forward.encode(&mut encoder, &buffers)?;
            queue.submit([encoder.finish()]);
        }
        first += count;
    }

    // One prefill of all tokens, for comparison: each layer's keys, rotated as rows that are appended to nothing.
    let mut largest = 0f32;
    for (layer, (o, _)) in outputs.iter().enumerate() {
        let found = read(&device, &queue, o, (HEADS.0 * HEAD_DIM) as usize)?;
        let rows = |of: f32, heads: u32| -> Vec<f32> {
            let row = (heads * HEAD_DIM) as usize;
            (0..total).flat_map(|token| (0..row).map(move |n| value(of, layer, token, n))).collect()
        };
        let turned = |mut values: Vec<f32>, heads: u32| {
            for (n, row) in values.chunks_mut(HEAD_DIM as usize).enumerate() {
                let half = row.len() / 2;
                for pair in 0..half {
                    let entry = n / heads as usize * half + pair;
                    let (x, y) = (row[pair], row[pair + half]);
                    row[pair] = x * cosines[entry] - y * sines[entry];
                    row[pair + half] = x * sines[entry] + y * cosines[entry];
                }
            }
            values
        };
        let whole = AttentionProblem::new(AttentionShape { seqlen_q: total, ..shape }).with_causal();
        let [q, k] = [turned(rows(0.37, HEADS.0), HEADS.0), turned(rows(0.73, HEADS.1), HEADS.1)];
        let expected = attention.forward(&whole, &q, &k, &rows(0.91, HEADS.1)).await?;
        let last = &expected.o[expected.o.len() - found.len()..];
        if found.iter().any(|value| !value.is_finite()) {
            return Err(format!("layer {layer} gave {:?}", &found[..4]).into());
        }
        largest = found.iter().zip(last).map(|(a, b)| (a - b).abs()).fold(largest, f32::max);
    }
    Ok(largest)
}

/// The first f32 of a buffer.
fn read(
    device: &wgpu::Device,
    queue: &wgpu::Queue,
    source: &wgpu::Buffer,
    len: usize,
) -> Result<Vec<f32>, Box<dyn std::error::Error>> {
    let size = len as u64 * 4;
    let usage = wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST;
    let target = device.create_buffer(&wgpu::BufferDescriptor { label: None, size, usage, mapped_at_creation: false });
    let mut encoder = device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
    encoder.copy_buffer_to_buffer(source, 0, &target, 0, size);
    queue.submit([encoder.finish()]);
    target.map_async(wgpu::MapMode::Read, .., |result| result.expect("the result can be read"));
    device.poll(wgpu::PollType::wait_indefinitely())?;
    Ok(bytemuck::cast_slice(&target.get_mapped_range(..)?).to_vec())
}
