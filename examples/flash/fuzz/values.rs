//! Host values of a call. Whatever no row and no key of a sequence owns is NaN: gaps, rows behind lengths, tails.

use wgpu_flash_attention::reference::{self, Score};
use wgpu_flash_attention::{
    AttentionProblem, AttentionShape, CacheElement, Element, EntryLayout, KeyMask, KvCache, Operand, ScoreMod,
    TensorLayout,
};

use super::case::Case;
use super::functions::Closures;
use super::problem::{Asked, Question, aux};
use super::random::Random;
use crate::elements;

/// Bytes outside of what a tensor owns: a NaN in every type.
pub const POISON: u8 = 0xff;

/// What a call reads.
pub struct Values<'a> {
    problem: &'a AttentionProblem,
    closures: Closures,
    pub q: Vec<f64>,
    pub k: Vec<f64>,
    pub v: Vec<f64>,
    pub d_o: Vec<f64>,
    pub d_lse: Option<Vec<f64>>,
    bias: Vec<f64>,
    key_mask: Vec<u32>,
    sink: Vec<f64>,
    aux: Vec<f32>,
    /// K and V as the cache holds them.
    cached: Option<[Vec<u8>; 2]>,
}

/// Rows of Q, or of K and V.
#[derive(Clone, Copy, PartialEq)]
pub enum Side {
    Q,
    Kv,
}

impl Side {
    /// Sequences and rows of the tensors of a problem.
    fn counts(self, problem: &AttentionProblem) -> (u32, u32) {
        let AttentionShape { batch, seqlen_q, seqlen_kv, .. } = problem.shape;
        match self {
            Side::Q => problem.total_q().map_or((batch, seqlen_q), |total| (1, total)),
            Side::Kv => problem.total_kv().map_or((batch, seqlen_kv), |total| (1, total)),
        }
    }

    /// Rows that sequences have, by sequence and row of the tensor.
    pub fn rows(self, problem: &AttentionProblem) -> Vec<(u32, u32)> {
        let of_batch = |batch: u32| {
            let (rows, keys) = problem.lengths_of(batch);
            match self {
                Side::Q => (0..rows).map(|row| problem.row_in_q(batch, row)).collect::<Vec<_>>(),
                Side::Kv => (0..keys).map(|key| problem.row_in_kv(batch, key)).collect(),
            }
        };
        (0..problem.shape.batch).flat_map(of_batch).collect()
    }

    /// Rows that a call writes: of packed tensors those that sequences have, otherwise all.
    fn written(self, problem: &AttentionProblem) -> Vec<(u32, u32)> {
        let total = if self == Side::Q { problem.total_q() } else { problem.total_kv() };
        let (batch, rows) = self.counts(problem);
        match total {
            Some(_) => self.rows(problem),
            None => (0..batch).flat_map(|batch| (0..rows).map(move |row| (batch, row))).collect(),
        }
    }

    /// Elements of a tensor.
    fn len(self, problem: &AttentionProblem, layout: &TensorLayout, heads: u32, dim: u32) -> usize {
        let (batch, rows) = self.counts(problem);
        layout.required_len(batch, rows, heads, dim).unwrap_or(0) as usize
    }

    /// Which elements a call writes.
    pub fn own(self, problem: &AttentionProblem, layout: &TensorLayout, heads: u32, dim: u32) -> Vec<bool> {
        let mut own = vec![false; self.len(problem, layout, heads, dim)];
        for (batch, row) in self.written(problem) {
            for head in 0..heads {
                own[layout.index(batch, row, head) as usize..][..dim as usize].fill(true);
            }
        }
        own
    }

    /// A tensor of what `value` gives for the rows that sequences have.
    fn tensor(
        self,
        problem: &AttentionProblem,
        layout: &TensorLayout,
        [heads, dim]: [u32; 2],
        mut value: impl FnMut() -> f64,
    ) -> Vec<f64> {
        let mut values = vec![f64::NAN; self.len(problem, layout, heads, dim)];
        for (batch, row) in self.rows(problem) {
            for head in 0..heads {
                values[layout.index(batch, row, head) as usize..][..dim as usize].fill_with(&mut value);
            }
        }
        values
    }
}

impl<'a> Values<'a> {
    pub fn new(case: &Case, question: &'a Question, asked: &'a Asked, number: u64) -> Self {
        let problem = &asked.solved;
        let mut random = Random::new(case.seed, 1000 + number);
        let (shape, layout, element) = (problem.shape, problem.layout, problem.element);
        let gradients = problem.gradient_layout();
        let of_q = [shape.num_heads, shape.head_dim];
        let of_k = [shape.num_heads_kv, shape.head_dim];
        let of_v = [shape.num_heads_kv, shape.head_dim_v];
        let of_o = [shape.num_heads, shape.head_dim_v];
        let kind = case.values % 8;
        let plain = |random: &mut Random| if kind == 6 { 0.0 } else { random.normal() };
        let mut scale = 1.0;
        let mut scaled = |random: &mut Random| {
            if kind == 3 && random.one_in(16) {
                scale = 2f64.powi(random.below(9) as i32 - 4);
            }
            let value = plain(random) * if kind == 3 { scale } else { 1.0 };
            element.round(if kind == 1 { value.abs() } else { value })
        };
        let larger = if kind == 2 { 8.0 } else { 1.0 };
        let mut q = Side::Q.tensor(problem, &layout.q, of_q, || element.round(plain(&mut random) * larger));
        let mut k = Side::Kv.tensor(problem, &layout.k, of_k, || element.round(plain(&mut random)));
        let mut v = Side::Kv.tensor(problem, &layout.v, of_v, || scaled(&mut random));
        let d_o = Side::Q.tensor(problem, &gradients.o, of_o, || scaled(&mut random));
        if kind == 4 {
            repeat_first_key(problem, &mut k);
        }
        if kind == 5 {
            let tensor = [&mut q, &mut k, &mut v].into_iter().nth(random.below(3) as usize);
            tensor.into_iter().for_each(|tensor| spoil(tensor, &mut random));
        }
        if question.one_buffer {
            share(&mut [&mut q, &mut k, &mut v]);
        }
        let cached = question.prepared.cache().map(|cache| into_cache(cache, asked, [&mut k, &mut v]));
        let own = lse_own(problem);
        let mut of_lse = |own: &bool| if *own { Element::F32.round(random.normal()) } else { f64::NAN };
        let d_lse = (case.d_lse == 1).then(|| own.iter().map(&mut of_lse).collect());
        let logit = |_| Element::F32.round(2.0 * Random::new(case.seed, 51).normal());
        let sink = if problem.has_sink() { (0..shape.num_heads).map(logit).collect() } else { Vec::new() };
        let mut values = Self {
            problem,
            closures: match question.prepared.cache() {
                Some(_) => question.closures.by_position(problem),
                None => question.closures.clone(),
            },
            q,
            k,
            v,
            d_o,
            d_lse,
            bias: Vec::new(),
            key_mask: Vec::new(),
            sink,
            aux: aux(case.seed),
            cached,
        };
        values.fill_entries(&question.prepared, kind == 7, &mut random);
        values
    }

    /// Entries of the bias that some score has; a mask that hides a quarter of the keys, and all from every fifth row.
    fn fill_entries(&mut self, prepared: &AttentionProblem, infinities: bool, random: &mut Random) {
        let shape = &prepared.shape;
        for modifier in prepared.scores() {
            let ScoreMod::Bias { layout, element } = modifier else { continue };
            self.bias = vec![f64::NAN; layout.required_len(shape) as usize];
            for cell in cells(self.problem) {
                let entry = &mut self.bias[entry(layout, cell)];
                if entry.is_nan() {
                    let is_infinite = infinities && random.one_in(8);
                    *entry = if is_infinite { f64::NEG_INFINITY } else { element.round(random.normal()) };
                }
            }
        }
        for mask in prepared.key_masks() {
            let KeyMask::Boolean(layout) = mask else { continue };
            self.key_mask = vec![0; layout.required_words(shape) as usize];
            self.key_mask.fill_with(|| (random.word() | random.word()) as u32);
            for row in (0..shape.seqlen_q).step_by(5) {
                let first = (layout.offset + u64::from(row) * layout.stride_row) as usize;
                self.key_mask.iter_mut().skip(first).take(1).for_each(|word| *word = 0);
            }
        }
    }

    /// For the oracle.
    pub fn case(&self) -> reference::Case<'_> {
        let mut case = reference::Case::new(self.problem, &self.bias, &self.key_mask).with_sink(&self.sink);
        if let Some(score_mod) = &self.closures.score_mod {
            case = case.with_score_mod(&**score_mod as &(dyn Fn(f64, [u32; 4]) -> Score + Sync));
        }
        if let Some(mask_mod) = &self.closures.mask_mod {
            case = case.with_mask_mod(&**mask_mod as &(dyn Fn([u32; 4]) -> bool + Sync));
        }
        case
    }

    /// The bytes of what every kind of call reads.
    pub fn bytes(&self) -> Vec<(Operand, Vec<u8>)> {
        let element = self.problem.element;
        let bytes = |values: &[f64]| elements::encode(element, values.iter().copied());
        let [k, v] = self.cached.clone().unwrap_or_else(|| [bytes(&self.k), bytes(&self.v)]);
        let mut all = vec![(Operand::Q, bytes(&self.q)), (Operand::K, k), (Operand::V, v)];
        let of_bias = self.problem.scores().iter().find_map(|modifier| match modifier {
            ScoreMod::Bias { element, .. } => Some(*element),
            _ => None,
        });
        all.extend(of_bias.map(|element| (Operand::Bias, elements::encode(element, self.bias.iter().copied()))));
        if !self.key_mask.is_empty() {
            all.push((Operand::KeyMask, words(&self.key_mask)));
        }
        if self.problem.has_sink() {
            all.push((Operand::Sink, elements::encode(Element::F32, self.sink.iter().copied())));
        }
        if self.problem.aux_len().is_some() {
            all.push((Operand::Aux, bytemuck::cast_slice(&self.aux).to_vec()));
        }
        all
    }
}

pub fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// Which entries of LSE belong to a row that a call writes.
pub fn lse_own(problem: &AttentionProblem) -> Vec<bool> {
    let (_, rows) = Side::Q.counts(problem);
    Side::Q.own(problem, &TensorLayout::bhsd(rows, problem.shape.num_heads, 1), problem.shape.num_heads, 1)
}

/// Every score of rows and keys that exist: sequence, head, row and key.
fn cells(problem: &AttentionProblem) -> impl Iterator<Item = [u32; 4]> {
    let heads = problem.shape.num_heads;
    (0..problem.shape.batch).flat_map(move |batch| {
        let (rows, keys) = problem.lengths_of(batch);
        let of_head = move |head| (0..rows).flat_map(move |row| (0..keys).map(move |key| [batch, head, row, key]));
        (0..heads).flat_map(of_head)
    })
}

fn entry(layout: &EntryLayout, cell: [u32; 4]) -> usize {
    let strides = [layout.stride_batch, layout.stride_head, layout.stride_row, layout.stride_key];
    let distance: u64 = cell.iter().zip(strides).map(|(count, stride)| u64::from(*count) * stride).sum();
    (layout.offset + distance) as usize
}

/// Keys that are all the same: errors do not differ.
fn repeat_first_key(problem: &AttentionProblem, k: &mut [f64]) {
    let (layout, dim) = (&problem.layout.k, problem.shape.head_dim as usize);
    let rows = Side::Kv.rows(problem);
    let Some(&(batch, row)) = rows.first() else { return };
    let first = layout.index(batch, row, 0) as usize;
    let repeated = k[first..first + dim].to_vec();
    for (batch, row) in rows {
        for head in 0..problem.shape.num_heads_kv {
            k[layout.index(batch, row, head) as usize..][..dim].copy_from_slice(&repeated);
        }
    }
}

/// One element becomes NaN.
fn spoil(tensor: &mut [f64], random: &mut Random) {
    let position = random.below(tensor.len() as u64) as usize;
    tensor.iter_mut().skip(position).find(|value| !value.is_nan()).into_iter().for_each(|value| *value = f64::NAN);
}

/// Views of one buffer hold the same values.
fn share(tensors: &mut [&mut Vec<f64>; 3]) {
    let len = tensors.iter().map(|tensor| tensor.len()).max().unwrap_or(0);
    let mut together = vec![f64::NAN; len];
    for tensor in tensors.iter() {
        let values = tensor.iter().enumerate().filter(|(_, value)| !value.is_nan());
        values.for_each(|(position, value)| together[position] = *value);
    }
    tensors.iter_mut().for_each(|tensor| **tensor = together.clone());
}

/// The bytes of K and V in a cache. The values become those that the cache's stand for.
fn into_cache(cache: &KvCache, asked: &Asked, tensors: [&mut Vec<f64>; 2]) -> [Vec<u8>; 2] {
    let problem = &asked.solved;
    let shape = problem.shape;
    let table = asked.tables.iter().find(|(operand, _)| *operand == Operand::PageTable).map(|(_, table)| table);
    let place = |batch: u32, key: u32| match (cache.pages, table) {
        (Some(pages), Some(table)) => {
            (table[(batch * pages.max_pages + key / pages.page_size) as usize], key % pages.page_size)
        }
        _ => (batch, key),
    };
    let sides = [
        (&problem.layout.k, &cache.k, cache.required_len_of_k(&shape), shape.head_dim),
        (&problem.layout.v, &cache.v, cache.required_len_of_v(&shape), shape.head_dim_v),
    ];
    let mut filled = tensors.into_iter().zip(sides).map(|(values, (dense, layout, len, dim))| {
        let entry = if matches!(cache.element, CacheElement::F16 | CacheElement::Bf16) { 2 } else { 4 };
        let mut bytes = vec![POISON; len.unwrap_or(0) as usize * entry];
        for batch in 0..shape.batch {
            for key in 0..problem.lengths_of(batch).1 {
                let (page, row) = place(batch, key);
                for head in 0..shape.num_heads_kv {
                    let values = &mut values[dense.index(batch, key, head) as usize..][..dim as usize];
                    let (stored, stands_for) = cached_row(cache.element, values);
                    values.copy_from_slice(&stands_for);
                    bytes[layout.index(page, row, head) as usize * entry..][..stored.len()].copy_from_slice(&stored);
                }
            }
        }
        bytes
    });
    [filled.next().unwrap_or_default(), filled.next().unwrap_or_default()]
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
    let bytes = elements::encode(stored, values.iter().copied());
    (bytes, values.iter().map(|value| stored.round(*value)).collect())
}
