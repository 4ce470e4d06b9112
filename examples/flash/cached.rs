//! `flash run` over a KV cache: append, then attend. Rotary embeddings, with and without a cache.

use std::io::Write;

use half::{bf16, f16};
use safetensors::tensor::{Dtype, TensorView};
use serde::Serialize;
use wgpu_flash_attention::{
    AppendProblem, AppendSlices, AttentionLayout, AttentionProblem, AttentionShape, AuxType, CacheElement, CacheSlices,
    CacheType, Element, ElementType, ForwardOutput, KvCache, MAX_LENGTH, Rotary, TensorLayout,
};

use crate::arguments::{Layout, Pairs, RunAlgorithm, RunOptions};
use crate::device::{self, Gpu};
use crate::failure::{Failure, Result};
use crate::target::Target;
use crate::tensors::{File, Inputs};
use crate::{elements, run, text};

/// Calls a generic function for a type of elements.
macro_rules! by_element {
    ($element:expr, $function:ident::<T>($($argument:expr),*)) => {
        match $element {
            Element::F32 => $function::<f32>($($argument),*).await,
            Element::F16 => $function::<f16>($($argument),*).await,
            Element::Bf16 => $function::<bf16>($($argument),*).await,
            other => elements::unknown(other),
        }
    };
}

/// What was run, for people and for `--json`.
#[derive(Serialize)]
struct Summary {
    batch: u32,
    heads: u32,
    heads_kv: u32,
    seqlen_q: u32,
    capacity: u32,
    head_dim: u32,
    head_dim_v: u32,
    element: &'static str,
    cache: String,
    appended: bool,
    with: Vec<String>,
    adapter: String,
    kernel: String,
    num_splits: u32,
}

/// Tables of rotary embeddings.
pub struct Rotation {
    rotary: Rotary,
    /// Sequences and tokens of the tables, if they have a row for each token.
    of_tokens: Option<[u32; 2]>,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

/// Rows to rotate: the layout and `[batch, heads, rows, dim]`, the position of each sequence's first, and where sequences start if
/// they are packed.
pub struct Rows<'a> {
    pub name: &'static str,
    pub layout: TensorLayout,
    pub counts: [u32; 4],
    pub firsts: &'a [u32],
    pub sums: Option<&'a [u32]>,
}

/// New keys and values.
struct New<'a> {
    k: &'a [u8],
    v: &'a [u8],
    /// Of a sequence, at most.
    seqlen: u32,
    /// Where sequences start among them, if they are packed.
    sums: Option<Vec<u32>>,
}

/// What a file says of a cache.
struct Case<'a> {
    /// `seqlen_q` rows of Q at most, `seqlen_kv` positions at most.
    shape: AttentionShape,
    layout: Layout,
    element: Element,
    q: &'a [u8],
    new: Option<New<'a>>,
    cache: KvCache,
    k_cache: &'a [u8],
    v_cache: &'a [u8],
    cache_dims: [Vec<u32>; 2],
    cache_seqlens: Vec<u32>,
    page_table: Option<Vec<u32>>,
    slot_mapping: Option<Vec<u32>>,
    cu_seqlens_q: Option<Vec<u32>>,
}

/// The caches after the append.
struct Caches {
    k: Vec<u8>,
    v: Vec<u8>,
}

/// What is written.
struct Answer {
    o: Vec<u8>,
    lse: Vec<f32>,
    plan: (String, u32),
}

pub async fn run(options: &RunOptions, file: &File, choice: device::Choice<'_>, out: &mut dyn Write) -> Result<bool> {
    refuse(options, file)?;
    let case = Case::read(file, options.layout)?;
    let target = Target::new(&options.output)?;
    let rotation = Rotation::read(options, file)?;
    let gpu = device::open(choice).await?;

    let mut caches = Caches { k: case.k_cache.to_vec(), v: case.v_cache.to_vec() };
    let mut totals = case.cache_seqlens.clone();
    if let Some(New { seqlen, sums, .. }) = &case.new {
        caches = by_element!(case.element, append::<T>(&gpu, &case, rotation.as_ref()))?;
        for (batch, total) in totals.iter_mut().enumerate() {
            let tokens = sums.as_ref().map_or(*seqlen, |sums| sums[batch + 1] - sums[batch]);
            *total = total.saturating_add(tokens);
        }
    }
    let rows: Vec<u32> = match &case.cu_seqlens_q {
        Some(sums) => sums.windows(2).map(|pair| pair[1].saturating_sub(pair[0])).collect(),
        None => vec![case.shape.seqlen_q; case.shape.batch as usize],
    };
    let q = match &rotation {
        Some(rotation) => {
            if rotation.of_tokens.is_none()
                && let Some(batch) = (0..rows.len()).find(|batch| rows[*batch] > totals[*batch])
            {
                return Err(file.failure(format_args!(
                    "sequence {batch} has {} rows of q and {} positions; --rotary has no angles before the first",
                    rows[batch], totals[batch]
                )));
            }
            let firsts: Vec<u32> = totals.iter().zip(&rows).map(|(total, rows)| total.saturating_sub(*rows)).collect();
            let count =
                case.cu_seqlens_q.as_ref().map_or(case.shape.seqlen_q, |sums| sums.last().copied().unwrap_or(0));
            let AttentionShape { batch, num_heads, head_dim, .. } = case.shape;
            let sums = case.cu_seqlens_q.as_deref();
            let counts = [batch, num_heads, count, head_dim];
            let rows = Rows { name: "q", layout: case.layout.of(&case.shape).q, counts, firsts: &firsts, sums };
            rotation.of(&gpu, case.element, case.q, &rows).await?
        }
        None => case.q.to_vec(),
    };

    let inputs = case.inputs(file)?;
    let own = options.wgsl.read(inputs.aux.as_ref().map_or(AuxType::F32, |(of_words, _)| *of_words))?;
    let mut problem = run::problem(options, &inputs, &own).with_cache(case.cache).with_lengths(rows, totals);
    if let Some(sums) = &case.cu_seqlens_q {
        problem = problem.with_cu_seqlens_q(sums.clone());
    }
    let answer = by_element!(case.element, attend::<T>(&gpu, options, &problem, &case, &inputs, &q, &caches))?;
    // Threads that wait for the slice form end with the work.
    gpu.wait()?;
    target.write(&case.encoded(&answer, &caches)?)?;
    let summary = case.summary(&gpu, &problem, answer);
    if options.json {
        writeln!(out, "{}", run::json(&summary))?;
    } else {
        summary.print(out)?;
        writeln!(out, "wrote o, lse, k_cache and v_cache to {}", options.output.display())?;
    }
    Ok(true)
}

/// What a run over a cache has not.
fn refuse(options: &RunOptions, file: &File) -> Result<()> {
    let reason = match () {
        () if options.algorithm != RunAlgorithm::Flash => "only --algorithm flash reads a cache",
        () if options.element.is_some() => "--element converts no cache: leave it out",
        () if options.probabilities.is_some() => "probabilities are not computed over a cache",
        () if options.blocks.block_mask.is_some() => "--block-mask is not for a cache: use --mask-mod",
        () if options.block_size.is_some() => "--block-size belongs to a block_mask, which is not for a cache",
        () if file.has("d_o") => "nothing has a gradient over a cache: leave d_o out",
        () if file.has("alibi_slopes") && options.scores.alibi => "it has alibi_slopes too: leave --alibi out",
        () => return Ok(()),
    };
    Err(file.failure(format_args!("has k_cache; {reason}")))
}

async fn append<T: ElementType>(gpu: &Gpu, case: &Case<'_>, rotation: Option<&Rotation>) -> Result<Caches> {
    match case.cache.element {
        CacheElement::F32 => append_to::<T, f32>(gpu, case, rotation).await,
        CacheElement::F16 => append_to::<T, f16>(gpu, case, rotation).await,
        CacheElement::Bf16 => append_to::<T, bf16>(gpu, case, rotation).await,
        _ => append_to::<T, u32>(gpu, case, rotation).await,
    }
}

async fn append_to<T: ElementType, C: CacheType>(
    gpu: &Gpu,
    case: &Case<'_>,
    rotation: Option<&Rotation>,
) -> Result<Caches> {
    let Some(New { k, v, seqlen, sums }) = &case.new else { return Err(Failure::new("nothing is appended")) };
    let shape = AttentionShape { seqlen_q: *seqlen, num_heads: case.shape.num_heads_kv, ..case.shape };
    // K and V lie as those of a problem with as many keys.
    let AttentionLayout { k: k_layout, v: v_layout, .. } = case.layout.of(&shape.with_seqlen_kv(*seqlen));
    let layout = AttentionLayout { q: k_layout, k: k_layout, v: v_layout, o: k_layout };
    let mut problem = AppendProblem::new(shape, case.cache).with_element(case.element).with_layout(layout);
    let [k, v] = [k, v].map(|bytes| typed::<T>(bytes));
    let [k_cache, v_cache] = [case.k_cache, case.v_cache].map(typed::<C>);
    let mut slices = AppendSlices::new(&k, &v, &k_cache, &v_cache).with_cache_seqlens(&case.cache_seqlens);
    if let Some(rotation) = rotation {
        let [batch, tokens] =
            sums.as_ref().map_or([shape.batch, *seqlen], |sums| [1, sums.last().copied().unwrap_or(0)]);
        rotation.check_tokens("the new k", [batch, tokens])?;
        problem = problem.with_rotary(rotation.rotary);
        slices = slices.with_rotary(&rotation.cos, &rotation.sin);
    }
    // Positions past the capacity are refused by slots too.
    if let Some(slots) = &case.slot_mapping {
        problem = problem.with_slot_mapping().with_new_cache_seqlens();
        slices = slices.with_slot_mapping(slots);
    } else if let Some(table) = &case.page_table {
        slices = slices.with_page_table(table);
    }
    if let Some(sums) = sums {
        problem = problem.with_packed_tokens(sums.last().copied().unwrap_or(0));
        slices = slices.with_cu_seqlens_new(sums);
    }
    let output = gpu.attention.append(&problem, &slices).await?;
    Ok(Caches { k: bytemuck::cast_slice(&output.k_cache).to_vec(), v: bytemuck::cast_slice(&output.v_cache).to_vec() })
}

async fn attend<T: ElementType>(
    gpu: &Gpu,
    options: &RunOptions,
    problem: &AttentionProblem,
    case: &Case<'_>,
    inputs: &Inputs<'_>,
    q: &[u8],
    caches: &Caches,
) -> Result<Answer> {
    let plan = gpu.attention.plan_forward(problem);
    let plan = options.num_splits.into_iter().fold(plan, |plan, splits| plan.with_splits(splits)).build()?;
    let of_plan = (text::kernels(&plan), plan.num_splits());
    let q = typed::<T>(q);
    let table = case.page_table.as_deref();
    let bytes = (&caches.k[..], &caches.v[..]);
    let output = match case.cache.element {
        CacheElement::F32 => attend_to::<T, f32>(gpu, plan, &q, bytes, table, inputs).await?,
        CacheElement::F16 => attend_to::<T, f16>(gpu, plan, &q, bytes, table, inputs).await?,
        CacheElement::Bf16 => attend_to::<T, bf16>(gpu, plan, &q, bytes, table, inputs).await?,
        _ => attend_to::<T, u32>(gpu, plan, &q, bytes, table, inputs).await?,
    };
    Ok(Answer { o: bytemuck::cast_slice(&output.o).to_vec(), lse: output.lse, plan: of_plan })
}

async fn attend_to<T: ElementType, C: CacheType>(
    gpu: &Gpu,
    plan: wgpu_flash_attention::Plan,
    q: &[T],
    (k_cache, v_cache): (&[u8], &[u8]),
    page_table: Option<&[u32]>,
    inputs: &Inputs<'_>,
) -> Result<ForwardOutput<T>> {
    let [k, v] = [k_cache, v_cache].map(typed::<C>);
    let bias: Vec<f64> = inputs.bias.iter().flat_map(|bias| elements::decode(bias.element, bias.bytes)).collect();
    let [bias_f32, sink] =
        [bias.iter().map(|value| *value as f32).collect::<Vec<f32>>(), inputs.sink.map_or_else(Vec::new, typed::<f32>)];
    let bias_as_q: Vec<T> = bias.iter().map(|value| T::from_f64(*value)).collect();
    let aux = inputs.aux.as_ref().map(|(_, words)| &words[..]).unwrap_or_default();
    let (aux_f32, aux_u32) = (typed::<f32>(aux), typed::<u32>(aux));
    let mut slices = CacheSlices::new(q, &k, &v);
    if let Some(table) = page_table {
        slices = slices.with_page_table(table);
    }
    match &inputs.bias {
        Some(bias) if bias.element == Element::F32 => slices = slices.with_bias(&bias_f32),
        Some(_) => slices = slices.with_bias(&bias_as_q),
        None => {}
    }
    if let Some(mask) = &inputs.mask {
        slices = slices.with_key_mask(&mask.words);
    }
    if inputs.sink.is_some() {
        slices = slices.with_sink(&sink);
    }
    match &inputs.aux {
        Some((AuxType::F32, _)) => slices = slices.with_aux(&aux_f32),
        Some((AuxType::U32, _)) => slices = slices.with_aux_u32(&aux_u32),
        _ => {}
    }
    Ok(gpu.attention.forward_over_cache_plan(plan, &slices).await?)
}

impl Rotation {
    /// Those of the file, if they are asked for.
    pub fn read(options: &RunOptions, file: &File) -> Result<Option<Self>> {
        let Some(pairs) = options.rotary else { return Ok(None) };
        let [cos, sin] = [file.tensor("rotary_cos")?, file.tensor("rotary_sin")?];
        let (positions, width) = match cos.dims[..] {
            [positions, width] => (Some(positions), width),
            [_, _, width] => (None, width),
            _ => (None, 0),
        };
        let rotary_dim = width.checked_mul(2).filter(|_| cos.dims == sin.dims && width > 0);
        let Some(rotary_dim) = rotary_dim else {
            return Err(file.failure(format_args!(
                "rotary_cos has the shape {:?}, rotary_sin {:?}; both must be [positions, rotary_dim / 2] or \
                 [batch, seqlen, rotary_dim / 2]",
                cos.dims, sin.dims
            )));
        };
        let rotary = match pairs {
            Pairs::Interleaved => Rotary::interleaved(rotary_dim, positions.unwrap_or(0)),
            Pairs::Halves => Rotary::halves(rotary_dim, positions.unwrap_or(0)),
        };
        let rotary = if positions.is_none() { rotary.per_token() } else { rotary };
        let of_tokens = if let [batch, tokens, _] = cos.dims[..] { Some([batch, tokens]) } else { None };
        let [cos, sin] =
            [cos, sin].map(|table| elements::decode(table.element, table.bytes).map(|value| value as f32).collect());
        Ok(Some(Self { rotary, of_tokens, cos, sin }))
    }

    /// Whether tables of tokens have those of these rows.
    fn check_tokens(&self, name: &str, [batch, tokens]: [u32; 2]) -> Result<()> {
        match self.of_tokens {
            Some(dims) if dims != [batch, tokens] => Err(Failure::new(format_args!(
                "rotary_cos and rotary_sin have rows for {} × {} tokens; {name} has {batch} × {tokens}",
                dims[0], dims[1]
            ))),
            _ => Ok(()),
        }
    }

    /// Rows, rotated.
    pub async fn of(&self, gpu: &Gpu, element: Element, bytes: &[u8], rows: &Rows<'_>) -> Result<Vec<u8>> {
        by_element!(element, rotated::<T>(self, gpu, bytes, rows))
    }
}

/// As Q of an append that stores nothing.
async fn rotated<T: ElementType>(rotation: &Rotation, gpu: &Gpu, bytes: &[u8], rows: &Rows<'_>) -> Result<Vec<u8>> {
    let [batch, num_heads, count, head_dim] = rows.counts;
    rotation.check_tokens(rows.name, [if rows.sums.is_some() { 1 } else { batch }, count])?;
    let seqlen =
        rows.sums.map_or(count, |sums| sums.windows(2).map(|pair| pair[1].saturating_sub(pair[0])).max().unwrap_or(0));
    let last = rows.firsts.iter().map(|first| first.saturating_add(seqlen)).max().unwrap_or(0);
    let shape = AttentionShape::new(batch, num_heads, seqlen, head_dim).with_num_heads_kv(1).with_head_dim_v(1);
    let shape = shape.with_seqlen_kv(last.clamp(1, MAX_LENGTH));
    let cache = KvCache::paged(&shape, CacheElement::F32, 1, 1);
    let mut problem = AppendProblem::new(shape, cache).with_element(T::ELEMENT).with_slot_mapping();
    problem.layout.q = rows.layout;
    // All tokens have one row of K and V, which goes nowhere.
    let nowhere = TensorLayout { offset: 0, stride_batch: 0, stride_row: 0, stride_head: 0 };
    (problem.layout.k, problem.layout.v) = (nowhere, nowhere);
    let problem = problem.with_rotary(rotation.rotary).with_rotated_q_in_place();
    let problem = if rows.sums.is_some() { problem.with_packed_tokens(count) } else { problem };
    let tokens = if rows.sums.is_some() { count as usize } else { batch as usize * count as usize };
    let (slots, nothing) = (vec![u32::MAX; tokens], vec![T::from_f64(0.0); head_dim as usize]);
    let q = typed::<T>(bytes);
    let mut slices = AppendSlices::new(&nothing, &nothing, &[0f32; 256], &[0f32; 1])
        .with_q(&q)
        .with_slot_mapping(&slots)
        .with_rotary(&rotation.cos, &rotation.sin);
    if rotation.rotary.positions.is_some() {
        slices = slices.with_cache_seqlens(rows.firsts);
    }
    if let Some(sums) = rows.sums {
        slices = slices.with_cu_seqlens_new(sums);
    }
    let output = gpu.attention.append(&problem, &slices).await?;
    Ok(bytemuck::cast_slice(&output.q).to_vec())
}

/// The values of a type. The bytes may lie at any address.
fn typed<T: bytemuck::Pod>(bytes: &[u8]) -> Vec<T> {
    bytemuck::pod_collect_to_vec(bytes)
}

impl<'a> Case<'a> {
    fn read(file: &'a File, layout: Layout) -> Result<Self> {
        let wrong = |message: String| Err(file.failure(message));
        let q = file.tensor("q")?;
        let cache_seqlens = integers(file, "cache_seqlens", 1)?;
        let Some((_, cache_seqlens)) = cache_seqlens else { return wrong("has k_cache but no cache_seqlens".into()) };
        let batch = cache_seqlens.len() as u32;
        let cu_seqlens_q = sums(file, "cu_seqlens_q", batch)?;
        let layout = if cu_seqlens_q.is_some() { Layout::Packed } else { layout };
        let [q_batch, num_heads, q_rows, head_dim] = file.dims("q", &q, layout)?;
        if cu_seqlens_q.is_none() && q_batch != batch {
            return wrong(format!("q has {q_batch} sequences, cache_seqlens {batch}"));
        }
        if let Some(end) = cu_seqlens_q.as_ref().and_then(|sums| sums.last()).filter(|end| **end != q_rows) {
            return wrong(format!("cu_seqlens_q ends at {end}, and q has {q_rows} rows"));
        }
        let (k_element, k_dims, k_cache) = cached(file, "k_cache")?;
        let (v_element, v_dims, v_cache) = cached(file, "v_cache")?;
        let ([pages, rows, num_heads_kv, k_width], [.., v_width]) = (k_dims, v_dims);
        if k_element != v_element || k_dims[..3] != v_dims[..3] {
            return wrong(format!(
                "k_cache {k_dims:?} and v_cache {v_dims:?} differ in type, pages, positions or heads"
            ));
        }
        if k_width != k_element.row_len(head_dim) {
            let len = k_element.row_len(head_dim);
            return wrong(format!(
                "k_cache has rows of {k_width} entries; head_dim {head_dim} in {} has {len}",
                k_element.name()
            ));
        }
        let new = new_tokens(file, layout, &q.element, batch, cu_seqlens_q.as_deref())?;
        // The words of int8 do not say how many of their bytes count.
        let of_words = if v_width == k_width { head_dim } else { v_width.saturating_sub(1).saturating_mul(4) };
        let in_cache = if k_element == CacheElement::Int8 { of_words } else { v_width };
        let head_dim_v = new.as_ref().map_or(in_cache, |(_, (.., dim))| *dim);
        if v_width != k_element.row_len(head_dim_v) {
            return wrong(format!("v_cache has rows of {v_width} entries, which are not head_dim_v = {head_dim_v}"));
        }
        // Entries that no position needs may hold anything; 4294967295 is never a page.
        let page_table = integers_or(file, "page_table", 2, |_| Some(u32::MAX))?;
        let capacity = page_table.as_ref().map_or(rows, |(dims, _)| dims[1].saturating_mul(rows).min(MAX_LENGTH));
        let seqlen_q = cu_seqlens_q.as_deref().map_or(q_rows, longest);
        let shape = AttentionShape::new(batch, num_heads, seqlen_q, head_dim)
            .with_num_heads_kv(num_heads_kv)
            .with_seqlen_kv(capacity)
            .with_head_dim_v(head_dim_v);
        let cache = match &page_table {
            Some((dims, _)) if dims[0] != batch => {
                return wrong(format!("page_table has {} sequences, cache_seqlens {batch}", dims[0]));
            }
            Some((dims, _)) => KvCache::paged(&shape, k_element, pages, rows).with_max_pages(dims[1]),
            None if pages != batch => {
                return wrong(format!("k_cache has {pages} sequences, cache_seqlens {batch}; pages need a page_table"));
            }
            None => KvCache::contiguous(&shape, k_element),
        };
        if let Some((_, (heads, dim, _))) = &new
            && [*heads, *dim] != [num_heads_kv, head_dim]
        {
            return wrong(format!("k has {heads} heads of {dim}; the cache has {num_heads_kv} of {head_dim}"));
        }
        let new = new.map(|(new, _)| new);
        let slot_mapping = new.as_ref().map_or(Ok(None), |new| slots(file, batch, new))?;
        Ok(Self {
            shape,
            layout,
            element: q.element,
            q: q.bytes,
            new,
            cache,
            k_cache,
            v_cache,
            cache_dims: [k_dims.to_vec(), v_dims.to_vec()],
            cache_seqlens,
            page_table: page_table.map(|(_, table)| table),
            slot_mapping,
            cu_seqlens_q,
        })
    }

    /// All else that a problem may have, as without a cache.
    fn inputs(&self, file: &'a File) -> Result<Inputs<'a>> {
        let shape = self.shape;
        Ok(Inputs {
            shape,
            layout: self.layout,
            cu_seqlens: None,
            element: self.element,
            q: self.q,
            k: &[],
            v: &[],
            d_o: None,
            d_lse: None,
            bias: file.bias(&shape)?,
            mask: file.mask(&shape)?,
            sink: file.sink(&shape)?,
            lengths: None,
            alibi_slopes: file.alibi_slopes(&shape)?,
            document_ids: None,
            block_mask: None,
            aux: file.aux()?,
        })
    }

    fn encoded(&self, answer: &Answer, caches: &Caches) -> Result<Vec<u8>> {
        let failed = |error| Failure::new(format_args!("the result is no safetensors file: {error}"));
        let dtype = |element| match element {
            Element::F32 => Dtype::F32,
            Element::F16 => Dtype::F16,
            Element::Bf16 => Dtype::BF16,
            other => elements::unknown(other),
        };
        let of_cache = match self.cache.element {
            CacheElement::F32 => Dtype::F32,
            CacheElement::F16 => Dtype::F16,
            CacheElement::Bf16 => Dtype::BF16,
            _ => Dtype::U32,
        };
        let AttentionShape { batch, num_heads, seqlen_q, head_dim_v, .. } = self.shape;
        let rows = self.cu_seqlens_q.as_ref().map_or(seqlen_q, |sums| sums.last().copied().unwrap_or(0));
        let lse: Vec<u8> = bytemuck::cast_slice(&answer.lse).to_vec();
        let tensors = [
            ("o", dtype(self.element), self.layout.dims_of(batch, num_heads, rows, head_dim_v), &answer.o),
            ("lse", Dtype::F32, self.layout.lse_dims(batch, num_heads, rows), &lse),
            ("k_cache", of_cache, self.cache_dims[0].clone(), &caches.k),
            ("v_cache", of_cache, self.cache_dims[1].clone(), &caches.v),
        ];
        let views = tensors.into_iter().map(|(name, dtype, dims, bytes)| {
            let dims = dims.into_iter().map(|dim| dim as usize).collect();
            Ok((name, TensorView::new(dtype, dims, bytes)?))
        });
        let views = views.collect::<std::result::Result<Vec<_>, _>>().map_err(failed)?;
        safetensors::serialize(views, None).map_err(failed)
    }

    fn summary(&self, gpu: &Gpu, problem: &AttentionProblem, answer: Answer) -> Summary {
        let AttentionShape { batch, num_heads, num_heads_kv, seqlen_q, seqlen_kv, head_dim, head_dim_v } = self.shape;
        let pages = self.cache.pages.map_or(String::new(), |pages| format!(" in pages of {}", pages.page_size));
        let (kernel, num_splits) = answer.plan;
        Summary {
            batch,
            heads: num_heads,
            heads_kv: num_heads_kv,
            seqlen_q,
            capacity: seqlen_kv,
            head_dim,
            head_dim_v,
            element: self.element.name(),
            cache: format!("{}{pages}", self.cache.element.name()),
            appended: self.new.is_some(),
            with: run::what_else(problem),
            adapter: gpu.describe(),
            kernel,
            num_splits,
        }
    }
}

impl Summary {
    fn print(&self, out: &mut dyn Write) -> Result<()> {
        writeln!(
            out,
            "batch {}, heads {} (kv {}), {} rows over a cache of {}, head_dim {} (v {}), {} over {}",
            self.batch,
            self.heads,
            self.heads_kv,
            self.seqlen_q,
            self.capacity,
            self.head_dim,
            self.head_dim_v,
            self.element,
            self.cache
        )?;
        if !self.with.is_empty() {
            writeln!(out, "with {}", self.with.join(", "))?;
        }
        writeln!(out, "{}\n{}", self.adapter, self.kernel)?;
        Ok(())
    }
}

/// New keys and values; then heads, and the dimensions of both.
type NewTokens<'a> = (New<'a>, (u32, u32, u32));

fn new_tokens<'a>(
    file: &'a File,
    layout: Layout,
    element: &Element,
    batch: u32,
    cu_seqlens_q: Option<&[u32]>,
) -> Result<Option<NewTokens<'a>>> {
    let (Some(k), Some(v)) = (file.optional("k")?, file.optional("v")?) else { return Ok(None) };
    if k.element != *element || v.element != *element {
        let types = [*element, k.element, v.element].map(Element::name).join(", ");
        return Err(file.failure(format_args!("q, k and v are stored as {types}; they must have one type")));
    }
    let [k_batch, heads, rows, dim] = file.dims("k", &k, layout)?;
    let [v_batch, v_heads, v_rows, dim_v] = file.dims("v", &v, layout)?;
    if [k_batch, heads, rows] != [v_batch, v_heads, v_rows] || layout != Layout::Packed && k_batch != batch {
        return Err(
            file.failure(format_args!("k {:?} and v {:?} do not fit each other, or {batch} sequences", k.dims, v.dims))
        );
    }
    let sums = match layout {
        Layout::Packed => sums(file, "cu_seqlens_kv_new", batch)?.or(cu_seqlens_q.map(<[u32]>::to_vec)),
        Layout::Bhsd | Layout::Bshd => None,
    };
    if let Some(last) = sums.as_ref().and_then(|sums| sums.last()).filter(|last| **last != rows) {
        return Err(file.failure(format_args!("the new k and v have {rows} rows, their sums end at {last}")));
    }
    let seqlen = sums.as_deref().map_or(rows, longest);
    Ok(Some((New { k: k.bytes, v: v.bytes, seqlen, sums }, (heads, dim, dim_v))))
}

/// A cache: its type, `[pages, page_size, heads, entries]`, and its bytes.
fn cached<'a>(file: &'a File, name: &str) -> Result<(CacheElement, [u32; 4], &'a [u8])> {
    let view = file.view(name).ok_or_else(|| file.failure(format_args!("has no tensor '{name}'")))?;
    let element = match view.dtype() {
        Dtype::F32 => CacheElement::F32,
        Dtype::F16 => CacheElement::F16,
        Dtype::BF16 => CacheElement::Bf16,
        Dtype::U32 => CacheElement::Int8,
        other => {
            let message = format!("'{name}' is stored as {other:?}; F32, F16, BF16, and U32 for int8 can be used");
            return Err(file.failure(message));
        }
    };
    let dims: Option<Vec<u32>> = view.shape().iter().map(|dim| u32::try_from(*dim).ok()).collect();
    match dims.as_deref() {
        Some(&[pages, rows, heads, width]) => Ok((element, [pages, rows, heads, width], view.data())),
        _ => Err(file.failure(format_args!("'{name}' has the shape {:?}; 4 dimensions are needed", view.shape()))),
    }
}

/// A tensor of integers with so many dimensions, if it is there.
fn integers(file: &File, name: &str, rank: usize) -> Result<Option<(Vec<u32>, Vec<u32>)>> {
    integers_or(file, name, rank, |_| None)
}

/// The same, where `other` may say what stands for an integer that is no u32.
fn integers_or(
    file: &File,
    name: &str,
    rank: usize,
    other: impl Fn(i128) -> Option<u32>,
) -> Result<Option<(Vec<u32>, Vec<u32>)>> {
    let Some(view) = file.view(name) else { return Ok(None) };
    let dims: Vec<u32> = view.shape().iter().map(|dim| u32::try_from(*dim).unwrap_or(u32::MAX)).collect();
    if dims.len() != rank {
        return Err(file.failure(format_args!("'{name}' has the shape {dims:?}; {rank} dimensions are needed")));
    }
    file.integers_or(name, &[&dims], "", other)
}

/// A slot for each new token: `[tokens]`, or `[batch, seqlen]` where they are not packed. -1 stores nothing, as 4294967295 does.
fn slots(file: &File, batch: u32, new: &New<'_>) -> Result<Option<Vec<u32>>> {
    let nowhere = |slot| (slot == -1).then_some(u32::MAX);
    let slots = match &new.sums {
        Some(sums) => {
            let tokens = sums.last().copied().unwrap_or(0);
            file.integers_or("slot_mapping", &[&[tokens]], "[tokens]", nowhere)
        }
        None => {
            let (of_all, of_each) = ([batch.saturating_mul(new.seqlen)], [batch, new.seqlen]);
            file.integers_or("slot_mapping", &[&of_all, &of_each], "[tokens] or [batch, seqlen]", nowhere)
        }
    };
    Ok(slots?.map(|(_, slots)| slots))
}

fn sums(file: &File, name: &str, batch: u32) -> Result<Option<Vec<u32>>> {
    let Some((_, sums)) = integers(file, name, 1)? else { return Ok(None) };
    if sums.len() as u64 != u64::from(batch) + 1 {
        return Err(file.failure(format_args!(
            "'{name}' has {} sums; {batch} sequences have {}",
            sums.len(),
            u64::from(batch) + 1
        )));
    }
    if let Some(pair) = sums.windows(2).find(|pair| pair[1] < pair[0]) {
        return Err(file.failure(format_args!("'{name}' falls from {} to {}", pair[0], pair[1])));
    }
    Ok(Some(sums))
}

fn longest(sums: &[u32]) -> u32 {
    sums.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or(0)
}
