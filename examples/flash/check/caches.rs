//! Attention over a cache: appends the keys of sequences of many lengths to a cache of NaN, then attends, against the oracle on
//! what the cache holds.

use half::{bf16, f16};
use wgpu_flash_attention::reference::{self, ErrorTerms};
use wgpu_flash_attention::{
    AppendProblem, AppendSlices, AttentionProblem, AttentionShape, CacheElement, CacheSlices, CacheType, Element,
    ElementType, KvCache,
};

use super::{Inputs, Report, arithmetic, exact, plan};
use crate::arguments::{CacheChoice, Pass};
use crate::bench::cache;
use crate::device::Gpu;
use crate::failure::Result;

/// How K and V are stored, and how many positions each sequence has.
pub struct Cached {
    pub choice: CacheChoice,
    pub lengths: Vec<u32>,
}

/// K and V in a cache.
struct Caches<C> {
    k: Vec<C>,
    v: Vec<C>,
    page_table: Vec<u32>,
}

/// Appends, attends, and adds both to the report.
pub async fn compare<T: ElementType>(
    gpu: &Gpu,
    group: &'static str,
    problem: &AttentionProblem,
    cached: &Cached,
    report: &mut Report,
) {
    let cache = cache::of(cached.choice, &problem.shape, T::ELEMENT);
    let rows = vec![problem.shape.seqlen_q; problem.shape.batch as usize];
    let dense = problem.clone().with_lengths(rows, cached.lengths.clone());
    let done = match cache.element {
        CacheElement::F32 => compare_in::<T, f32>(gpu, group, &dense, cached, &cache, report).await,
        CacheElement::F16 => compare_in::<T, f16>(gpu, group, &dense, cached, &cache, report).await,
        CacheElement::Bf16 => compare_in::<T, bf16>(gpu, group, &dense, cached, &cache, report).await,
        _ => compare_in::<T, u32>(gpu, group, &dense, cached, &cache, report).await,
    };
    if let Err(failure) = done {
        let row = report.row(gpu, group, &dense.with_cache(cache), Pass::Forward);
        row.failure.get_or_insert_with(|| failure.line().to_owned());
    }
}

async fn compare_in<T: ElementType, C: CacheType>(
    gpu: &Gpu,
    group: &'static str,
    dense: &AttentionProblem,
    Cached { lengths, .. }: &Cached,
    cache: &KvCache,
    report: &mut Report,
) -> Result<()> {
    let inputs = Inputs::<T>::new(dense);
    let problem = dense.clone().with_cache(*cache);
    let row = report.row(gpu, group, &problem, Pass::Forward);
    row.cases += 1;
    let caches = append::<T, C>(gpu, dense, lengths, cache, &inputs).await?;
    let mut held = [&inputs.k, &inputs.v].map(|values| exact(values));
    let shape = &dense.shape;
    let of_k = ("k_cache", &caches.k, cache.k, dense.layout.k, shape.head_dim);
    let of_v = ("v_cache", &caches.v, cache.v, dense.layout.v, shape.head_dim_v);
    for (held, (name, entries, in_cache, layout, dim)) in held.iter_mut().zip([of_k, of_v]) {
        for (batch, key, head) in places(shape, lengths) {
            let (page, in_page) = place_in(cache, &caches.page_table, batch, key);
            let first = in_cache.index(page, in_page, head) as usize;
            let found = values(&entries[first..][..cache.element.row_len(dim) as usize], dim);
            let held = &mut held[layout.index(batch, key, head) as usize..][..dim as usize];
            // int8 loses half a step, and a little more, because the step itself is rounded.
            let largest = held.iter().fold(0f64, |largest, value| largest.max(value.abs()));
            let bounds = vec![largest / 127.0 * 0.50001; dim as usize];
            row.add(Element::F32, (&found, held, &bounds), &problem, name);
            held.copy_from_slice(&found);
        }
    }

    let (q, [k, v], case) = (exact(&inputs.q), held, inputs.case(dense));
    let oracle = reference::forward(case, &q, &k, &v);
    let errors = reference::forward_errors(case, &q, &k, &v);
    let mut slices = CacheSlices::new(&inputs.q, &caches.k, &caches.v);
    if cache.pages.is_some() {
        slices = slices.with_page_table(&caches.page_table);
    }
    if let Some(sink) = &inputs.sink {
        slices = slices.with_sink(sink);
    }
    let answer = gpu.attention.forward_over_cache(&problem, &slices).await?;
    gpu.fault()?;
    let arithmetic = arithmetic(plan(gpu, &problem, Pass::Forward).as_ref());
    let bounds = |errors: &[ErrorTerms]| errors.iter().map(|error| error.bound(&arithmetic)).collect::<Vec<_>>();
    row.add(T::ELEMENT, (&exact(&answer.o), &oracle.o, &bounds(&errors.o)), &problem, "o");
    row.add(Element::F32, (&exact(&answer.lse), &oracle.lse, &bounds(&errors.lse)), &problem, "lse");
    Ok(())
}

/// The first positions of each sequence in a cache that holds NaN elsewhere, and in pages that are no neighbours.
async fn append<T: ElementType, C: CacheType>(
    gpu: &Gpu,
    dense: &AttentionProblem,
    lengths: &[u32],
    cache: &KvCache,
    inputs: &Inputs<T>,
) -> Result<Caches<C>> {
    let shape = AttentionShape { seqlen_q: dense.shape.seqlen_kv, ..dense.shape };
    // The keys of a sequence lie side by side, so those that count are a part of the tensor.
    let packed = |values: &[T], dim: u32| -> Vec<T> {
        let row = (shape.num_heads_kv * dim) as usize;
        let of_sequence = |batch: usize| &values[batch * shape.seqlen_kv as usize * row..];
        let of_each = lengths.iter().enumerate().map(|(batch, length)| &of_sequence(batch)[..*length as usize * row]);
        of_each.flatten().copied().collect()
    };
    let (k, v) = (packed(&inputs.k, shape.head_dim), packed(&inputs.v, shape.head_dim_v));
    let mut sums = vec![0];
    sums.extend(lengths.iter().scan(0, |sum, length| {
        *sum += length;
        Some(*sum)
    }));
    // Bytes of ones are NaN in every type.
    let nan = |len: Option<u64>| -> Vec<C> {
        bytemuck::pod_collect_to_vec(&vec![0xff_u8; len.unwrap_or(0) as usize * size_of::<C>()])
    };
    let (k_cache, v_cache) = (nan(cache.required_len_of_k(&shape)), nan(cache.required_len_of_v(&shape)));
    let page_table = cache::page_table(cache, shape.batch);
    let append = AppendProblem::new(shape, *cache).with_element(T::ELEMENT);
    let append = append.with_packed_tokens(lengths.iter().sum());
    let nothing = vec![0; shape.batch as usize];
    let mut slices =
        AppendSlices::new(&k, &v, &k_cache, &v_cache).with_cache_seqlens(&nothing).with_cu_seqlens_new(&sums);
    if cache.pages.is_some() {
        slices = slices.with_page_table(&page_table);
    }
    let output = gpu.attention.append(&append, &slices).await?;
    Ok(Caches { k: output.k_cache, v: output.v_cache, page_table })
}

/// All that sequences of these lengths have: sequence, key and head.
fn places(shape: &AttentionShape, lengths: &[u32]) -> impl Iterator<Item = (u32, u32, u32)> {
    let heads = shape.num_heads_kv;
    let keys = (0..).zip(lengths).flat_map(|(batch, length)| (0..*length).map(move |key| (batch, key)));
    keys.flat_map(move |(batch, key)| (0..heads).map(move |head| (batch, key, head)))
}

/// The page of a key, and its row there.
fn place_in(cache: &KvCache, page_table: &[u32], batch: u32, key: u32) -> (u32, u32) {
    match cache.pages {
        Some(pages) => (page_table[(batch * pages.max_pages + key / pages.page_size) as usize], key % pages.page_size),
        None => (batch, key),
    }
}

/// What a row of a cache stands for.
fn values<C: CacheType>(entries: &[C], dim: u32) -> Vec<f64> {
    match C::CACHE_ELEMENT {
        CacheElement::F32 => exact::<f32>(bytemuck::cast_slice(entries)),
        CacheElement::F16 => exact::<f16>(bytemuck::cast_slice(entries)),
        CacheElement::Bf16 => exact::<bf16>(bytemuck::cast_slice(entries)),
        _ => reference::dequantized(bytemuck::cast_slice(entries), dim),
    }
}
