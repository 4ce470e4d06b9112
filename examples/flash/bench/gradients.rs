//! The oracle's gradients for a few rows and keys of one KV head.
//!
//! A row of dK needs P of every row, for which LSE and D are taken from what the forward pass left on the device. That was
//! compared with the oracle in sampled rows; the gradients of rows are the oracle's from beginning to end.

use wgpu_flash_attention::{AttentionProblem, Element, PreparedForward, TensorLayout, reference};

use super::sample::{self, D_O, K, Q, Sample, V};
use crate::device::Gpu;
use crate::failure::{Failure, Result};
use crate::resident::{self, Resident, ResidentGradients};
use crate::{elements, random};

/// What a backward pass is given, and a part of what it must compute.
pub struct Given {
    pub gradients: ResidentGradients,
    /// None where the oracle cannot compute it.
    expected: Option<Vec<Expected>>,
}

/// Part of a row of a gradient.
struct Expected {
    tensor: Tensor,
    /// First element.
    first: u64,
    values: Vec<f64>,
}

#[derive(Clone, Copy, PartialEq)]
enum Tensor {
    Dq,
    Dk,
    Dv,
}

/// How far the sampled gradients are from the oracle's: of the one that is closest to its bound, or past it.
pub struct Deviation {
    pub max_error: f64,
    pub bound: f64,
    pub complaint: Option<String>,
}

/// Rows and keys that are sampled.
const SAMPLES: u64 = 4;

/// The last KV head of the last sequence, and what its tensors hold.
struct Head<'a> {
    problem: &'a AttentionProblem,
    /// As [`sample::alone`] makes it.
    alone: AttentionProblem,
    batch: u32,
    head_kv: u32,
    heads_per_kv: u32,
    k: Vec<f64>,
    v: Vec<f64>,
}

impl Given {
    /// Runs the forward pass, compares it with `samples`, if there are any, and computes the gradients' samples.
    pub async fn new(
        gpu: &Gpu,
        problem: &AttentionProblem,
        tensors: &Resident,
        samples: Option<&[Sample]>,
    ) -> Result<Self> {
        let gradients = ResidentGradients::new(gpu, problem, false).await?;
        sample::upload_d_o(gpu, problem, &gradients.d_o)?;
        let forward: PreparedForward = gpu.attention.prepare_forward(problem).await?;
        tensors.poison(gpu)?;
        let mut encoder = gpu.attention.device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        tensors.encode(&forward, &mut encoder)?;
        gpu.attention.queue().submit([encoder.finish()]);
        gpu.wait()?;
        let Some(samples) = samples else { return Ok(Self { gradients, expected: None }) };
        let deviation = sample::compare(gpu, problem, tensors, samples)?;
        if !deviation.is_good() {
            return Err(Failure::new(deviation.complaint()));
        }
        let head = Head::new(problem);
        let mut expected = head.rows();
        expected.extend(head.keys(gpu, tensors)?);
        Ok(Self { gradients, expected: Some(expected) })
    }

    /// Compares what the device has computed, if there is something to compare with.
    pub fn compare(&self, gpu: &Gpu, problem: &AttentionProblem) -> Result<Option<Deviation>> {
        let Some(expected) = &self.expected else { return Ok(None) };
        let size = problem.element.size();
        let mut worst = Deviation { max_error: 0.0, bound: 0.0, complaint: None };
        for (tensor, name, buffer) in [
            (Tensor::Dq, "dQ", &self.gradients.dq),
            (Tensor::Dk, "dK", &self.gradients.dk),
            (Tensor::Dv, "dV", &self.gradients.dv),
        ] {
            let (mut largest, mut max_error): (f64, f64) = (0.0, 0.0);
            for expected in expected.iter().filter(|expected| expected.tensor == tensor) {
                let bytes = resident::read(gpu, buffer, expected.first * size, expected.values.len() as u64 * size)?;
                let found = elements::decode(problem.element, &bytes);
                max_error = max_error.max(elements::largest_error(found, expected.values.iter().copied()));
                largest = expected.values.iter().fold(largest, |largest, value| largest.max(value.abs()));
            }
            // As for O: four times the element's rounding, and 2e-5 for the f32 sums.
            let rounding =
                if problem.element == Element::F32 { 0.0 } else { 4.0 * elements::unit_roundoff(problem.element) };
            let bound = (rounding + 2e-5) * largest;
            if max_error > bound && worst.complaint.is_none() {
                worst.complaint = Some(format!("wrong answer: {name} errs by {max_error:.1e} (bound {bound:.1e})"));
            }
            if worst.bound == 0.0 || max_error / bound > worst.max_error / worst.bound {
                (worst.max_error, worst.bound) = (max_error, bound);
            }
        }
        Ok(Some(worst))
    }
}

impl<'a> Head<'a> {
    fn new(problem: &'a AttentionProblem) -> Self {
        let shape = problem.shape;
        let mut head = Self {
            problem,
            alone: sample::alone(problem),
            batch: shape.batch - 1,
            head_kv: shape.num_heads_kv - 1,
            heads_per_kv: shape.num_heads / shape.num_heads_kv,
            k: Vec::new(),
            v: Vec::new(),
        };
        let all = |stream, layout: &TensorLayout, dim| -> Vec<f64> {
            let first = |key| sample::k_index(problem, layout, head.batch, key, head.head_kv);
            (0..problem.lengths_of(head.batch).1).flat_map(|key| head.values(stream, first(key), dim)).collect()
        };
        let (k, v) = (all(K, &problem.layout.k, shape.head_dim), all(V, &problem.layout.v, shape.head_dim_v));
        (head.k, head.v) = (k, v);
        head
    }

    /// A row of Q or dO.
    fn row(&self, stream: u64, layout: &TensorLayout, row: u32, head: u32, dim: u32) -> Vec<f64> {
        self.values(stream, sample::q_index(self.problem, layout, self.batch, row, head), dim)
    }

    /// A row of an input.
    fn values(&self, stream: u64, first: u64, dim: u32) -> Vec<f64> {
        let value = |index| self.problem.element.round(random::normal_like(stream, index));
        (first..first + u64::from(dim)).map(value).collect()
    }

    /// dQ of a few rows of the last query head.
    fn rows(&self) -> Vec<Expected> {
        let shape = self.problem.shape;
        let head = shape.num_heads - 1;
        let seqlen_q = u64::from(self.problem.lengths_of(self.batch).0);
        sample::spread(seqlen_q, SAMPLES.min(seqlen_q))
            .map(|row| {
                let row = row as u32;
                let q = self.row(Q, &self.problem.layout.q, row, head, shape.head_dim);
                let d_o = self.row(D_O, &self.problem.layout.o, row, head, shape.head_dim_v);
                let bias = sample::bias_row(self.problem, head, row, |_| true);
                let case = reference::Case::new(&self.alone, &bias, &[]);
                let (o, lse) = reference::forward_row(case, &q, &self.k, &self.v, self.batch, head, row);
                let stats = (lse, dot(&o, &d_o));
                let mut values = vec![0.0; shape.head_dim as usize];
                for key in case.keys((self.batch, head, row)) {
                    let (ds, _) = self.entry(case, &q, &d_o, stats, [head, row, key]);
                    add(&mut values, ds, self.row_of(&self.k, key, shape.head_dim));
                }
                let first = sample::q_index(self.problem, &self.problem.layout.q, self.batch, row, head);
                Expected { tensor: Tensor::Dq, first, values }
            })
            .collect()
    }

    /// dK and dV of a few keys.
    fn keys(&self, gpu: &Gpu, tensors: &Resident) -> Result<Vec<Expected>> {
        let shape = self.problem.shape;
        let layout = &self.problem.layout;
        let size = self.problem.element.size();
        let (seqlen_q, seqlen_kv) = self.problem.lengths_of(self.batch);
        let keys: Vec<u32> =
            sample::spread(seqlen_kv.into(), SAMPLES.min(seqlen_kv.into())).map(|key| key as u32).collect();
        let mut dk = vec![vec![0.0; shape.head_dim as usize]; keys.len()];
        let mut dv = vec![vec![0.0; shape.head_dim_v as usize]; keys.len()];
        for member in 0..self.heads_per_kv {
            let head = self.head_kv * self.heads_per_kv + member;
            let flat = sample::lse_index(self.problem, self.batch, head, 0);
            let lse = resident::read(gpu, &tensors.lse, flat * 4, u64::from(seqlen_q) * 4)?;
            // All rows of a head in one piece: a readback costs more than what lies between them.
            let first_of = |row| sample::q_index(self.problem, &layout.o, self.batch, row, head);
            let start = first_of(0);
            let len = first_of(seqlen_q - 1) + u64::from(shape.head_dim_v) - start;
            let o = resident::read(gpu, &tensors.o, start * size, len * size)?;
            let o: Vec<f64> = elements::decode(self.problem.element, &o).collect();
            for (row, lse) in (0..seqlen_q).zip(elements::decode(Element::F32, &lse)) {
                let masked = reference::Case::from(&self.alone);
                let sees = |key: &u32| masked.sees((self.batch, head, row, *key));
                if !keys.iter().any(sees) {
                    continue;
                }
                let q = self.row(Q, &layout.q, row, head, shape.head_dim);
                let d_o = self.row(D_O, &layout.o, row, head, shape.head_dim_v);
                let at = (first_of(row) - start) as usize;
                let bias = sample::bias_row(self.problem, head, row, |key| keys.contains(&key));
                let case = reference::Case::new(&self.alone, &bias, &[]);
                let stats = (lse, dot(&o[at..at + shape.head_dim_v as usize], &d_o));
                for (n, &key) in keys.iter().enumerate().filter(|(_, key)| sees(key)) {
                    let (ds, p) = self.entry(case, &q, &d_o, stats, [head, row, key]);
                    add(&mut dk[n], ds, &q);
                    add(&mut dv[n], p, &d_o);
                }
            }
        }
        let expected = |tensor, layout: TensorLayout, rows: Vec<Vec<f64>>| {
            let place = |(key, values): (&u32, Vec<f64>)| {
                let first = sample::k_index(self.problem, &layout, self.batch, *key, self.head_kv);
                Expected { tensor, first, values }
            };
            keys.iter().zip(rows).map(place).collect::<Vec<_>>()
        };
        let mut all = expected(Tensor::Dk, layout.k, dk);
        all.extend(expected(Tensor::Dv, layout.v, dv));
        Ok(all)
    }

    /// softmax_scale · dS and P of a pair; `stats` are the row's LSE and D.
    fn entry(
        &self,
        case: reference::Case,
        q: &[f64],
        d_o: &[f64],
        (lse, delta): (f64, f64),
        [head, row, key]: [u32; 3],
    ) -> (f64, f64) {
        let shape = self.problem.shape;
        let scale = self.problem.softmax_scale();
        let product = scale * dot(q, self.row_of(&self.k, key, shape.head_dim));
        let [score, slope] = reference::score(case, [self.batch, head, row, key], product);
        let p = (score - lse).exp();
        let dp = dot(d_o, self.row_of(&self.v, key, shape.head_dim_v));
        (scale * p * (dp - delta) * slope, p)
    }

    fn row_of<'b>(&self, values: &'b [f64], key: u32, dim: u32) -> &'b [f64] {
        &values[key as usize * dim as usize..][..dim as usize]
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn add(sum: &mut [f64], factor: f64, row: &[f64]) {
    sum.iter_mut().zip(row).for_each(|(sum, value)| *sum += factor * value);
}
