//! K and V in a cache.

use wgpu_flash_attention::{
    AppendBuffers, AppendProblem, AttentionLayout, AttentionProblem, AttentionShape, CacheElement, Element, KvCache,
    Operand,
};

use crate::arguments::CacheChoice;
use crate::device::Gpu;
use crate::failure::Result;
use crate::resident::{self, Resident};

pub fn name(choice: CacheChoice) -> String {
    match choice {
        CacheChoice::Contiguous => "over a cache".to_owned(),
        CacheChoice::Paged(size) => format!("over a cache in pages of {size}"),
        CacheChoice::Int8 => "over a cache in int8".to_owned(),
    }
}

/// A cache of all keys of a problem of this shape, in its element or int8.
pub fn of(choice: CacheChoice, shape: &AttentionShape, element: Element) -> KvCache {
    match choice {
        CacheChoice::Contiguous => KvCache::contiguous(shape, element.into()),
        CacheChoice::Int8 => KvCache::contiguous(shape, CacheElement::Int8),
        CacheChoice::Paged(size) => {
            KvCache::paged(shape, element.into(), shape.batch.saturating_mul(shape.seqlen_kv.div_ceil(size)), size)
        }
    }
}

/// The problem over a cache of all its keys, with their number in a buffer.
pub fn over(choice: CacheChoice, problem: &AttentionProblem) -> AttentionProblem {
    problem.clone().with_cache(of(choice, &problem.shape, problem.element)).with_seqlens_kv_at_call()
}

/// A page for each entry, where neighbours in a sequence are far apart in the cache. Empty without pages.
pub fn page_table(cache: &KvCache, batch: u32) -> Vec<u32> {
    let Some(pages) = cache.pages else { return Vec::new() };
    let step = if pages.num_pages.is_multiple_of(7919) { 1 } else { 7919 };
    let page = |entry: u32| (u64::from(entry) * step + 5) % u64::from(pages.num_pages.max(1));
    (0..batch * pages.max_pages).map(|entry| page(entry) as u32).collect()
}

/// Appends K and V of the dense problem to the empty cache of `over`, which then takes their place.
pub async fn fill(gpu: &Gpu, dense: &AttentionProblem, over: &AttentionProblem, tensors: &mut Resident) -> Result<()> {
    let Some(cache) = over.cache().copied() else { return Ok(()) };
    let shape = AttentionShape { seqlen_q: dense.shape.seqlen_kv, ..dense.shape };
    let AttentionLayout { k, v, .. } = dense.layout;
    let append =
        AppendProblem::new(shape, cache).with_element(dense.element).with_layout(AttentionLayout { k, v, q: k, o: k });
    let prepared = gpu.attention.prepare_append(&append).await?;
    let of = |words: Vec<u32>| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>();
    tensors.add(gpu, Operand::SeqlensKv, of(vec![shape.seqlen_kv; shape.batch as usize])).await?;
    tensors.add(gpu, Operand::CacheSeqlens, of(vec![0; shape.batch as usize])).await?;
    if cache.pages.is_some() {
        tensors.add(gpu, Operand::PageTable, of(page_table(&cache, shape.batch))).await?;
    }
    let bytes = |operand| prepared.plan().required_bytes(operand);
    let k_cache = resident::buffer(gpu, "K cache", bytes(Operand::KCache)).await?;
    let v_cache = resident::buffer(gpu, "V cache", bytes(Operand::VCache)).await?;
    let lengths = tensors.take(Operand::CacheSeqlens);
    let table = tensors.entry(Operand::PageTable).map(|table| table.slice(..));
    let (k, v) = (tensors.k.slice(..), tensors.v.slice(..));
    let buffers = AppendBuffers::new(k, v, k_cache.slice(..), v_cache.slice(..))
        .with(Operand::CacheSeqlens, lengths.as_ref().map(|lengths| lengths.slice(..)))
        .with(Operand::PageTable, table);
    let mut encoder = gpu.attention.device().create_command_encoder(&Default::default());
    prepared.encode(&mut encoder, &buffers)?;
    gpu.attention.queue().submit([encoder.finish()]);
    (tensors.k, tensors.v) = (k_cache, v_cache);
    gpu.wait()
}
