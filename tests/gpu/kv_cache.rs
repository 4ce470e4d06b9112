//! Attention over caches: side by side and in pages, in every type, against dense K and V of the same values. All that no
//! sequence holds is NaN: rows behind lengths, unused pages, and what lies between rows.

use wgpu_flash_attention::reference;
use wgpu_flash_attention::{
    Algorithm, AppendBuffers, AppendProblem, AttentionProblem, AttentionShape, CacheElement, CacheSlices, Call,
    Capabilities, Element, EntryLayout, Error, ForwardBuffers, InvalidProblem, KeyMask, KvCache, MaskWgsl, Operand,
    Plan, ScoreMod, ScoreWgsl, TensorLayout, alibi_slopes,
};

use crate::support::{
    Answer, Bytes, Guarded, Inputs, Library, Output, Variant, arithmetic_of, inputs, library, run_bytes, to_bytes,
    words,
};

/// A problem whose K and V are in a cache, and the same with dense K and V.
struct Cached {
    problem: AttentionProblem,
    dense: AttentionProblem,
    /// Of the dense problem: what the cache's entries stand for.
    inputs: Inputs,
    /// What the call over the cache reads.
    tensors: Vec<(Operand, Vec<u8>)>,
}

/// Pages of this size, in an order that is no order, or none.
#[derive(Clone, Copy, Debug)]
enum Paging {
    None,
    Scrambled(u32),
}

/// A row in the type of a cache, and the values that it stands for.
fn cached_row(element: CacheElement, values: &[f64]) -> (Vec<u8>, Vec<f64>) {
    let stored = match element {
        CacheElement::F32 => Element::F32,
        CacheElement::F16 => Element::F16,
        CacheElement::Bf16 => Element::Bf16,
        _ => {
            let row = reference::quantized(values);
            return (words(&row), reference::dequantized(&row, values.len() as u32));
        }
    };
    (to_bytes(stored, values), values.iter().map(|value| stored.round(*value)).collect())
}

impl Cached {
    fn new(base: &AttentionProblem, element: CacheElement, paging: Paging, lengths: &[u32], seed: u64) -> Self {
        Self::packed(base, element, paging, lengths, &[], seed)
    }

    /// With rows of Q that are packed, if there are such sums.
    fn packed(
        base: &AttentionProblem,
        element: CacheElement,
        paging: Paging,
        lengths: &[u32],
        cu_seqlens_q: &[u32],
        seed: u64,
    ) -> Self {
        let shape = base.shape;
        let rows = match cu_seqlens_q {
            [] => vec![shape.seqlen_q; shape.batch as usize],
            sums => sums.windows(2).map(|pair| pair[1] - pair[0]).collect(),
        };
        let mut dense = base.clone().with_lengths(rows, lengths.to_vec());
        let mut problem = base.clone();
        if let Some(total) = cu_seqlens_q.last() {
            dense = dense.with_cu_seqlens_q(cu_seqlens_q.to_vec());
            problem = problem.with_cu_seqlens_q_at_call(*total);
        }
        let mut given = inputs(&dense, seed);
        let (cache, page_table) = match paging {
            Paging::None => (KvCache::contiguous(&shape, element), Vec::new()),
            Paging::Scrambled(page_size) => {
                let entries = shape.seqlen_kv.div_ceil(page_size);
                let pages = shape.batch * entries + 3;
                let page = |entry: u32| (entry * 7919 + 5) % pages;
                let mut table: Vec<u32> = (0..shape.batch * entries).map(page).collect();
                // Entries that no position needs may hold anything.
                for (batch, length) in lengths.iter().enumerate() {
                    let used = length.div_ceil(page_size);
                    for entry in used..entries {
                        table[batch * entries as usize + entry as usize] = u32::MAX - entry;
                    }
                }
                (KvCache::paged(&shape, element, pages, page_size), table)
            }
        };
        let place = |batch: u32, key: u32| match cache.pages {
            Some(pages) => {
                let entry = batch * pages.max_pages + key / pages.page_size;
                (page_table[entry as usize], key % pages.page_size)
            }
            None => (batch, key),
        };
        let fill = |values: &mut [f64], dense: &TensorLayout, layout: &TensorLayout, len: Option<u64>, dim: u32| {
            let entry = if matches!(element, CacheElement::F16 | CacheElement::Bf16) { 2 } else { 4 };
            // A multiple of 4 bytes; NaN in every type.
            let mut bytes = vec![0xff; (len.unwrap() as usize * entry).next_multiple_of(4)];
            for batch in 0..shape.batch {
                for (key, head) in
                    (0..shape.seqlen_kv).flat_map(|key| (0..shape.num_heads_kv).map(move |head| (key, head)))
                {
                    let row = &mut values[dense.index(batch, key, head) as usize..][..dim as usize];
                    if key >= lengths[batch as usize] {
                        row.fill(f64::NAN);
                        continue;
                    }
                    let (page, in_page) = place(batch, key);
                    let (stored, stands_for) = cached_row(element, row);
                    row.copy_from_slice(&stands_for);
                    let first = layout.index(page, in_page, head) as usize * entry;
                    bytes[first..first + stored.len()].copy_from_slice(&stored);
                }
            }
            bytes
        };
        let k = fill(&mut given.k, &dense.layout.k, &cache.k, cache.required_len_of_k(&shape), shape.head_dim);
        let v = fill(&mut given.v, &dense.layout.v, &cache.v, cache.required_len_of_v(&shape), shape.head_dim_v);
        let problem = problem.with_cache(cache).with_seqlens_kv_at_call();
        let mut tensors = given.entries(&problem);
        tensors.extend([(Operand::Q, to_bytes(base.element, &given.q)), (Operand::K, k), (Operand::V, v)]);
        tensors.push((Operand::SeqlensKv, words(lengths)));
        if !cu_seqlens_q.is_empty() {
            tensors.push((Operand::CuSeqlensQ, words(cu_seqlens_q)));
        }
        if cache.pages.is_some() {
            tensors.push((Operand::PageTable, words(&page_table)));
        }
        Self { problem, dense, inputs: given, tensors }
    }

    fn run(&self, library: &Library) -> Bytes {
        run_bytes(library, &self.problem, false, &[(self.tensors.clone(), Call::new())]).remove(0)
    }

    /// O and LSE, within the bounds of the oracle.
    fn check(&self, library: &Library) -> [Vec<u8>; 2] {
        let mut found = self.run(library);
        let [o, lse] = [Operand::O, Operand::Lse].map(|operand| found.remove(&operand).expect("it is written"));
        let prepared = library.prepare(&self.problem).expect("it can be prepared");
        let output = Output::of(self.problem.element, o.clone(), lse.clone(), arithmetic_of(prepared.plan()));
        let shares = Answer::new(&self.dense, &self.inputs).shares("cached", &output);
        for (share, name) in shares.iter().zip(["O", "LSE"]) {
            share.assert(name, &self.problem);
        }
        [o, lse]
    }
}

fn shape(seqlen_q: u32, head_dim: u32) -> AttentionShape {
    AttentionShape::new(4, 4, seqlen_q, head_dim).with_num_heads_kv(2).with_seqlen_kv(200).with_head_dim_v(24)
}

const LENGTHS: [u32; 4] = [0, 1, 77, 200];

/// Rows and head_dim: decoding, few rows, many; rows of quads and others.
const SHAPES: [(u32, u32); 4] = [(1, 64), (70, 37), (5, 64), (1, 37)];

#[test]
fn every_type() {
    let types = Element::ALL.iter().flat_map(|element| CacheElement::ALL.iter().map(move |cache| (*element, *cache)));
    for (n, (element, cache_element)) in types.enumerate() {
        for (seqlen_q, head_dim) in [SHAPES[n % 4], SHAPES[(n + 1) % 4]] {
            let base = AttentionProblem::new(shape(seqlen_q, head_dim)).with_element(element).with_causal();
            Cached::new(&base, cache_element, Paging::None, &LENGTHS, n as u64).check(library(Variant::Full));
        }
    }
}

/// The same bits in pages of any size as side by side.
#[test]
fn every_page_size() {
    for (cache_element, (seqlen_q, head_dim), splits) in
        [(CacheElement::F16, (1, 64), 3), (CacheElement::Int8, (1, 40), 1), (CacheElement::F16, (70, 64), 1)]
    {
        let base = AttentionProblem::new(shape(seqlen_q, head_dim)).with_element(Element::F16).with_causal();
        let library = library(Variant::Full).clone().splits(splits);
        let of = |paging| Cached::new(&base, cache_element, paging, &LENGTHS, 11);
        let whole = of(Paging::None).check(&library);
        for page_size in [1, 3, 16, 256] {
            let paged = of(Paging::Scrambled(page_size));
            assert!(paged.run(&library)[&Operand::O] == whole[0], "pages of {page_size}: {:?}", paged.problem);
        }
    }
}

#[test]
fn every_mask_and_modifier() {
    for (seed, seqlen_q) in [(21, 1), (22, 40)] {
        let base = AttentionProblem::new(shape(seqlen_q, 40)).with_element(Element::F16);
        let bias = ScoreMod::Bias { layout: EntryLayout::contiguous([4, 1, seqlen_q, 200]), element: Element::F32 };
        let bits = KeyMask::Boolean(EntryLayout::packed_bits([1, 4, seqlen_q, 200]));
        let problems = [
            base.clone(),
            base.clone().with_causal().with_window(Some(20), None).with_sink(),
            base.clone().with_causal().with_score(ScoreMod::Softcap(2.0)).with_score(ScoreMod::Alibi(alibi_slopes(4))),
            base.clone().with_window(Some(3), Some(5)).with_score(bias),
            base.clone().with_causal().with_key_mask(bits).with_dropout(0.2, 5),
        ];
        for base in problems {
            let cache_element = if seed == 22 { CacheElement::F16 } else { CacheElement::Int8 };
            Cached::new(&base, cache_element, Paging::Scrambled(16), &LENGTHS, seed).check(library(Variant::Full));
        }
    }
}

/// Functions in the caller's own WGSL are told a row's position: causal and ALiBi by hand.
#[test]
fn own_wgsl_counts_positions() {
    let mask = "fn mask_mod(batch: u32, head: u32, q_idx: u32, kv_idx: u32) -> bool { return kv_idx <= q_idx; }";
    let score = "fn score_mod(score: f32, batch: u32, head: u32, q_idx: u32, kv_idx: u32) -> f32 {
        return score - 0.25 * abs(f32(q_idx) - f32(kv_idx));
    }";
    for (seed, seqlen_q) in [(91, 1), (92, 40)] {
        let base = AttentionProblem::new(shape(seqlen_q, 40));
        let built_in = base.clone().with_causal().with_score(ScoreMod::Alibi(vec![0.25; 4]));
        let by_hand = base
            .with_key_mask(KeyMask::Wgsl(MaskWgsl::new(mask).unwrap()))
            .with_score(ScoreMod::Wgsl(ScoreWgsl::new(score).unwrap()));
        // No sequence is shorter than its rows: such rows have no position.
        let lengths = [40, 41, 77, 200];
        let mut cached = Cached::new(&built_in, CacheElement::F32, Paging::Scrambled(16), &lengths, seed);
        let cache = *cached.problem.cache().unwrap();
        cached.problem = by_hand.with_cache(cache).with_seqlens_kv_at_call();
        cached.check(library(Variant::Full));
    }
}

#[test]
fn other_devices_and_layouts() {
    for variant in [Variant::NoShaderF16, Variant::WebGpuDefaults] {
        for (cache_element, paging) in
            [(CacheElement::F16, Paging::Scrambled(3)), (CacheElement::Int8, Paging::Scrambled(16))]
        {
            for seqlen_q in [1, 40] {
                let base = AttentionProblem::new(shape(seqlen_q, 40)).with_element(Element::F16).with_causal();
                Cached::new(&base, cache_element, paging, &LENGTHS, 31).check(library(variant));
            }
        }
    }
}

/// Prefill, decoding, nothing, and a few rows in one call.
#[test]
fn mixed_batches() {
    let sums = [0, 30, 31, 31, 36];
    for (cache_element, seqlen_q, splits) in [(CacheElement::F16, 40, 1), (CacheElement::Int8, 30, 3)] {
        let base = AttentionProblem::new(shape(seqlen_q, 40)).with_element(Element::F16).with_causal();
        let library = library(Variant::Full).clone().splits(splits);
        let mixed = Cached::packed(&base, cache_element, Paging::Scrambled(16), &[30, 77, 9, 200], &sums, 61);
        mixed.check(&library);
    }
}

/// Steps of a generation, all in one encoder: each appends, then attends, by lengths that stay on the GPU. Two prepared
/// operations serve them all, and give what one prefill gives.
#[test]
fn a_generation_is_one_prefill() {
    const STEPS: [u32; 7] = [7, 1, 1, 1, 5, 1, 2];
    let library = library(Variant::Full);
    for (cache_element, paging) in [(CacheElement::Int8, Paging::Scrambled(3)), (CacheElement::F32, Paging::None)] {
        let total = STEPS.iter().sum::<u32>();
        let shape = AttentionShape::new(2, 4, 7, 40).with_num_heads_kv(2).with_seqlen_kv(total);
        let prefill = AttentionProblem::new(AttentionShape { seqlen_q: total, ..shape }).with_causal();
        let mut given = inputs(&prefill, 71);
        let entries = total.div_ceil(3);
        let page_table: Vec<u32> = (0..2 * entries).map(|entry| (entry * 7 + 3) % (2 * entries + 1)).collect();
        let cache = match paging {
            Paging::None => KvCache::contiguous(&shape, cache_element),
            Paging::Scrambled(size) => KvCache::paged(&shape, cache_element, 2 * entries + 1, size),
        };
        let problem = AttentionProblem::new(shape).with_causal().with_cache(cache).with_seqlens_kv_at_call();
        let attention = library.prepare(&problem).expect("attention can be prepared");
        let append = AppendProblem::new(shape, cache).with_new_cache_seqlens();
        let append = pollster::block_on(library.prepare_append(&append)).expect("the append can be prepared");

        let table = Guarded::at(library, 512, &words(&page_table));
        let seqlens = [Guarded::at(library, 512, &words(&[0, 0])), Guarded::at(library, 512, &words(&[9, 9]))];
        let cached = [Operand::KCache, Operand::VCache]
            .map(|operand| Guarded::poisoned(library, append.plan().required_bytes(operand)));
        // The rows of a step, in tensors of as many rows as any step has.
        let rows_of = |values: &[f64], heads: u32, dim: u32, first: u32, count: u32| {
            let row = (heads * dim) as usize;
            let mut rows = vec![f64::NAN; 2 * 7 * row];
            for batch in 0..2 {
                let from = (batch * total as usize + first as usize) * row;
                rows[batch * 7 * row..][..count as usize * row]
                    .copy_from_slice(&values[from..][..count as usize * row]);
            }
            Guarded::new(library, &to_bytes(Element::F32, &rows))
        };
        let mut encoder = library.device().create_command_encoder(&Default::default());
        let (mut first, mut outputs) = (0, Vec::new());
        for (step, count) in STEPS.into_iter().enumerate() {
            let call = Call::new().with_seqlen_q(count);
            let [before, after] = [&seqlens[step % 2], &seqlens[(step + 1) % 2]];
            let [k, v] = [&given.k, &given.v].map(|values| rows_of(values, 2, 40, first, count));
            let buffers = AppendBuffers::new(k.slice(), v.slice(), cached[0].slice(), cached[1].slice())
                .with(Operand::CacheSeqlens, before.slice())
                .with(Operand::NewCacheSeqlens, after.slice())
                .with(Operand::PageTable, cache.pages.map(|_| table.slice()));
            append.encode_call(&mut encoder, &buffers, &call).expect("the append can be encoded");
            let q = rows_of(&given.q, 4, 40, first, count);
            let o = Guarded::poisoned(library, attention.plan().required_bytes(Operand::O));
            let lse = Guarded::poisoned(library, attention.plan().required_bytes(Operand::Lse));
            let buffers = ForwardBuffers::new(q.slice(), cached[0].slice(), cached[1].slice(), o.slice(), lse.slice())
                .with(Operand::SeqlensKv, after.slice())
                .with(Operand::PageTable, cache.pages.map(|_| table.slice()));
            attention.encode_call(&mut encoder, &buffers, &call).expect("attention can be encoded");
            outputs.push((first, count, o, lse));
            first += count;
        }
        library.queue().submit([encoder.finish()]);

        let mut o = vec![0; 2 * total as usize * 4 * 40 * 4];
        let mut lse = vec![0; 2 * 4 * total as usize * 4];
        let row = 4 * 40 * 4;
        for (first, count, o_of_step, lse_of_step) in outputs {
            let (found, found_lse) = (o_of_step.read(library), lse_of_step.read(library));
            let (first, count, total) = (first as usize, count as usize, total as usize);
            for batch in 0..2 {
                o[(batch * total + first) * row..][..count * row]
                    .copy_from_slice(&found[batch * 7 * row..][..count * row]);
            }
            for head in 0..8 {
                lse[(head * total + first) * 4..][..count * 4].copy_from_slice(&found_lse[head * 7 * 4..][..count * 4]);
            }
        }
        if cache_element == CacheElement::Int8 {
            // What the cache holds is what attention is of.
            for (values, (bytes, layout)) in
                [&mut given.k, &mut given.v].into_iter().zip(cached.iter().zip([&cache.k, &cache.v]))
            {
                let bytes = bytes.read(library);
                let words: Vec<u32> =
                    bytes.chunks(4).map(|word| u32::from_le_bytes(word.try_into().unwrap())).collect();
                for (batch, key, head) in places(2, total, 2) {
                    let page = page_table[(batch * entries + key / 3) as usize];
                    let row = &words[layout.index(page, key % 3, head) as usize..][..11];
                    let first = ((batch * total + key) * 2 + head) as usize * 40;
                    let found = reference::dequantized(row, 40);
                    let largest = values[first..first + 40].iter().fold(0f64, |most, value| most.max(value.abs()));
                    let is_near = |(a, b): (&f64, &f64)| (a - b).abs() <= largest / 127.0 * 0.501;
                    assert!(found.iter().zip(&values[first..first + 40]).all(is_near));
                    values[first..first + 40].copy_from_slice(&found);
                }
            }
        }
        let output = Output::of(Element::F32, o, lse, arithmetic_of(attention.plan()).merging());
        for (share, name) in Answer::new(&prefill, &given).shares("generated", &output).iter().zip(["O", "LSE"]) {
            share.assert(name, &problem);
        }
    }
}

fn places(batch: u32, keys: u32, heads: u32) -> impl Iterator<Item = (u32, u32, u32)> {
    (0..batch).flat_map(move |b| (0..keys).flat_map(move |key| (0..heads).map(move |head| (b, key, head))))
}

/// Slices check what buffers cannot.
#[test]
fn from_slices() {
    let base = AttentionProblem::new(shape(2, 40)).with_causal();
    let cached = Cached::new(&base, CacheElement::Int8, Paging::Scrambled(16), &LENGTHS, 81);
    let problem = cached.dense.clone().with_cache(*cached.problem.cache().unwrap());
    let words_of = |operand| {
        let (_, bytes) = cached.tensors.iter().find(|(other, _)| *other == operand).unwrap();
        bytes.chunks(4).map(|word| u32::from_le_bytes(word.try_into().unwrap())).collect::<Vec<u32>>()
    };
    let (k, v, table) = (words_of(Operand::K), words_of(Operand::V), words_of(Operand::PageTable));
    let q: Vec<f32> = cached.inputs.q.iter().map(|value| *value as f32).collect();
    let library = library(Variant::Full);
    let run = |table: &[u32]| {
        pollster::block_on(library.forward_over_cache(&problem, &CacheSlices::new(&q, &k, &v).with_page_table(table)))
    };
    let found = run(&table).expect("it runs");
    let expected = cached.run(library);
    assert!(
        to_bytes(Element::F32, &found.o.iter().map(|o| f64::from(*o)).collect::<Vec<_>>()) == expected[&Operand::O]
    );

    let mut wrong = table.clone();
    wrong[2 * 13 + 4] = 55;
    let error = run(&wrong).unwrap_err();
    let is_of_table = matches!(&error, Error::InvalidTable { operand: Operand::PageTable, reason } if reason.contains("entry 4 of sequence 2 is page 55"));
    assert!(is_of_table, "{error}");
    // The next entry is of no position.
    wrong[2 * 13 + 4] = table[2 * 13 + 4];
    wrong[2 * 13 + 5] = 77;
    run(&wrong).expect("it runs");
    assert!(matches!(run(&table[1..]), Err(Error::SliceTooShort { operand: Operand::PageTable, .. })));
    let floats = vec![0f32; k.len()];
    let other = CacheSlices::new(&q, &floats, &floats).with_page_table(&table);
    let error = pollster::block_on(library.forward_over_cache(&problem, &other)).unwrap_err();
    assert_eq!(error, Error::CacheMismatch { expected: CacheElement::Int8, found: CacheElement::F32 });
    let error = pollster::block_on(library.forward(&problem, &q, &q, &q)).unwrap_err();
    assert!(matches!(error, Error::InvalidProblem(InvalidProblem::Cache { .. })), "{error}");
}

/// The answer for a sequence is the same bits whatever its neighbours hold.
#[test]
fn neighbours_make_no_difference() {
    let base = AttentionProblem::new(shape(1, 64)).with_causal();
    let library = library(Variant::Full).clone().splits(4);
    let run =
        |lengths: &[u32; 4]| Cached::new(&base, CacheElement::F32, Paging::Scrambled(16), lengths, 41).run(&library);
    let of_third = |found: &Bytes| found[&Operand::O][2 * 4 * 24 * 4..3 * 4 * 24 * 4].to_vec();
    let expected = of_third(&run(&LENGTHS));
    for lengths in [[200, 200, 77, 0], [1, 0, 77, 3]] {
        assert!(of_third(&run(&lengths)) == expected);
    }
}

/// Whatever a page table and lengths hold, nothing is read or written outside: the checked module gives the same bits.
#[test]
fn hostile_pages_and_lengths() {
    for seqlen_q in [1, 20] {
        let base = AttentionProblem::new(shape(seqlen_q, 40)).with_causal();
        for cache_element in [CacheElement::Bf16, CacheElement::Int8] {
            let mut cached = Cached::new(&base, cache_element, Paging::Scrambled(16), &[200; 4], 51);
            let hostile = [u32::MAX, 1 << 31, 55, 56, 0x7fff_ffff, 1 << 20, 0];
            let table: Vec<u32> = (0..52).map(|entry| hostile[entry % 7]).collect();
            for (operand, bytes) in &mut cached.tensors {
                match *operand {
                    Operand::PageTable => *bytes = words(&table),
                    Operand::SeqlensKv => *bytes = words(&[u32::MAX, 201, 0x7fff_ffff, 130]),
                    _ => {}
                }
            }
            let [whole, checked] = [Variant::Full, Variant::Checked].map(|variant| cached.run(library(variant)));
            assert!(whole[&Operand::O] == checked[&Operand::O] && whole[&Operand::Lse] == checked[&Operand::Lse]);
        }
    }
}

#[test]
fn what_cannot_be_is_refused() {
    let shape = shape(1, 40);
    let base = AttentionProblem::new(shape);
    let cache = KvCache::contiguous(&shape, CacheElement::Int8);
    let capabilities = Capabilities::webgpu_defaults();
    let over = |cache: KvCache| base.clone().with_cache(cache).with_seqlens_kv_at_call();
    let wrong = [
        (over(KvCache::paged(&shape, CacheElement::F16, 0, 16)), "it has no pages"),
        (over(KvCache::paged(&shape, CacheElement::F16, 9, 0)), "page_size = 0"),
        (over(KvCache::paged(&shape, CacheElement::F16, 9, 16).with_max_pages(12)), "max_pages = 12 pages of 16"),
        (over(cache).with_algorithm(Algorithm::Standard), "standard attention reads none"),
        (base.clone().with_cu_seqlens_at_call(9, 9).with_cache(cache), "K and V of a cache are not packed"),
    ];
    for (problem, part) in wrong {
        match Plan::forward(&problem, &capabilities).build().map(|_| ()) {
            Err(Error::InvalidProblem(InvalidProblem::Cache { reason })) => assert!(reason.contains(part), "{reason}"),
            other => panic!("{other:?}, not {part}"),
        }
    }
    let backward = Plan::backward(&over(cache), &capabilities).build().map(|_| ());
    assert!(matches!(backward, Err(Error::InvalidProblem(InvalidProblem::Cache { .. }))), "{backward:?}");
}
