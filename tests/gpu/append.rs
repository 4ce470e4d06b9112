//! Appends to caches: every row within its rounding, and nothing else written.

use std::collections::HashMap;
use wgpu_flash_attention::reference::{self, AppendCase};
use wgpu_flash_attention::{
    AppendBuffers, AppendProblem, AppendSlices, AttentionLayout, AttentionShape, CacheElement, Call, Capabilities,
    Element, ElementType, Error, InvalidProblem, KvCache, Operand, Plan, Rotary, TensorLayout,
};

use crate::support::{Guarded, Library, Random, Variant, from_bytes, library, to_bytes, words};

/// What is in a cache before an append: it must still be there afterwards.
const OLD: u8 = 0xa5;

/// The host values of a call.
#[derive(Clone, Default)]
struct Given {
    k: Vec<f64>,
    v: Vec<f64>,
    q: Vec<f64>,
    cache_seqlens: Vec<u32>,
    page_table: Vec<u32>,
    slot_mapping: Vec<u32>,
    cu_seqlens_new: Vec<u32>,
    rotary_cos: Vec<f64>,
    rotary_sin: Vec<f64>,
}

impl Given {
    /// Values that the problem's element holds, for all that the plan reads; no tables but those of rotary embeddings.
    fn random(append: &AppendProblem, seed: u64) -> Self {
        let plan = Plan::append(append, &Capabilities::webgpu_defaults()).build().expect("it can be planned");
        let mut random = Random(seed);
        let mut draw = |operand, element: Element| {
            let len = plan.required_len(operand);
            (0..len).map(|_| element.round(random.normal())).collect::<Vec<f64>>()
        };
        let [k, v, q] = [Operand::K, Operand::V, Operand::Q].map(|operand| draw(operand, append.element));
        let angles = draw(Operand::RotaryCos, Element::F32);
        let table = |f: fn(f64) -> f64| angles.iter().map(|angle| Element::F32.round(f(*angle))).collect();
        Self { k, v, q, rotary_cos: table(f64::cos), rotary_sin: table(f64::sin), ..Self::default() }
    }

    fn case(&self) -> AppendCase<'_> {
        let mut case = AppendCase::default();
        (case.k, case.v, case.q) = (&self.k, &self.v, &self.q);
        (case.rotary_cos, case.rotary_sin) = (&self.rotary_cos, &self.rotary_sin);
        (case.cache_seqlens, case.page_table) = (&self.cache_seqlens, &self.page_table);
        (case.slot_mapping, case.cu_seqlens_new) = (&self.slot_mapping, &self.cu_seqlens_new);
        case
    }

    /// The bytes of each tensor that is read.
    fn bytes(&self, element: Element) -> Vec<(Operand, Vec<u8>)> {
        let words = |words: &[u32]| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>();
        vec![
            (Operand::K, to_bytes(element, &self.k)),
            (Operand::V, to_bytes(element, &self.v)),
            (Operand::Q, to_bytes(element, &self.q)),
            (Operand::CacheSeqlens, words(&self.cache_seqlens)),
            (Operand::PageTable, words(&self.page_table)),
            (Operand::SlotMapping, words(&self.slot_mapping)),
            (Operand::CuSeqlensNew, words(&self.cu_seqlens_new)),
            (Operand::RotaryCos, to_bytes(Element::F32, &self.rotary_cos)),
            (Operand::RotarySin, to_bytes(Element::F32, &self.rotary_sin)),
        ]
    }
}

/// Runs an append through the caller's own buffers, between guards. What each tensor that is written holds.
fn run(library: &Library, append: &AppendProblem, given: &Given, call: &Call) -> HashMap<Operand, Vec<u8>> {
    let prepared = pollster::block_on(library.prepare_append(append)).expect("it can be prepared");
    let plan = prepared.plan();
    let mut tensors = HashMap::new();
    for operand in [Operand::KCache, Operand::VCache, Operand::QRotated, Operand::NewCacheSeqlens] {
        let old = vec![OLD; plan.required_bytes(operand) as usize];
        tensors.insert(operand, Guarded::new(library, &old));
    }
    for (operand, bytes) in given.bytes(append.element) {
        tensors.insert(operand, Guarded::new(library, &bytes));
    }
    let slice = |operand| tensors[&operand].slice();
    let buffers =
        AppendBuffers::new(slice(Operand::K), slice(Operand::V), slice(Operand::KCache), slice(Operand::VCache));
    let buffers = plan.operands().fold(buffers, |buffers, operand| buffers.with(operand, slice(operand)));
    let mut encoder = library.device().create_command_encoder(&Default::default());
    prepared.encode_call(&mut encoder, &buffers, call).expect("it can be encoded");
    library.queue().submit([encoder.finish()]);
    tensors.into_iter().map(|(operand, tensor)| (operand, tensor.read(library))).collect()
}

/// Runs it and compares every byte of what is written.
fn check(library: &Library, append: &AppendProblem, given: &Given) {
    let found = run(library, append, given, &Call::new());
    check_found(append, append, given, &found);
}

/// What a call that solves `solved` has left in tensors of `prepared`.
fn check_found(prepared: &AppendProblem, solved: &AppendProblem, given: &Given, found: &HashMap<Operand, Vec<u8>>) {
    let mut rest = found.clone();
    for row in reference::append(solved, &given.case()) {
        let is_cache = matches!(row.operand, Operand::KCache | Operand::VCache);
        let element = if is_cache { prepared.cache.element } else { prepared.element.into() };
        let dim = row.values.len() as u32;
        let (size, len) = match element {
            CacheElement::F16 | CacheElement::Bf16 => (2, dim),
            _ => (4, element.row_len(dim)),
        };
        let bytes =
            &mut rest.get_mut(&row.operand).expect("it is written")[row.first as usize * size..][..len as usize * size];
        check_row(element, bytes, &row.values, &row.errors);
        bytes.fill(OLD);
    }
    for operand in [Operand::KCache, Operand::VCache, Operand::QRotated] {
        let changed = rest[&operand].iter().position(|byte| *byte != OLD);
        assert_eq!(changed, None, "a byte of {operand} that no token owns was written: {prepared:?}");
    }
}

fn check_row(element: CacheElement, bytes: &[u8], values: &[f64], errors: &[f64]) {
    let stored = match element {
        CacheElement::F32 => Element::F32,
        CacheElement::F16 => Element::F16,
        CacheElement::Bf16 => Element::Bf16,
        _ => return check_int8(bytes, values, errors),
    };
    for ((found, value), error) in from_bytes(stored, bytes).iter().zip(values).zip(errors) {
        let [low, high] = [value - error, value + error].map(|value| stored.round(value));
        let fits = if value.is_nan() { found.is_nan() } else { (low..=high).contains(found) };
        assert!(fits, "{found:e} in {stored:?} for {value:e}");
    }
}

fn check_int8(bytes: &[u8], values: &[f64], errors: &[f64]) {
    let words: Vec<u32> = bytes.chunks(4).map(|word| u32::from_le_bytes(word.try_into().unwrap())).collect();
    let found = reference::dequantized(&words, values.len() as u32);
    let scale = f64::from(f32::from_bits(words[0]));
    if values.iter().any(|value| !value.is_finite()) {
        assert!(scale.is_nan(), "a row that is not finite has the scale {scale}");
        return;
    }
    let largest = values.iter().fold(0f64, |largest, value| largest.max(value.abs()));
    let error = errors.iter().fold(0f64, |largest, error| largest.max(*error));
    // A division in f32, of WGSL's precision.
    let expected = largest / 127.0;
    assert!((scale - expected).abs() <= error / 127.0 + expected * 2f64.powi(-21), "scale {scale:e}, not {expected:e}");
    for ((found, value), error) in found.iter().zip(values).zip(errors) {
        let bound = scale * 0.5 * (1.0 + 2f64.powi(-13)) + error;
        assert!((found - value).abs() <= bound, "{found:e} for {value:e}, scale {scale:e}");
    }
    // Bytes behind the row.
    let padding = reference::dequantized(&words, (words.len() as u32 - 1) * 4);
    assert!(padding[values.len()..].iter().all(|value| *value == 0.0));
}

fn shape(seqlen_new: u32, head_dim: u32) -> AttentionShape {
    AttentionShape::new(3, 4, seqlen_new, head_dim).with_num_heads_kv(2).with_seqlen_kv(200).with_head_dim_v(24)
}

/// Pages of their own for three sequences of at most 200 positions, in an order that is no order; 201 entries for each, of which
/// those that no position needs are no pages.
fn scrambled(page_size: u32) -> (u32, Vec<u32>) {
    let used = 200u32.div_ceil(page_size);
    let pages = 3 * used + 2;
    let page = |batch, entry| if entry < used { ((batch * used + entry) * 7919 + 5) % pages } else { u32::MAX - entry };
    (pages, (0..3).flat_map(|batch| (0..201).map(move |entry| page(batch, entry))).collect())
}

#[test]
fn every_type_to_every_type() {
    for &element in Element::ALL {
        for &cache_element in CacheElement::ALL {
            for head_dim in [64, 37] {
                let shape = shape(7, head_dim);
                let append =
                    AppendProblem::new(shape, KvCache::contiguous(&shape, cache_element)).with_element(element);
                let mut given = Given { cache_seqlens: vec![0, 100, 193], ..Given::random(&append, 1) };
                check(library(Variant::Full), &append, &given);
                // Ties, subnormals, what rounds to infinity, zeros, and what is not finite.
                let special =
                    [1.0 + 2f64.powi(-11), 1.0 + 3.0 * 2f64.powi(-11), 65519.9, 65520.0, -65504.0, 2f64.powi(-25)];
                let more = [1.5 * 2f64.powi(-24), 2f64.powi(-15) * 1.001, -0.0, 3e38, 0.0, -1e-7];
                for (k, value) in given.k.iter_mut().zip(special.iter().chain(&more).cycle()) {
                    *k = element.round(*value);
                }
                given.v[..24].fill(0.0);
                given.v[24] = f64::NAN;
                given.v[49] = f64::NEG_INFINITY;
                check(library(Variant::Full), &append, &given);
            }
        }
    }
}

#[test]
fn rotary_both_ways_and_partial() {
    for (seed, rotary) in (10..).zip([
        Rotary::interleaved(64, 210),
        Rotary::halves(64, 210),
        Rotary::interleaved(40, 210),
        Rotary::halves(40, 210),
        Rotary::halves(6, 50),
        Rotary::halves(40, 1).per_token(),
    ]) {
        for (element, cache_element) in
            [(Element::F32, CacheElement::F32), (Element::Bf16, CacheElement::F16), (Element::F16, CacheElement::Int8)]
        {
            let shape = shape(5, 64);
            let append = AppendProblem::new(shape, KvCache::contiguous(&shape, cache_element))
                .with_element(element)
                .with_rotary(rotary);
            for append in [append.clone(), append.clone().with_rotated_q(), append.with_rotated_q_in_place()] {
                let given = Given { cache_seqlens: vec![0, 17, 190], ..Given::random(&append, seed) };
                check(library(Variant::Full), &append, &given);
            }
        }
    }
}

/// Rows of an odd number of 16-bit elements share words, in place too.
#[test]
fn rotary_of_odd_rows_in_place() {
    for element in [Element::F16, Element::Bf16] {
        let shape = shape(5, 37);
        let append = AppendProblem::new(shape, KvCache::contiguous(&shape, CacheElement::Bf16))
            .with_element(element)
            .with_rotary(Rotary::interleaved(36, 200))
            .with_rotated_q_in_place();
        let given = Given { cache_seqlens: vec![3, 0, 7], ..Given::random(&append, 21) };
        check(library(Variant::Full), &append, &given);
    }
}

#[test]
fn pages_and_numbers_of_tokens() {
    for (seed, tokens) in (30..).zip([0, 1, 7, 130]) {
        for page_size in [1, 3, 16, 256] {
            for cache_element in [CacheElement::F16, CacheElement::Int8] {
                let shape = shape(tokens, 40);
                let (pages, page_table) = scrambled(page_size);
                let cache = KvCache::paged(&shape, cache_element, pages, page_size).with_max_pages(201);
                let append = AppendProblem::new(shape, cache).with_element(Element::F16).with_new_cache_seqlens();
                // The last one is nearly full: what does not fit is not written.
                let given = Given { cache_seqlens: vec![0, 29, 150], page_table, ..Given::random(&append, seed) };
                let found = run(library(Variant::Full), &append, &given, &Call::new());
                check_found(&append, &append, &given, &found);
                let lengths: Vec<u32> = found[&Operand::NewCacheSeqlens]
                    .chunks(4)
                    .map(|word| u32::from_le_bytes(word.try_into().unwrap()))
                    .collect();
                assert_eq!(lengths, [tokens, 29 + tokens, (150 + tokens).min(200)]);
            }
        }
    }
}

#[test]
fn slots_and_packed_tokens() {
    for cache_element in [CacheElement::F32, CacheElement::Bf16, CacheElement::Int8] {
        let shape = shape(9, 40);
        let (pages, page_table) = scrambled(16);
        let paged = KvCache::paged(&shape, cache_element, pages, 16).with_max_pages(201);
        for (seed, cache) in [(40, KvCache::contiguous(&shape, cache_element)), (41, paged)] {
            let even = AppendProblem::new(shape, cache).with_element(Element::Bf16);
            let slots = even.clone().with_slot_mapping();
            let slot = |token: u32| if token % 5 == 2 { u32::MAX } else { token * 577 % (200 * 3) };
            let given = Given { slot_mapping: (0..27).map(slot).collect(), ..Given::random(&slots, seed) };
            check(library(Variant::Full), &slots, &given);

            // 2, 0 and 9 tokens, rotated by their positions.
            let packed = even.with_packed_tokens(11).with_rotary(Rotary::halves(40, 200)).with_rotated_q_in_place();
            let mut given = Given {
                cache_seqlens: vec![5, 0, 64],
                cu_seqlens_new: vec![0, 2, 2, 11],
                page_table: page_table.clone(),
                ..Given::random(&packed, seed + 2)
            };
            check(library(Variant::Full), &packed, &given);
            given.slot_mapping = (0..11).map(slot).collect();
            check(library(Variant::Full), &packed.clone().with_slot_mapping(), &given);
            let per_token = packed.with_slot_mapping().with_rotary(Rotary::interleaved(2, 1).per_token());
            let given = Given {
                cu_seqlens_new: given.cu_seqlens_new,
                slot_mapping: given.slot_mapping,
                ..Given::random(&per_token, 5)
            };
            check(library(Variant::Full), &per_token, &given);
        }
    }
}

/// Layouts with gaps, views of one buffer, and a part of the device's limits.
#[test]
fn other_layouts_and_devices() {
    let shape = AttentionShape::new(2, 4, 7, 24).with_num_heads_kv(2).with_seqlen_kv(50).with_head_dim_v(16);
    let layout = AttentionLayout {
        q: TensorLayout { offset: 5, ..TensorLayout::bhsd(7, 4, 25) },
        k: TensorLayout::bhsd(7, 2, 24),
        v: TensorLayout { stride_batch: 0, ..TensorLayout::bshd(7, 2, 19) },
        o: TensorLayout { offset: 2, ..TensorLayout::bhsd(9, 4, 24) },
    };
    for &cache_element in CacheElement::ALL {
        let rows = cache_element.row_len(24);
        let k = TensorLayout { offset: 3, ..TensorLayout::bhsd(50, 2, rows + 1) };
        let cache = KvCache::contiguous(&shape, cache_element).with_layouts(k, TensorLayout::bhsd(60, 2, 18));
        let append = AppendProblem::new(shape, cache)
            .with_element(Element::F16)
            .with_layout(layout)
            .with_rotary(Rotary::halves(24, 60))
            .with_rotated_q();
        let given = Given { cache_seqlens: vec![9, 43], ..Given::random(&append, 51) };
        for variant in [Variant::Full, Variant::NoShaderF16, Variant::Checked, Variant::WebGpuDefaults] {
            check(library(variant), &append, &given);
        }
    }
}

/// Whatever lengths, tables, slots and sums hold, nothing is written that is not in the cache.
#[test]
fn hostile_numbers_write_nothing_outside() {
    let hostile = [u32::MAX, 1 << 31, 199, 200, 0x7fff_ffff, 1 << 30, 0, 201];
    let cycled =
        |len: usize, first: usize| (0..len).map(|n| hostile[(n + first) % hostile.len()]).collect::<Vec<u32>>();
    for (seed, variant) in [(60, Variant::Full), (61, Variant::Checked)] {
        let shape = shape(9, 40);
        let contiguous = AppendProblem::new(shape, KvCache::contiguous(&shape, CacheElement::F16));
        let cache = KvCache::paged(&shape, CacheElement::Int8, 40, 16).with_max_pages(201);
        let paged = AppendProblem::new(shape, cache).with_rotary(Rotary::halves(40, 3)).with_rotated_q();
        let slots = paged.clone().with_slot_mapping();
        for (n, append) in [contiguous, paged.clone(), slots, paged.with_packed_tokens(11)].iter().enumerate() {
            for first in 0..hostile.len() {
                let given = Given {
                    cache_seqlens: cycled(3, first),
                    // Pages of their own where they exist.
                    page_table: (0..603)
                        .map(|entry| if entry % 3 == 0 { hostile[entry % 8] } else { entry as u32 / 2 })
                        .collect(),
                    slot_mapping: (0..27)
                        .map(|token| if token % 2 == 0 { hostile[token % 8] } else { 600 + token as u32 * 17 })
                        .collect(),
                    cu_seqlens_new: [cycled(4, first), vec![5, 0, 11, 3], vec![0, 11, 11, 11]][first % 3].clone(),
                    ..Given::random(append, seed + n as u64)
                };
                run(library(variant), append, &given, &Call::new());
            }
        }
    }
}

/// A shorter call appends fewer tokens; tensors keep their strides.
#[test]
fn shorter_calls_and_nothing() {
    let shape = shape(9, 40);
    let append = AppendProblem::new(shape, KvCache::contiguous(&shape, CacheElement::Bf16)).with_new_cache_seqlens();
    let given = Given { cache_seqlens: vec![0, 10, 195], ..Given::random(&append, 71) };
    for tokens in [0, 1, 4] {
        let found = run(library(Variant::Full), &append, &given, &Call::new().with_seqlen_q(tokens));
        let mut solved = append.clone();
        solved.shape.seqlen_q = tokens;
        check_found(&append, &solved, &given, &found);
        assert_eq!(found[&Operand::NewCacheSeqlens][4], 10 + tokens as u8);
    }
    for shape in
        [AttentionShape { batch: 0, ..shape }, shape.with_seqlen_kv(0), AttentionShape { num_heads_kv: 1, ..shape }]
    {
        let append = AppendProblem::new(shape, KvCache::contiguous(&shape, CacheElement::Int8));
        let given = Given { cache_seqlens: vec![0; 3], ..Given::random(&append, 72) };
        check(library(Variant::Full), &append, &given);
        let packed = append.with_packed_tokens(0).with_new_cache_seqlens();
        let given = Given { cu_seqlens_new: vec![0; 4], cache_seqlens: vec![0; 3], ..Given::random(&packed, 73) };
        check(library(Variant::Full), &packed, &given);
    }
}

/// K and V of a cache may lie side by side in one buffer, `[batch, 2, positions, heads, dim]`, but not at one place.
#[test]
fn one_buffer_for_both_caches() {
    let shape = AttentionShape { head_dim_v: 40, ..shape(2, 40) };
    let attention = library(Variant::Full);
    let whole = KvCache::contiguous(&shape, CacheElement::F32);
    let half = whole.k.stride_batch;
    let k = TensorLayout { stride_batch: 2 * half, ..whole.k };
    let beside = whole.with_layouts(k, TensorLayout { offset: half, ..k });
    let given = Guarded::at(attention, 512, &vec![0; 1 << 20]);
    let cache = Guarded::at(attention, 512, &vec![0; 2 << 20]);
    let lengths = Guarded::at(attention, 512, &words(&[0, 5, 9]));
    let encode = |cache_of: KvCache| {
        let append = AppendProblem::new(shape, cache_of);
        let append = pollster::block_on(attention.prepare_append(&append)).expect("it can be prepared");
        let buffers = AppendBuffers::new(given.slice(), given.slice(), cache.slice(), cache.slice())
            .with(Operand::CacheSeqlens, lengths.slice());
        append.encode(&mut attention.device().create_command_encoder(&Default::default()), &buffers)
    };
    assert_eq!(encode(beside), Ok(()));
    let aliased = Error::BufferAliased { output: Operand::KCache, other: Operand::VCache };
    assert_eq!(encode(whole), Err(aliased));
}

#[test]
fn from_slices() {
    let shape = shape(2, 40);
    let attention = library(Variant::Full);
    let (pages, page_table) = scrambled(16);
    let cache = KvCache::paged(&shape, CacheElement::Int8, pages, 16).with_max_pages(201);
    let append =
        AppendProblem::new(shape, cache).with_rotary(Rotary::halves(40, 64)).with_rotated_q().with_new_cache_seqlens();
    let lengths = vec![0, 15, 62];
    let given = Given { cache_seqlens: lengths.clone(), page_table: page_table.clone(), ..Given::random(&append, 81) };
    let f32s = |values: &[f64]| values.iter().map(|value| *value as f32).collect::<Vec<f32>>();
    let [k, v, q, cos, sin] =
        [&given.k, &given.v, &given.q, &given.rotary_cos, &given.rotary_sin].map(|values| f32s(values));
    let len = |len: Option<u64>| vec![0xa5a5_a5a5u32; len.unwrap() as usize];
    let (k_cache, v_cache) = (len(cache.required_len_of_k(&shape)), len(cache.required_len_of_v(&shape)));
    let slices = AppendSlices::new(&k, &v, &k_cache, &v_cache).with_q(&q).with_rotary(&cos, &sin);
    let run_with = |append: &AppendProblem, lengths: &[u32], table: &[u32]| {
        let slices = slices.with_cache_seqlens(lengths).with_page_table(table);
        pollster::block_on(attention.append(append, &slices))
    };
    let found = run_with(&append, &lengths, &page_table).expect("it runs");
    let expected = run(attention, &append, &given, &Call::new());
    let bytes = |words: &[u32]| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>();
    assert!(bytes(&found.k_cache) == expected[&Operand::KCache]);
    assert!(bytes(&found.v_cache) == expected[&Operand::VCache]);
    assert!(
        to_bytes(Element::F32, &found.q.iter().map(|q| q.to_f64()).collect::<Vec<_>>()) == expected[&Operand::QRotated]
    );
    assert_eq!(found.cache_seqlens, [2, 17, 64]);

    let table = |result: Result<_, Error>, operand: Operand, part: &str| match result.map(|_| ()) {
        Err(Error::InvalidTable { operand: found, reason }) => {
            assert!(found == operand && reason.contains(part), "{found}: {reason}");
        }
        other => panic!("{other:?}"),
    };
    table(
        run_with(&append, &[0, 199, 0], &page_table),
        Operand::CacheSeqlens,
        "sequence 1 has 199 positions and 2 new",
    );
    table(run_with(&append, &[0, 0, 63], &page_table), Operand::CacheSeqlens, "the rotary tables have 64");
    let mut wrong = page_table.clone();
    wrong[201] = pages;
    table(run_with(&append, &lengths, &wrong), Operand::PageTable, "entry 0 of sequence 1 is page");
    wrong[201] = page_table[0];
    table(run_with(&append, &[0, 0, 62], &wrong), Operand::PageTable, "two tokens go to one place, row 0 of page 5");
    let short = run_with(&append, &lengths, &page_table[..602]);
    assert!(matches!(short, Err(Error::SliceTooShort { operand: Operand::PageTable, needed: 603, found: 602 })));
    let missing = pollster::block_on(attention.append(&append, &slices));
    assert!(matches!(missing, Err(Error::SliceTooShort { operand: Operand::CacheSeqlens, found: 0, .. })));
    let words = missing.unwrap_err().to_string();
    assert!(words.contains("no slice for cache_seqlens was given") && words.contains("with_cache_seqlens of Append"));

    let by_slots = append.clone().with_slot_mapping();
    let run_slots = |slots: &[u32]| {
        let slices = slices.with_cache_seqlens(&lengths).with_slot_mapping(slots);
        pollster::block_on(attention.append(&by_slots, &slices))
    };
    run_slots(&[u32::MAX, 1, 2, u32::MAX, 3, 4]).expect("it runs");
    table(run_slots(&[0, 1, 2, 3, 1, 5]), Operand::SlotMapping, "two tokens go to one place, row 1 of page 0");
    table(run_slots(&[0, 1, 2, 3, 4, pages * 16]), Operand::SlotMapping, "the cache has");
    let packed = append.with_packed_tokens(4);
    let run_sums = |sums: &[u32]| {
        let slices = slices.with_cache_seqlens(&lengths).with_page_table(&page_table).with_cu_seqlens_new(sums);
        pollster::block_on(attention.append(&packed, &slices))
    };
    run_sums(&[0, 1, 2, 4]).expect("it runs");
    for (sums, part) in [
        ([1, 1, 2, 4], "the first is 1"),
        ([0, 2, 1, 4], "entry 2 is 1, less than 2"),
        ([0, 1, 4, 4], "sequence 1 has 3 rows"),
        ([0, 1, 2, 3], "the last is 3"),
    ] {
        table(run_sums(&sums), Operand::CuSeqlensNew, part);
    }
}

#[test]
fn what_cannot_be_is_refused() {
    let shape = shape(2, 40);
    let cache = KvCache::contiguous(&shape, CacheElement::F16);
    let append = AppendProblem::new(shape, cache);
    let paged = |pages: u32, page_size: u32, max: u32| {
        KvCache::paged(&shape, CacheElement::F16, pages, page_size).with_max_pages(max)
    };
    let wrong = [
        (append.clone().with_rotary(Rotary::halves(0, 4)), "rotary"),
        (append.clone().with_rotary(Rotary::halves(7, 4)), "rotary"),
        (append.clone().with_rotary(Rotary::interleaved(42, 4)), "rotary"),
        (append.clone().with_rotary(Rotary::interleaved(40, 0)), "rotary"),
        (append.clone().with_rotated_q(), "rotary"),
        (append.clone().with_packed_tokens(u32::MAX), "packed tokens"),
        (AppendProblem::new(shape, paged(4, 0, 200)), "cache"),
        (AppendProblem::new(shape, paged(4, 16, 12)), "cache"),
        (AppendProblem::new(shape, paged(u32::MAX, 16, 13)), "cache"),
        (AppendProblem::new(shape, paged(4, u32::MAX, 13)), "cache"),
    ];
    let capabilities = Capabilities::webgpu_defaults();
    for (append, expected) in wrong {
        match Plan::append(&append, &capabilities).build().map(|_| ()) {
            Err(Error::InvalidProblem(InvalidProblem::Append { name, .. })) => assert_eq!(name, expected),
            other => panic!("{other:?} for {append:?}"),
        }
    }
    let overlapping = cache.with_layouts(cache.k, TensorLayout { stride_row: 3, ..cache.v });
    let error = Plan::append(&AppendProblem::new(shape, overlapping), &capabilities).build().unwrap_err();
    assert_eq!(error, InvalidProblem::LayoutOverlaps(Operand::VCache).into());
    let error = Plan::append(&append, &capabilities).with_splits(2).build().unwrap_err();
    assert!(matches!(error, Error::InvalidPlan { what: "num_splits", .. }), "{error}");
}
