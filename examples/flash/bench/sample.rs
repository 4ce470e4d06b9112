//! The oracle's answer for a few rows, spread over batches, heads and positions.

use std::ops::Range;

use wgpu_flash_attention::{
    AttentionLayout, AttentionProblem, AttentionShape, Element, EntryLayout, Operand, ScoreMod, TensorLayout, reference,
};

use crate::device::Gpu;
use crate::failure::Result;
use crate::resident::{self, Resident};
use crate::{elements, random};

/// Tensor numbers of the inputs.
pub const Q: u64 = 0;
pub const K: u64 = 1;
pub const V: u64 = 2;
pub const D_O: u64 = 3;
const BIAS: u64 = 4;

/// One row and what it must be.
pub struct Sample {
    batch: u32,
    head: u32,
    row: u32,
    o: Vec<f64>,
    lse: f64,
}

/// How far the sampled rows are from the oracle's.
pub struct Deviation {
    pub max_error: f64,
    pub bound: f64,
    lse_error: f64,
}

impl Deviation {
    pub fn is_good(&self) -> bool {
        self.max_error <= self.bound && self.lse_error <= LSE_BOUND
    }

    pub fn complaint(&self) -> String {
        format!(
            "wrong answer: O errs by {:.1e} (bound {:.1e}), LSE by {:.1e} (bound {LSE_BOUND:.0e})",
            self.max_error, self.bound, self.lse_error
        )
    }
}

/// The largest error of LSE relative to max(1, |LSE|).
const LSE_BOUND: f64 = 1e-5;

/// Fills Q, K and V, piece by piece: no tensor is ever whole on the host.
pub fn upload_inputs(gpu: &Gpu, problem: &AttentionProblem, tensors: &Resident) -> Result<()> {
    let bias = tensors.entry(Operand::Bias).map(|buffer| (BIAS, buffer));
    for (stream, buffer) in [(Q, &tensors.q), (K, &tensors.k), (V, &tensors.v)].into_iter().chain(bias) {
        fill(gpu, problem, stream, buffer)?;
    }
    Ok(())
}

/// Fills dO.
pub fn upload_d_o(gpu: &Gpu, problem: &AttentionProblem, buffer: &wgpu::Buffer) -> Result<()> {
    fill(gpu, problem, D_O, buffer)
}

fn fill(gpu: &Gpu, problem: &AttentionProblem, stream: u64, buffer: &wgpu::Buffer) -> Result<()> {
    let size = problem.element.size();
    let len = buffer.size() / size;
    let piece = resident::CHUNK / size;
    for first in (0..len).step_by(piece as usize) {
        let bytes = encoded(problem.element, stream, first..len.min(first + piece));
        resident::upload(gpu, buffer, first * size, bytes)?;
    }
    Ok(())
}

/// The bytes of these elements of an input, computed by all cores.
fn encoded(element: Element, stream: u64, range: Range<u64>) -> Vec<u8> {
    let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get() as u64);
    let share = (range.end - range.start).div_ceil(cores).max(1);
    let parts = range.clone().step_by(share as usize).map(|first| first..range.end.min(first + share));
    std::thread::scope(|scope| {
        let threads: Vec<_> = parts
            .map(|part| {
                scope.spawn(move || elements::encode(element, part.map(|index| random::normal_like(stream, index))))
            })
            .collect();
        let parts: Vec<Vec<u8>> = threads.into_iter().map(|thread| thread.join().unwrap_or_default()).collect();
        parts.concat()
    })
}

/// What a row stands for after it was appended to a cache in int8.
fn in_int8(row: &[f64]) -> Vec<f64> {
    reference::dequantized(&reference::quantized(row), row.len() as u32)
}

/// The oracle's rows for at least 16 positions (fewer if there are fewer), the first and the last of all among them.
pub fn expected(problem: &AttentionProblem, is_int8: bool) -> Vec<Sample> {
    let shape = problem.shape;
    let pairs = u64::from(shape.batch) * u64::from(shape.num_heads);
    // Each (batch, head) needs its K and V in f64; of very long ones two must do.
    let long = u64::from(shape.seqlen_kv) * u64::from(shape.head_dim) > 16 << 20;
    let pairs_sampled = pairs.min(if long { 2 } else { 4 });

    let mut samples = Vec::new();
    for pair in spread(pairs, pairs_sampled) {
        let (batch, head) = ((pair / u64::from(shape.num_heads)) as u32, (pair % u64::from(shape.num_heads)) as u32);
        let head_kv = head / (shape.num_heads / shape.num_heads_kv);
        let alone = alone(problem);
        let (seqlen_q, seqlen_kv) = problem.lengths_of(batch);
        let gather = |stream: u64, first: u64| {
            (first..first + u64::from(shape.head_dim))
                .map(move |index| problem.element.round(random::normal_like(stream, index)))
        };
        let all = |stream, layout: &TensorLayout| -> Vec<f64> {
            let first = |key| k_index(problem, layout, batch, key, head_kv);
            let row = |key| gather(stream, first(key)).collect::<Vec<f64>>();
            (0..seqlen_kv).flat_map(|key| if is_int8 { in_int8(&row(key)) } else { row(key) }).collect()
        };
        let (k, v) = std::thread::scope(|scope| {
            let k = scope.spawn(|| all(K, &problem.layout.k));
            let v = all(V, &problem.layout.v);
            (k.join().unwrap_or_default(), v)
        });
        for row in spread(seqlen_q.into(), (16 / pairs_sampled).min(seqlen_q.into())) {
            let row = row as u32;
            let q: Vec<f64> = gather(Q, q_index(problem, &problem.layout.q, batch, row, head)).collect();
            let bias = bias_row(problem, head, row, |_| true);
            let case = reference::Case::new(&alone, &bias, &[]);
            let (o, lse) = reference::forward_row(case, &q, &k, &v, batch, head, row);
            samples.push(Sample { batch, head, row, o, lse });
        }
    }
    samples
}

/// The problem with one row of Q, and of a bias, that stands for all, and one head of K and V. Rows and heads keep their
/// numbers, on which ALiBi depends.
pub fn alone(problem: &AttentionProblem) -> AttentionProblem {
    let rows =
        |stride_row: u32| TensorLayout { offset: 0, stride_batch: 0, stride_row: stride_row.into(), stride_head: 0 };
    let AttentionShape { head_dim, head_dim_v, .. } = problem.shape;
    let layout = AttentionLayout { q: rows(0), k: rows(head_dim), v: rows(head_dim_v), ..problem.layout };
    let mut alone = AttentionProblem::new(problem.shape).with_element(problem.element).with_layout(layout);
    alone.mask = problem.mask;
    if problem.has_lengths() {
        // As far as rows and keys see each other, packed sequences are as others of these lengths.
        let (seqlens_q, seqlens_kv) = (0..problem.shape.batch).map(|batch| problem.lengths_of(batch)).unzip();
        alone = alone.with_lengths(seqlens_q, seqlens_kv);
    }
    let alone = problem.key_masks().iter().cloned().fold(alone, AttentionProblem::with_key_mask);
    let of_row = EntryLayout { offset: 0, stride_batch: 0, stride_head: 0, stride_row: 0, stride_key: 1 };
    let scores = problem.scores().iter().map(|modifier| match modifier {
        ScoreMod::Bias { element, .. } => ScoreMod::Bias { layout: of_row, element: *element },
        other => other.clone(),
    });
    scores.fold(alone, AttentionProblem::with_score)
}

/// The first element of a row in a tensor with the rows of Q.
pub fn q_index(problem: &AttentionProblem, layout: &TensorLayout, batch: u32, row: u32, head: u32) -> u64 {
    let (batch, row) = problem.row_in_q(batch, row);
    layout.index(batch, row, head)
}

/// The first element of a key in a tensor with the rows of K and V.
pub fn k_index(problem: &AttentionProblem, layout: &TensorLayout, batch: u32, key: u32, head: u32) -> u64 {
    let (batch, key) = problem.row_in_kv(batch, key);
    layout.index(batch, key, head)
}

/// The number of a row's entry in LSE.
pub fn lse_index(problem: &AttentionProblem, batch: u32, head: u32, row: u32) -> u64 {
    let rows = problem.total_q().unwrap_or(problem.shape.seqlen_q);
    q_index(problem, &TensorLayout::bhsd(rows, problem.shape.num_heads, 1), batch, row, head)
}

/// The problem with a bias for all sequences.
pub fn with_bias(problem: AttentionProblem) -> AttentionProblem {
    let AttentionShape { num_heads, seqlen_q, seqlen_kv, .. } = problem.shape;
    let layout = EntryLayout::contiguous([1, num_heads, seqlen_q, seqlen_kv]);
    let element = problem.element;
    problem.with_score(ScoreMod::Bias { layout, element })
}

/// The entries of that bias.
pub fn bias_len(problem: &AttentionProblem) -> u64 {
    let AttentionShape { num_heads, seqlen_q, seqlen_kv, .. } = problem.shape;
    u64::from(num_heads) * u64::from(seqlen_q) * u64::from(seqlen_kv)
}

/// What it adds to the scores of a row, of some keys; nothing if there is none.
pub fn bias_row(problem: &AttentionProblem, head: u32, row: u32, keys: impl Fn(u32) -> bool) -> Vec<f64> {
    let AttentionShape { seqlen_q, seqlen_kv, .. } = problem.shape;
    let has_bias = problem.scores().iter().any(|modifier| matches!(modifier, ScoreMod::Bias { .. }));
    let first = (u64::from(head) * u64::from(seqlen_q) + u64::from(row)) * u64::from(seqlen_kv);
    let entry = |key: u32| match keys(key) {
        true => problem.element.round(random::normal_like(BIAS, first + u64::from(key))),
        false => 0.0,
    };
    (0..if has_bias { seqlen_kv } else { 0 }).map(entry).collect()
}

/// `count` of the numbers below `len`, evenly spread from the first to the last.
pub fn spread(len: u64, count: u64) -> impl Iterator<Item = u64> {
    (0..count).map(move |i| if count == 1 { len - 1 } else { i * (len - 1) / (count - 1) })
}

/// Compares the rows on the device with the oracle's.
pub fn compare(gpu: &Gpu, problem: &AttentionProblem, tensors: &Resident, samples: &[Sample]) -> Result<Deviation> {
    let (shape, size) = (problem.shape, problem.element.size());
    let mut deviation = Deviation { max_error: 0.0, bound: 0.0, lse_error: 0.0 };
    let mut largest: f64 = 0.0;
    for sample in samples {
        let first = q_index(problem, &problem.layout.o, sample.batch, sample.row, sample.head);
        let o = resident::read(gpu, &tensors.o, first * size, u64::from(shape.head_dim_v) * size)?;
        let error = elements::largest_error(elements::decode(problem.element, &o), sample.o.iter().copied());
        deviation.max_error = deviation.max_error.max(error);
        largest = sample.o.iter().fold(largest, |largest, value| largest.max(value.abs()));

        let flat = lse_index(problem, sample.batch, sample.head, sample.row);
        let lse = resident::read(gpu, &tensors.lse, flat * 4, 4)?;
        let lse = elements::decode(Element::F32, &lse).next().unwrap_or(f64::NAN);
        let relative_to = if sample.lse.is_finite() { sample.lse.abs().max(1.0) } else { 1.0 };
        deviation.lse_error = deviation.lse_error.max(elements::error(lse, sample.lse) / relative_to);
    }
    // O is rounded when it is written, and P may be before it meets V: four times the element's rounding, and 1e-5 for
    // the f32 sums in between.
    let rounding = if problem.element == Element::F32 { 0.0 } else { 4.0 * elements::unit_roundoff(problem.element) };
    deviation.bound = rounding * largest + 1e-5 * largest.max(1.0);
    Ok(deviation)
}
