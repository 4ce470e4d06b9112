//! Appends to caches: every row within its rounding, and nothing else written.

use wgpu_flash_attention::reference::{self, AppendCase};
use wgpu_flash_attention::{
    AppendBuffers, AppendProblem, CacheElement, Call, Element, FlashAttention, Operand, Plan, Rotary, TensorLayout,
};

use super::case::Case;
use super::gpu_call::{self, Given, Tensors, Way};
use super::problem::sums;
use super::random::Random;
use super::solve::{Outcome, refused};
use super::values::{POISON, words};
use crate::elements;

/// The host values of a call.
#[derive(Default)]
struct Values {
    k: Vec<f64>,
    v: Vec<f64>,
    q: Vec<f64>,
    cos: Vec<f64>,
    sin: Vec<f64>,
    cache_seqlens: Vec<u32>,
    page_table: Vec<u32>,
    slot_mapping: Vec<u32>,
    cu_seqlens_new: Vec<u32>,
}

/// Runs the append of a settled case and compares.
pub fn solve(library: &FlashAttention, case: &Case) -> Outcome {
    let lengths = new_tokens(case);
    let append = problem(case, lengths.iter().sum());
    let plan = match library.plan_append(&append).build() {
        Ok(plan) => plan,
        Err(error) => return refused(error),
    };
    let prepared = match pollster::block_on(library.prepare_append(&append)) {
        Ok(prepared) => prepared,
        Err(error) => return refused(error),
    };
    let calls: Vec<Values> = (0..1 + case.more_calls).map(|n| Values::new(case, &append, &plan, &lengths, n)).collect();
    let given: Vec<Given> = calls.iter().map(|values| values.given(append.element)).collect();
    let way = Way {
        guard: 16 * (1 + case.seed % 40),
        apart: case.apart == 1,
        one_buffer: false,
        writes_q: is_in_place(case),
    };
    let judge = |found: Vec<Tensors>| {
        let mut judged = calls.iter().zip(&given).zip(found);
        judged.try_for_each(|((values, given), found)| values.judge(&append, given, found))
    };
    Outcome::from(gpu_call::run(library, &prepared, start, &given, &way).and_then(judge).map(|()| 0.0))
}

fn start<'a>(slice: &dyn Fn(Operand) -> wgpu::BufferSlice<'a>) -> AppendBuffers<'a> {
    use Operand::{K, KCache, V, VCache};
    AppendBuffers::new(slice(K), slice(V), slice(KCache), slice(VCache))
}

fn is_in_place(case: &Case) -> bool {
    case.rotary > 0 && case.rotated_q == 1
}

/// New tokens of each sequence, if they are packed.
fn new_tokens(case: &Case) -> Vec<u32> {
    let mut random = Random::new(case.seed, 61);
    (0..case.batch).map(|_| random.below(case.seqlen_q + 1) as u32).collect()
}

fn problem(case: &Case, total: u32) -> AppendProblem {
    let mut shape = case.shape();
    let cache = case.kv_cache(&shape);
    let mut append = AppendProblem::new(shape, cache).with_element(case.element());
    let half = shape.head_dim / 2;
    if case.rotary > 0 && half > 0 {
        let rotary_dim = 2 * (1 + case.seed as u32 % half);
        let positions = 1 + case.seed as u32 % (shape.seqlen_kv + 5);
        let rotary = match case.rotary {
            1 | 3 => Rotary::interleaved(rotary_dim, positions),
            _ => Rotary::halves(rotary_dim, positions),
        };
        append = append.with_rotary(if case.rotary > 2 { rotary.per_token() } else { rotary });
        append = match case.rotated_q {
            1 => append.with_rotated_q_in_place(),
            2 => append.with_rotated_q(),
            _ => append,
        };
    }
    if case.packed > 0 {
        append = append.with_packed_tokens(total);
        shape.seqlen_q = total;
    }
    if case.layout % 2 == 1 {
        let gap = case.seed % 3;
        let of = |heads: u32, dim: u32| {
            let layout = TensorLayout::bhsd(shape.seqlen_q, heads, dim + gap as u32);
            TensorLayout { offset: gap, ..layout }
        };
        append.layout.q = of(shape.num_heads, shape.head_dim);
        append.layout.o = append.layout.q;
        append.layout.k = of(shape.num_heads_kv, shape.head_dim);
        append.layout.v = of(shape.num_heads_kv, shape.head_dim_v);
    }
    if case.slots == 1 {
        append = append.with_slot_mapping();
    }
    append.with_new_cache_seqlens()
}

impl Values {
    fn new(case: &Case, append: &AppendProblem, plan: &Plan, lengths: &[u32], number: u64) -> Self {
        let mut random = Random::new(case.seed, 2000 + number);
        let shape = &append.shape;
        let draw = |random: &mut Random, operand: Operand, element: Element| -> Vec<f64> {
            let value = |random: &mut Random| match case.values % 8 {
                5 if random.one_in(200) => f64::NAN,
                6 => 0.0,
                3 => random.normal() * 2f64.powi(random.below(48) as i32 - 40),
                _ => random.normal(),
            };
            (0..plan.required_len(operand)).map(|_| element.round(value(random))).collect()
        };
        let [k, v, q] = [Operand::K, Operand::V, Operand::Q].map(|of| draw(&mut random, of, append.element));
        let angles: Vec<f64> = (0..plan.required_len(Operand::RotaryCos)).map(|_| 3.0 * random.normal()).collect();
        let table = |f: fn(f64) -> f64| angles.iter().map(|angle| Element::F32.round(f(*angle))).collect();
        let length = |random: &mut Random| random.below(u64::from(shape.seqlen_kv) + 1) as u32;
        let cache_seqlens = (0..shape.batch).map(|_| length(&mut random)).collect();
        Self {
            k,
            v,
            q,
            cos: table(f64::cos),
            sin: table(f64::sin),
            cache_seqlens,
            page_table: page_table(append, &mut random),
            slot_mapping: slots(append, plan.required_len(Operand::SlotMapping), &mut random),
            cu_seqlens_new: if case.packed > 0 { sums(lengths) } else { Vec::new() },
        }
    }

    /// Caches hold another pattern than what is around them.
    fn given(&self, element: Element) -> Given {
        let bytes = |element, values: &[f64]| elements::encode(element, values.iter().copied());
        let tensors = [
            (Operand::K, bytes(element, &self.k)),
            (Operand::V, bytes(element, &self.v)),
            (Operand::Q, bytes(element, &self.q)),
            (Operand::RotaryCos, bytes(Element::F32, &self.cos)),
            (Operand::RotarySin, bytes(Element::F32, &self.sin)),
            (Operand::CacheSeqlens, words(&self.cache_seqlens)),
            (Operand::PageTable, words(&self.page_table)),
            (Operand::SlotMapping, words(&self.slot_mapping)),
            (Operand::CuSeqlensNew, words(&self.cu_seqlens_new)),
        ];
        Given { call: Call::new(), tensors: tensors.into_iter().collect() }
    }

    /// Compares every byte that was written.
    fn judge(&self, append: &AppendProblem, given: &Given, mut found: Tensors) -> Result<(), String> {
        let case = &mut AppendCase::default();
        (case.k, case.v, case.q) = (&self.k, &self.v, &self.q);
        (case.rotary_cos, case.rotary_sin) = (&self.cos, &self.sin);
        (case.cache_seqlens, case.page_table) = (&self.cache_seqlens, &self.page_table);
        (case.slot_mapping, case.cu_seqlens_new) = (&self.slot_mapping, &self.cu_seqlens_new);
        let lengths = found.remove(&Operand::NewCacheSeqlens).unwrap_or_default();
        self.judge_lengths(append, &lengths)?;
        for row in reference::append(append, case) {
            let is_cache = matches!(row.operand, Operand::KCache | Operand::VCache);
            let element = if is_cache { append.cache.element } else { append.element.into() };
            let dim = row.values.len() as u32;
            let size = if matches!(element, CacheElement::F16 | CacheElement::Bf16) { 2 } else { 4 };
            let (first, len) = (row.first as usize * size, element.row_len(dim) as usize * size);
            let bytes = found.get_mut(&row.operand).and_then(|bytes| bytes.get_mut(first..first + len));
            let bytes = bytes.ok_or_else(|| format!("{} has no entry {}", row.operand, row.first))?;
            judge_row(element, bytes, &row.values, &row.errors)
                .map_err(|reason| format!("{} from entry {}: {reason}", row.operand, row.first))?;
            // What was there before.
            match given.tensors.get(&row.operand) {
                Some(before) => bytes.copy_from_slice(&before[first..first + len]),
                None => bytes.fill(POISON),
            }
        }
        for (operand, bytes) in found {
            let before = given.tensors.get(&operand);
            let old = |at: usize| before.and_then(|before| before.get(at).copied()).unwrap_or(POISON);
            if let Some(at) = bytes.iter().enumerate().position(|(at, byte)| *byte != old(at)) {
                return Err(format!("byte {at} of {operand}, which no token owns, was written"));
            }
        }
        Ok(())
    }

    fn judge_lengths(&self, append: &AppendProblem, bytes: &[u8]) -> Result<(), String> {
        for (batch, (before, found)) in self.cache_seqlens.iter().zip(bytes.chunks(4)).enumerate() {
            let new = match self.cu_seqlens_new.get(batch..batch + 2) {
                Some(sums) => sums[1] - sums[0],
                None => append.shape.seqlen_q,
            };
            let expected = (before + new).min(append.shape.seqlen_kv);
            if found != expected.to_le_bytes() {
                return Err(format!("the new length of sequence {batch} is {found:?} in bytes, not {expected}"));
            }
        }
        Ok(())
    }
}

fn judge_row(element: CacheElement, bytes: &[u8], values: &[f64], errors: &[f64]) -> Result<(), String> {
    let stored = match element {
        CacheElement::F32 => Element::F32,
        CacheElement::F16 => Element::F16,
        CacheElement::Bf16 => Element::Bf16,
        _ => return judge_int8(bytes, values, errors),
    };
    for ((found, value), error) in elements::decode(stored, bytes).zip(values).zip(errors) {
        // Devices may flush what is subnormal.
        let error = error + f64::from(f32::MIN_POSITIVE);
        let [low, high] = [value - error, value + error].map(|value| stored.round(value));
        let fits = if value.is_nan() { found.is_nan() } else { (low..=high).contains(&found) };
        if !fits {
            return Err(format!("{found:e} for {value:e}"));
        }
    }
    Ok(())
}

fn judge_int8(bytes: &[u8], values: &[f64], errors: &[f64]) -> Result<(), String> {
    let words: Vec<u32> =
        bytes.chunks_exact(4).map(|word| u32::from_le_bytes([word[0], word[1], word[2], word[3]])).collect();
    let found = reference::dequantized(&words, values.len() as u32);
    let scale = f64::from(f32::from_bits(words[0]));
    if values.iter().any(|value| !value.is_finite()) {
        return if scale.is_nan() { Ok(()) } else { Err(format!("the scale of a row with a NaN is {scale:e}")) };
    }
    let largest = values.iter().fold(0f64, |largest, value| largest.max(value.abs()));
    let error = errors.iter().fold(0f64, |largest, error| largest.max(*error));
    // A division in f32, of WGSL's precision.
    let expected = largest / 127.0;
    let tolerance = error / 127.0 + expected * 2f64.powi(-21) + f64::from(f32::MIN_POSITIVE);
    if (scale - expected).abs() > tolerance {
        return Err(format!("the scale is {scale:e}, not {expected:e}"));
    }
    for ((found, value), error) in found.iter().zip(values).zip(errors) {
        let bound = scale * 0.5 * (1.0 + 2f64.powi(-13)) + error + f64::from(f32::MIN_POSITIVE) * 127.0;
        if (found - value).abs() > bound {
            return Err(format!("{found:e} for {value:e}, with the scale {scale:e}"));
        }
    }
    let padding = reference::dequantized(&words, (words.len() as u32 - 1) * 4);
    match padding[values.len()..].iter().all(|value| *value == 0.0) {
        true => Ok(()),
        false => Err("bytes behind the row are not 0".to_owned()),
    }
}

/// Pages in an order that is no order.
fn page_table(append: &AppendProblem, random: &mut Random) -> Vec<u32> {
    let Some(pages) = append.cache.pages else { return Vec::new() };
    let mut order: Vec<u32> = (0..pages.num_pages).collect();
    for last in (1..order.len()).rev() {
        order.swap(last, random.below(last as u64 + 1) as usize);
    }
    order.truncate((append.shape.batch * pages.max_pages) as usize);
    order
}

/// A place for each token, and none for some. No two have one place.
fn slots(append: &AppendProblem, tokens: u64, random: &mut Random) -> Vec<u32> {
    let shape = &append.shape;
    let places = append.cache.pages.map_or(shape.batch * shape.seqlen_kv, |pages| pages.num_pages * pages.page_size);
    let mut free: Vec<u32> = (0..places).collect();
    let slot = |_| match random.below(5) {
        // No place, or one that does not exist.
        0 => u32::MAX - random.below(2) as u32,
        _ if free.is_empty() => u32::MAX,
        _ => free.swap_remove(random.below(free.len() as u64) as usize),
    };
    (0..tokens).map(slot).collect()
}
