//! Ranks beside one device and the oracle.

use crate::arguments::CheckOptions;
use crate::inputs::Numbers;
use crate::launch::{Failure, Work, launch, spare, told};
use crate::words;
use half::{bf16, f16};
use serde_json::{Value, json};
use std::ops::Range;
use wgpu_flash_attention::reference::{self, Case};
use wgpu_flash_attention::{
    AttentionProblem, AttentionShape, BackwardSlices, Element, ElementType, FlashAttention, ForwardSlices, Operand,
};
use wgpu_flash_attention_distributed::{Error, RingAttention, Span, Transport, wgpu_flash_attention};

/// Pairs of a row and a key, over all heads, that the oracle takes in whole. Of larger problems it takes some rows.
const MOST_PAIRS: u64 = 1 << 27;

/// So many rows of a rank.
const SOME_ROWS: u32 = 16;

/// What is compared, and how many times the error of one device that of ranks may be.
const TENSORS: [&str; 4] = ["O", "dQ", "dK", "dV"];

pub fn check(options: &CheckOptions) -> Result<(), Failure> {
    let Some(answer) = launch(&options.ranks, options)? else { return Ok(()) };
    if options.json {
        words::answer(&answer.to_string())?;
    } else {
        let mut text = format!("{} ranks, {}", answer["ranks"], answer["problem"].as_str().unwrap_or(""));
        let empty = Vec::new();
        for tensor in answer["tensors"].as_array().unwrap_or(&empty) {
            let [ranks, one] = ["error", "one_device_error"].map(|name| tensor[name].as_f64().unwrap_or(f64::NAN));
            let name = tensor["tensor"].as_str().unwrap_or("");
            text += &format!("\n  {name}: error {ranks:.3e}, of one device {one:.3e}");
        }
        words::answer(&text)?;
    }
    let is_well = answer["is_well"].as_bool().unwrap_or(false);
    let reason = "ranks err more than one device may be expected to".into();
    if is_well { Ok(()) } else { Err(Error::Unsupported { what: "this answer", reason }.into()) }
}

/// Q, K, V and dO of the whole, in their type's bytes; the logits of its sink, none without one.
struct Whole {
    bytes: [Vec<u8>; 4],
    sink: Vec<f32>,
}

/// Tensors as the library returns them.
struct Answer {
    o: Vec<f64>,
    /// dQ, dK and dV.
    gradients: [Vec<f64>; 3],
}

/// What a rank needs of the host's memory, about: of each number of Q, K, V and dO the bytes, a copy, its f64, and the f64 of a
/// number of each of three answers.
fn host_bytes(problem: &AttentionProblem) -> Option<u64> {
    let AttentionShape { batch, num_heads, num_heads_kv, seqlen_q, seqlen_kv, head_dim, head_dim_v } = problem.shape;
    let widths = u64::from(head_dim) + u64::from(head_dim_v);
    let [rows, keys] = [(seqlen_q, num_heads), (seqlen_kv, num_heads_kv)]
        .map(|(length, heads)| (u64::from(batch) * u64::from(length)).checked_mul(u64::from(heads) * widths));
    rows?.checked_add(keys?)?.checked_mul(2 * problem.element.size() + 32)
}

/// Sums of squares of errors: of ranks, and of one device.
type Errors = [[f64; 2]; 4];

impl Work for CheckOptions {
    type Answer = Value;

    fn rank<T: Transport>(&self, transport: T, device: FlashAttention) -> Result<Option<Value>, Error> {
        let mut problem = self.problem.problem();
        if self.sink {
            problem = problem.with_sink();
        }
        let mut ring = RingAttention::new(transport, &device, self.problem.scheme.scheme(), &problem)?;
        let room = spare(&self.ranks, host_bytes(&problem));
        told(ring.transport(), room)?;
        let whole = Whole::new(self, &problem);
        let found = on_ranks(self, &mut ring, &problem, &whole)?;
        let one = match problem.element {
            Element::F16 => alone::<f16>(self, &device, &problem, &whole),
            Element::Bf16 => alone::<bf16>(self, &device, &problem, &whole),
            _ => alone::<f32>(self, &device, &problem, &whole),
        }?;
        let (rows, keys) = (ring.rows().to_vec(), ring.keys().to_vec());
        let own = Own { problem: &problem, whole: &whole, rows: &rows, keys: &keys };
        let o = if own.is_small() && self.backward { own.gather_o(ring.transport(), &found)? } else { Vec::new() };
        let errors = own.errors(&found, &one, &o, self.backward);
        let bytes: Vec<u8> = errors.iter().flatten().flat_map(|sum| sum.to_le_bytes()).collect();
        let gathered = ring.transport().all_gather(&bytes)?;
        let sum = |number: usize| -> f64 {
            let of = |bytes: &Vec<u8>| f64::from_le_bytes(bytes[8 * number..][..8].try_into().unwrap_or_default());
            gathered.iter().map(of).sum()
        };
        let most = if problem.element == Element::F32 { 2.0 } else { 1.2 };
        let count = if self.backward { 4 } else { 1 };
        let tensors = TENSORS.iter().enumerate().take(count).map(|(tensor, name)| {
            let [ranks, one] = [0, 1].map(|of| sum(2 * tensor + of).sqrt());
            let most = if tensor == 0 { most } else { 3.0 };
            json!({"tensor": name, "error": ranks, "one_device_error": one, "is_well": ranks <= most * one})
        });
        let tensors: Vec<Value> = tensors.collect();
        let is_well = tensors.iter().all(|tensor| tensor["is_well"] == true);
        let ranks = ring.transport().ranks();
        let text = format!("{:?} {}", problem.shape, problem.element.name());
        Ok((ring.transport().rank() == 0)
            .then(|| json!({"ranks": ranks, "problem": text, "tensors": tensors, "is_well": is_well})))
    }
}

impl Whole {
    fn new(options: &CheckOptions, problem: &AttentionProblem) -> Self {
        let shape = &problem.shape;
        let tensors = [
            (shape.num_heads * shape.head_dim, shape.seqlen_q),
            (shape.num_heads_kv * shape.head_dim, shape.seqlen_kv),
            (shape.num_heads_kv * shape.head_dim_v, shape.seqlen_kv),
            (shape.num_heads * shape.head_dim_v, shape.seqlen_q),
        ];
        let mut number = 0;
        let bytes = tensors.map(|(width, len)| {
            number += 1;
            let numbers = Numbers::new(problem.element, options.problem.seed, number);
            numbers.all(shape.batch, len, width)
        });
        // From −2 to 2, about where scores are.
        let logit = |head: u32| (head as f32 * 0.7 + 0.3).sin() * 2.0;
        let heads = if problem.has_sink() { shape.num_heads } else { 0 };
        Self { bytes, sink: (0..heads).map(logit).collect() }
    }

    fn values(&self, tensor: usize, element: Element) -> Vec<f64> {
        decode(element, &self.bytes[tensor])
    }
}

fn decode(element: Element, bytes: &[u8]) -> Vec<f64> {
    let halves = || bytes.as_chunks::<2>().0.iter();
    match element {
        Element::F16 => halves().map(|pair| f16::from_le_bytes(*pair).to_f64()).collect(),
        Element::Bf16 => halves().map(|pair| bf16::from_le_bytes(*pair).to_f64()).collect(),
        _ => bytes.as_chunks::<4>().0.iter().map(|word| f32::from_le_bytes(*word).into()).collect(),
    }
}

/// This rank's part of the answer.
fn on_ranks<T: Transport>(
    options: &CheckOptions,
    ring: &mut RingAttention<T>,
    problem: &AttentionProblem,
    whole: &Whole,
) -> Result<Answer, Error> {
    let (rows, keys) = (ring.rows().to_vec(), ring.keys().to_vec());
    let shape = &problem.shape;
    let set = [Operand::Q, Operand::K, Operand::V, Operand::DO].into_iter().zip(&whole.bytes);
    for (operand, bytes) in set.filter(|(operand, _)| *operand != Operand::DO || options.backward) {
        let is_of_keys = matches!(operand, Operand::K | Operand::V);
        let (spans, length) = if is_of_keys { (&keys, shape.seqlen_kv) } else { (&rows, shape.seqlen_q) };
        let row = bytes.len() / (shape.batch as usize * length as usize).max(1);
        let own: Vec<u8> = ranges(shape.batch, length, spans)
            .flat_map(|range| &bytes[range.start * row..range.end * row])
            .copied()
            .collect();
        ring.set(operand, &own)?;
    }
    if problem.has_sink() {
        let bytes: Vec<u8> = whole.sink.iter().flat_map(|logit| logit.to_le_bytes()).collect();
        ring.set(Operand::Sink, &bytes)?;
    }
    ring.forward()?;
    let o = decode(problem.element, &ring.get(Operand::O)?);
    let mut gradients = [const { Vec::new() }; 3];
    if options.backward {
        ring.backward()?;
        for (operand, gradient) in [Operand::Dq, Operand::Dk, Operand::Dv].into_iter().zip(&mut gradients) {
            *gradient = decode(Element::F32, &ring.get(operand)?);
        }
    }
    Ok(Answer { o, gradients })
}

/// The rows of spans in `[batch, length]`, span after span.
fn ranges(batch: u32, length: u32, spans: &[Span]) -> impl Iterator<Item = Range<usize>> {
    spans.iter().flat_map(move |span| {
        (0..batch).map(move |sequence| {
            let first = sequence as usize * length as usize + span.first as usize;
            first..first + span.len as usize
        })
    })
}

/// The whole on this device.
fn alone<T: ElementType>(
    options: &CheckOptions,
    device: &FlashAttention,
    problem: &AttentionProblem,
    whole: &Whole,
) -> Result<Answer, Error> {
    let of = |tensor| -> Vec<T> { whole.values(tensor, problem.element).into_iter().map(T::from_f64).collect() };
    let [q, k, v] = [0, 1, 2].map(of);
    let mut slices = ForwardSlices::new(&q, &k, &v);
    if problem.has_sink() {
        slices = slices.with_sink(&whole.sink);
    }
    let forward = pollster::block_on(device.forward_with(problem, &slices))?;
    let mut gradients = [const { Vec::new() }; 3];
    if options.backward {
        let d_o = of(3);
        let mut slices = BackwardSlices::new(&q, &k, &v, &forward.o, &forward.lse, &d_o);
        if problem.has_sink() {
            slices = slices.with_sink(&whole.sink);
        }
        let found = pollster::block_on(device.backward_in_f32(problem, &slices))?;
        gradients = [found.dq, found.dk, found.dv].map(|values| values.into_iter().map(f64::from).collect());
    }
    Ok(Answer { o: forward.o.iter().map(|o| o.to_f64()).collect(), gradients })
}

/// A rank's part of the whole.
struct Own<'a> {
    problem: &'a AttentionProblem,
    whole: &'a Whole,
    rows: &'a [Span],
    keys: &'a [Span],
}

impl Own<'_> {
    /// Whether the oracle takes all of it.
    fn is_small(&self) -> bool {
        let shape = &self.problem.shape;
        let heads = u64::from(shape.batch) * u64::from(shape.num_heads);
        heads.saturating_mul(u64::from(shape.seqlen_q) * u64::from(shape.seqlen_kv)) <= MOST_PAIRS
    }

    /// O of all ranks: each adds its rows to zeros.
    fn gather_o(&self, transport: &mut impl Transport, found: &Answer) -> Result<Vec<f64>, Error> {
        let AttentionShape { batch, num_heads, seqlen_q, head_dim_v, .. } = self.problem.shape;
        let width = num_heads * head_dim_v;
        let mut own = vec![0.0; batch as usize * seqlen_q as usize * width as usize];
        paste(&mut own, &found.o, ranges(batch, seqlen_q, self.rows), width);
        let bytes: Vec<u8> = own.iter().flat_map(|o| o.to_le_bytes()).collect();
        let mut sum = vec![0.0; own.len()];
        for gathered in transport.all_gather(&bytes)? {
            for (sum, o) in sum.iter_mut().zip(gathered.as_chunks::<8>().0) {
                *sum += f64::from_le_bytes(*o);
            }
        }
        Ok(sum)
    }

    /// `o` is that of all ranks.
    fn errors(&self, found: &Answer, one: &Answer, o: &[f64], backward: bool) -> Errors {
        let AttentionShape { batch, num_heads, num_heads_kv, seqlen_q, seqlen_kv, head_dim, head_dim_v } =
            self.problem.shape;
        let [q, k, v, d_o] = [0, 1, 2, 3].map(|tensor| self.whole.values(tensor, self.problem.element));
        let sink: Vec<f64> = self.whole.sink.iter().map(|logit| f64::from(*logit)).collect();
        let case = Case::new(self.problem, &[], &[]).with_sink(&sink);
        let mut errors = Errors::default();
        if !self.is_small() {
            errors[0] = self.errors_of_some_rows(found, one, (case, [&q, &k, &v]));
            return errors;
        }
        let expected = reference::forward(case, &q, &k, &v);
        let of_rows = |width| (ranges(batch, seqlen_q, self.rows), width);
        errors[0] = squares(&found.o, &one.o, [&expected.o, &expected.o], of_rows(num_heads * head_dim_v));
        if backward {
            // Each for the O that its forward pass gave: rounding moves D.
            let of_one = reference::backward_for(case, [&q, &k, &v, &one.o], &d_o, None);
            let of_ranks = reference::backward_for(case, [&q, &k, &v, o], &d_o, None);
            let both = [[&of_ranks.dq, &of_one.dq], [&of_ranks.dk, &of_one.dk], [&of_ranks.dv, &of_one.dv]];
            let widths = [num_heads * head_dim, num_heads_kv * head_dim, num_heads_kv * head_dim_v];
            for (tensor, (expected, width)) in both.into_iter().zip(widths).enumerate() {
                let spans = if tensor == 0 { self.rows } else { self.keys };
                let length = if tensor == 0 { seqlen_q } else { seqlen_kv };
                let own = (ranges(batch, length, spans), width);
                errors[tensor + 1] = squares(&found.gradients[tensor], &one.gradients[tensor], expected, own);
            }
        }
        errors
    }

    /// Of O alone, in some rows of this rank.
    fn errors_of_some_rows(&self, found: &Answer, one: &Answer, (case, [q, k, v]): (Case, [&[f64]; 3])) -> [f64; 2] {
        let AttentionShape { batch, num_heads, seqlen_q, head_dim_v, .. } = self.problem.shape;
        let rows: Vec<usize> = ranges(batch, seqlen_q, self.rows).flatten().collect();
        let step = (rows.len() / SOME_ROWS as usize).max(1);
        let mut sums = [0.0; 2];
        for (index, row) in rows.iter().enumerate().step_by(step) {
            let (sequence, i) = (*row as u32 / seqlen_q.max(1), *row as u32 % seqlen_q.max(1));
            let head = index as u32 % num_heads.max(1);
            let (expected, _) = reference::forward_row(case, q, k, v, sequence, head, i);
            let width = (num_heads * head_dim_v) as usize;
            let at = |row: usize| row * width + (head * head_dim_v) as usize;
            for (dim, expected) in expected.iter().enumerate() {
                sums[0] += (found.o[at(index) + dim] - expected).powi(2);
                sums[1] += (one.o[at(*row) + dim] - expected).powi(2);
            }
        }
        sums
    }
}

/// Puts a rank's rows into the whole.
fn paste(whole: &mut [f64], part: &[f64], ranges: impl Iterator<Item = Range<usize>>, width: u32) {
    for (row, own) in ranges.flatten().zip(part.chunks_exact(width.max(1) as usize)) {
        whole[row * width as usize..][..width as usize].copy_from_slice(own);
    }
}

/// The squares of errors in a rank's rows: its own, and those of one device.
fn squares(
    part: &[f64],
    one: &[f64],
    [of_part, of_one]: [&Vec<f64>; 2],
    (ranges, width): (impl Iterator<Item = Range<usize>>, u32),
) -> [f64; 2] {
    let mut sums = [0.0; 2];
    for (row, own) in ranges.flatten().zip(part.chunks_exact(width.max(1) as usize)) {
        for (dim, found) in own.iter().enumerate() {
            let at = row * width as usize + dim;
            sums[0] += (found - of_part[at]).powi(2);
            sums[1] += (one[at] - of_one[at]).powi(2);
        }
    }
    sums
}
