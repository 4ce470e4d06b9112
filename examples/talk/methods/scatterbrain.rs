//! Scatterbrain: B. Chen, T. Dao, E. Winsor, Z. Song, A. Rudra, C. Ré, "Scatterbrain: Unifying Sparse and Low-rank Attention
//! Approximation", NeurIPS 2021.
//!
//!     o_i = (Σ_{j ∈ S_i} exp(s_ij) v_j + Σ_{j ∉ S_i} φ(q_i)·φ(k_j) v_j) / (Σ_{j ∈ S_i} exp(s_ij) + Σ_{j ∉ S_i} φ(q_i)·φ(k_j))
//!     φ(x) = m^(−1/2) exp(ω x · d^(−1/4) − ‖x‖² / (2 √d))
//!
//! with Performer's ω, without its ε. Causal: j ≤ i in all sums. The support S is a band of chunks of 128: a row sees its chunk and
//! the two beside it. (A loaded support may be any range of chunks for each row of chunks, with ends that rise.)
//!
//! All of it is exact attention of the library, for the features are attention too. With M = ω · d^(−1/4) as rows, chunk by chunk:
//!
//!     (O_c, LSE_c) = attention of Q = M with K_c and V_c, with −‖k_j‖² / (2 √d) added to the scores   one row for each feature
//!     (O', LSE')   = merge of these over the chunks outside the support, by prefix and suffix sums
//!     (O_2, LSE_2) = attention of Q_c with K = M and V = O', with LSE' added to the scores             one key for each feature
//!     LSE_2        = LSE_2 − ‖q_i‖² / (2 √d) − ln m
//!
//! which is merged with the exact part. So every exponential has its largest exponent taken out, and it comes back with LSE. This
//! part is in f32 whatever Q, K and V are stored in.

use wgpu_flash_attention::{
    AttentionLayout, AttentionProblem, AttentionShape, BlockKind, BlockMask, Element, EntryLayout, KeyMask, Operand,
    ScoreMod, TensorLayout,
};

use super::performer::{num_features, orthogonal};
use super::ready::Ready;
use super::sparse::{self, Attention, Step};
use super::{Cost, Method, Prepared};
use crate::case::{Case, Head, Inputs, Problem, State, Tensor, Values, given};
use crate::device::Gpu;
use crate::failure::{Failure, Result};

/// Rows, and keys, of a chunk.
const CHUNK: u32 = 128;

/// Chunks that a row sees on each side of its own.
const BAND: u32 = 1;

/// The state: ω, `[m, head_dim]`, before it is scaled; and for each row of chunks the first chunk of its support and the first
/// behind it, `[chunks, 2]`.
const OMEGA: &str = "scatterbrain.omega";
const SUPPORT: &str = "scatterbrain.support";

pub struct Scatterbrain;

impl Method for Scatterbrain {
    fn name(&self) -> &'static str {
        "scatterbrain"
    }

    fn supports(&self, problem: &Problem) -> std::result::Result<(), String> {
        sparse::takes_quads(problem)
    }

    fn prepare(&self, gpu: &Gpu, case: &Case) -> Result<Box<dyn Prepared>> {
        Ok(Box::new(ready(gpu, case)?))
    }

    fn twin(&self, inputs: &Inputs, state: &State, head: Head, rows: &[u32]) -> Vec<f64> {
        let Problem { seqlen, head_dim, causal, .. } = inputs.problem;
        let d = head_dim as usize;
        let [q, k, v] = inputs.of_head(head);
        let omega = state[OMEGA].f32s();
        let support = state[SUPPORT].u32s();
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let omega: Vec<Vec<f64>> = (0..omega.len() / d).map(|f| sparse::row(omega, f, d)).collect();
        let root = f64::from(head_dim).sqrt();
        let features = |x: &[f64]| {
            let shift = -dot(x, x) / (2.0 * root) - (omega.len() as f64).ln() / 2.0;
            Features::new(omega.iter().map(|row| dot(row, x) / root.sqrt() + shift).collect())
        };
        let keys: Vec<Vec<f64>> = (0..seqlen as usize).map(|j| sparse::row(k, j, d)).collect();
        let of_keys: Vec<Features> = keys.iter().map(|key| features(key)).collect();
        let mut out = Vec::with_capacity(rows.len() * d);
        for &i in rows {
            let row = sparse::row(q, i as usize, d);
            let phi = features(&row);
            let [first, end] = [0, 1].map(|n| support[(i / CHUNK) as usize * 2 + n]);
            let end_key = if causal { i + 1 } else { seqlen };
            let exponent = |j: u32| match (first..end).contains(&(j / CHUNK)) {
                true => dot(&row, &keys[j as usize]) / root,
                false => phi.log_product(&of_keys[j as usize]),
            };
            let exponents: Vec<f64> = (0..end_key).map(exponent).collect();
            let most = largest(&exponents);
            let weights: Vec<f64> = exponents.iter().map(|exponent| (exponent - most).exp()).collect();
            let sum: f64 = weights.iter().sum();
            let value = |e: usize| weights.iter().zip(v.chunks_exact(d)).map(|(w, v)| w * f64::from(v[e])).sum::<f64>();
            out.extend((0..d).map(|e| value(e) / sum));
        }
        out
    }
}

fn largest(values: &[f64]) -> f64 {
    values.iter().copied().fold(f64::NEG_INFINITY, f64::max)
}

/// The twin's φ(x). It neither overflows nor becomes zero, however large x is.
struct Features {
    logs: Vec<f64>,
    /// The largest of them, and exp of each less that.
    most: f64,
    scaled: Vec<f64>,
}

impl Features {
    fn new(logs: Vec<f64>) -> Self {
        let most = largest(&logs);
        let scaled = logs.iter().map(|log| (log - most).exp()).collect();
        Self { logs, most, scaled }
    }

    /// ln(φ · φ').
    fn log_product(&self, other: &Self) -> f64 {
        // What is lost where a term is too small for f64 is nothing beside such a sum.
        const SAFE: f64 = 1e-280;
        let sum: f64 = self.scaled.iter().zip(&other.scaled).map(|(a, b)| a * b).sum();
        if sum > SAFE {
            return self.most + other.most + sum.ln();
        }
        // No feature is large in both, so that the largest product is elsewhere.
        let logs: Vec<f64> = self.logs.iter().zip(&other.logs).map(|(a, b)| a + b).collect();
        let most = largest(&logs);
        most + logs.iter().map(|log| (log - most).exp()).sum::<f64>().ln()
    }
}

/// What the steps share.
struct Making<'a> {
    gpu: &'a Gpu,
    case: &'a Case<'a>,
    problem: Problem,
    /// Of a sequence.
    chunks: u32,
    features: u32,
    /// M, `[m, head_dim]`.
    scaled: wgpu::Buffer,
    support: wgpu::Buffer,
    steps: Vec<Step>,
    extra_bytes: u64,
}

/// Rows of a tensor in f32, in whole chunks, and their shifts.
struct Rows {
    rows: wgpu::Buffer,
    shifts: wgpu::Buffer,
}

fn ready(gpu: &Gpu, case: &Case) -> Result<Ready> {
    let problem = case.inputs.problem;
    let Problem { seqlen, head_dim, .. } = problem;
    let (chunks, m) = (seqlen.div_ceil(CHUNK), num_features(head_dim));
    let shape = [m as usize, head_dim as usize];
    let omega = given(case, OMEGA, &shape)?.unwrap_or_else(|| Tensor::f32(&shape, orthogonal(m, head_dim, case.seed)));
    let support = support(case, chunks)?;
    let scale = f64::from(head_dim).powf(-0.25);
    let scaled: Vec<f32> = omega.f32s().iter().map(|x| (f64::from(*x) * scale) as f32).collect();
    let mut making = Making {
        gpu,
        case,
        problem,
        chunks,
        features: m,
        scaled: gpu.filled("omega", bytemuck::cast_slice(&scaled))?,
        support: gpu.filled("support", bytemuck::cast_slice(&support))?,
        steps: Vec::new(),
        extra_bytes: 0,
    };
    let o = case.output(gpu)?;
    making.all(&support, &o)?;
    let cost = Cost { extra_bytes: making.extra_bytes, ..cost(&problem, m, &support) };
    let support = Tensor { dims: vec![chunks as usize, 2], values: Values::U32(support) };
    let state = State::from([(OMEGA.to_owned(), omega), (SUPPORT.to_owned(), support)]);
    Ok(Ready { steps: making.steps, o, cost, state })
}

/// The first chunk of the support of each row of chunks, and the first behind it.
fn support(case: &Case, chunks: u32) -> Result<Vec<u32>> {
    let band = |row: u32| [row.saturating_sub(BAND), (row + BAND + 1).min(chunks)];
    let Some(given) = sparse::given_words(case, SUPPORT, &[chunks, 2], chunks + 1)? else {
        return Ok((0..chunks).flat_map(band).collect());
    };
    let ranges: Vec<&[u32]> = given.chunks_exact(2).collect();
    let holds_own = (0..).zip(&ranges).all(|(row, range)| (range[0]..range[1]).contains(&row));
    let rises = ranges.windows(2).all(|pair| pair[0][0] <= pair[1][0] && pair[0][1] <= pair[1][1]);
    match holds_own && rises {
        true => Ok(given.to_vec()),
        false => {
            Err(Failure::new(format_args!("the loaded {SUPPORT} must have each row's own chunk, and rising ends")))
        }
    }
}

impl Making<'_> {
    fn buffer(&mut self, name: &str, len: u64, size: u64) -> Result<wgpu::Buffer> {
        let buffer = self.gpu.buffer(name, len * size)?;
        self.extra_bytes += buffer.size();
        Ok(buffer)
    }

    fn kernel(&mut self, name: &str, text: String, params: &[u32], buffers: &[&wgpu::Buffer], len: u64) -> Result<()> {
        let kernel = self.gpu.kernel(name, text, params, buffers)?;
        self.steps.push(Step::Kernel(kernel, sparse::grid(len)));
        Ok(())
    }

    fn attention(
        &mut self,
        problem: &AttentionProblem,
        tensors: [&wgpu::Buffer; 4],
        more: Option<(Operand, &wgpu::Buffer)>,
    ) -> Result<wgpu::Buffer> {
        let attention = Attention::new(self.gpu, problem, tensors, more)?;
        self.extra_bytes += attention.extra_bytes();
        let lse = attention.lse().clone();
        self.steps.push(Step::Attention(Box::new(attention)));
        Ok(lse)
    }

    /// Chunks of all sequences.
    fn all_chunks(&self) -> u32 {
        self.problem.batch * self.chunks
    }

    fn all(&mut self, support: &[u32], o: &wgpu::Buffer) -> Result<()> {
        let Problem { batch, num_heads, num_heads_kv, seqlen, .. } = self.problem;
        let case = self.case;
        let o_exact = self.buffer("exact O", self.problem.q_len() as u64, self.problem.element.size())?;
        let exact = self.problem.attention().with_key_mask(KeyMask::Blocks(blocks(support)));
        let lse_exact = self.attention(&exact, [&case.q, &case.k, &case.v, &o_exact], None)?;

        let q = self.rows(&case.q, num_heads)?;
        let k = self.rows(&case.k, num_heads_kv)?;
        let v = self.rows(&case.v, num_heads_kv)?;
        let (o_chunks, lse_chunks) = self.features_of_keys(&k, &v)?;
        let (values, bias) = self.outside(&o_chunks, &lse_chunks)?;
        let (o_features, lse_features) = self.rows_of_features(&q, &values, &bias)?;

        let constants = [("CHUNK", format!("{CHUNK}u"))];
        let wgsl = sparse::text(&self.problem, &constants, &[include_str!("../shaders/scatterbrain_merge.wgsl")]);
        let params = [seqlen, self.chunks, batch * num_heads, num_heads, self.features];
        let buffers = [&o_exact, &lse_exact, &o_features, &lse_features, &q.shifts, o];
        self.kernel("scatterbrain_merge", wgsl, &params, &buffers, self.problem.q_len() as u64 / 4)
    }

    /// A tensor `[batch, heads, seqlen, head_dim]` as `[heads, batch, chunks · CHUNK, head_dim]` in f32.
    fn rows(&mut self, x: &wgpu::Buffer, heads: u32) -> Result<Rows> {
        let padded = self.chunks * CHUNK;
        let num_rows = u64::from(heads) * u64::from(self.problem.batch) * u64::from(padded);
        let rows = self.buffer("rows in f32", num_rows * u64::from(self.problem.head_dim), 4)?;
        let shifts = self.buffer("shifts", num_rows, 4)?;
        let wgsl = sparse::text(&self.problem, &[], &[include_str!("../shaders/scatterbrain_rows.wgsl")]);
        let params = [self.problem.seqlen, padded, self.problem.batch, heads];
        self.kernel("scatterbrain_rows", wgsl, &params, &[x, &rows, &shifts], num_rows)?;
        Ok(Rows { rows, shifts })
    }

    /// How `[heads, chunks of all sequences, rows, dim]` lies.
    fn by_chunks(&self, rows: u32, dim: u32) -> TensorLayout {
        let of_chunk = u64::from(rows) * u64::from(dim);
        let stride_head = of_chunk * u64::from(self.all_chunks());
        TensorLayout { offset: 0, stride_batch: of_chunk, stride_row: dim.into(), stride_head }
    }

    /// M, the same for all chunks and heads.
    fn of_features(&self) -> TensorLayout {
        TensorLayout { offset: 0, stride_batch: 0, stride_row: self.problem.head_dim.into(), stride_head: 0 }
    }

    /// O `[KV heads, chunks, m, head_dim]` and LSE `[chunks, KV heads, m]` of the features as rows, over the keys of each chunk.
    fn features_of_keys(&mut self, k: &Rows, v: &Rows) -> Result<(wgpu::Buffer, wgpu::Buffer)> {
        let Problem { num_heads_kv, seqlen, head_dim, batch, .. } = self.problem;
        let m = self.features;
        let shape = AttentionShape::new(self.all_chunks(), num_heads_kv, m, head_dim).with_seqlen_kv(CHUNK);
        let keys = self.by_chunks(CHUNK, head_dim);
        let layout = AttentionLayout { q: self.of_features(), k: keys, v: keys, o: self.by_chunks(m, head_dim) };
        let shifts = self.by_chunks(CHUNK, 1);
        let bias = EntryLayout {
            offset: 0,
            stride_batch: shifts.stride_batch,
            stride_head: shifts.stride_head,
            stride_row: 0,
            stride_key: 1,
        };
        let mut problem = AttentionProblem::new(shape)
            .with_layout(layout)
            .with_score(ScoreMod::Bias { layout: bias, element: Element::F32 });
        problem.softmax_scale = Some(1.0);
        if !seqlen.is_multiple_of(CHUNK) {
            let len = |chunk: u32| CHUNK.min(seqlen - chunk * CHUNK);
            let lens = (0..batch).flat_map(|_| (0..self.chunks).map(len)).collect();
            problem = problem.with_lengths(vec![m; self.all_chunks() as usize], lens);
        }
        let len = u64::from(self.all_chunks()) * u64::from(num_heads_kv) * u64::from(m);
        let o = self.buffer("O of chunks", len * u64::from(head_dim), 4)?;
        let scaled = self.scaled.clone();
        let lse = self.attention(&problem, [&scaled, &k.rows, &v.rows, &o], Some((Operand::Bias, &k.shifts)))?;
        Ok((o, lse))
    }

    /// The same over the chunks outside the support of each row of chunks; LSE `[chunks, heads, m]` for each query head.
    fn outside(&mut self, o_chunks: &wgpu::Buffer, lse_chunks: &wgpu::Buffer) -> Result<(wgpu::Buffer, wgpu::Buffer)> {
        let Problem { batch, num_heads, num_heads_kv, head_dim, causal, .. } = self.problem;
        let constants = [("IS_CAUSAL", causal.to_string())];
        let features = u64::from(batch) * u64::from(num_heads_kv) * u64::from(self.features);
        let of_chunks = features * u64::from(self.chunks);
        let o = self.buffer("O outside the support", of_chunks * u64::from(head_dim), 4)?;
        let lse = self.buffer("LSE outside the support", of_chunks * u64::from(num_heads / num_heads_kv), 4)?;
        let params = [self.chunks, batch, num_heads_kv, num_heads / num_heads_kv, self.features];
        let support = self.support.clone();
        let wgsl = sparse::text(&self.problem, &constants, &[include_str!("../shaders/scatterbrain_lse.wgsl")]);
        self.kernel("scatterbrain_lse", wgsl, &params, &[lse_chunks, &support, &lse], features)?;
        let wgsl = sparse::text(&self.problem, &constants, &[include_str!("../shaders/scatterbrain_scan.wgsl")]);
        let buffers = [o_chunks, lse_chunks, &support, &lse, &o];
        self.kernel("scatterbrain_scan", wgsl, &params, &buffers, features * u64::from(head_dim / 4))?;
        Ok((o, lse))
    }

    /// O `[heads, chunks, CHUNK, head_dim]` and LSE `[chunks, heads, CHUNK]` of the rows, over the features as keys.
    fn rows_of_features(
        &mut self,
        q: &Rows,
        values: &wgpu::Buffer,
        bias: &wgpu::Buffer,
    ) -> Result<(wgpu::Buffer, wgpu::Buffer)> {
        let Problem { num_heads, num_heads_kv, head_dim, .. } = self.problem;
        let m = self.features;
        let shape = AttentionShape::new(self.all_chunks(), num_heads, CHUNK, head_dim)
            .with_num_heads_kv(num_heads_kv)
            .with_seqlen_kv(m);
        let rows = self.by_chunks(CHUNK, head_dim);
        let layout = AttentionLayout { q: rows, k: self.of_features(), v: self.by_chunks(m, head_dim), o: rows };
        let layout_of_bias = EntryLayout::contiguous([self.all_chunks(), num_heads, 1, m]);
        let mut problem = AttentionProblem::new(shape)
            .with_layout(layout)
            .with_score(ScoreMod::Bias { layout: layout_of_bias, element: Element::F32 });
        problem.softmax_scale = Some(1.0);
        let len = u64::from(self.all_chunks()) * u64::from(num_heads) * u64::from(CHUNK) * u64::from(head_dim);
        let o = self.buffer("O of features", len, 4)?;
        let scaled = self.scaled.clone();
        let lse = self.attention(&problem, [&q.rows, &scaled, values, &o], Some((Operand::Bias, bias)))?;
        Ok((o, lse))
    }
}

/// The support as a mask.
fn blocks(support: &[u32]) -> BlockMask {
    let chunks = (support.len() / 2) as u32;
    let kinds: Vec<BlockKind> = support
        .chunks_exact(2)
        .flat_map(|range| (0..chunks).map(|chunk| (range[0]..range[1]).contains(&chunk)))
        .map(|seen| if seen { BlockKind::Partial } else { BlockKind::Absent })
        .collect();
    BlockMask::new([1, 1, chunks, chunks], [CHUNK; 2], &kinds)
}

fn cost(problem: &Problem, m: u32, support: &[u32]) -> Cost {
    let Problem { batch, num_heads, num_heads_kv, seqlen, head_dim, causal, .. } = *problem;
    let len = |chunk: u32| f64::from(CHUNK.min(seqlen - chunk * CHUNK));
    let of_row = |(row, range): (u32, &[u32])| {
        let own = if causal { len(row) * (len(row) + 1.0) / 2.0 } else { len(row) * len(row) };
        let behind = if causal { row } else { range[1] };
        own + (range[0]..behind).filter(|chunk| *chunk != row).map(|chunk| len(row) * len(chunk)).sum::<f64>()
    };
    let pairs: f64 = (0..).zip(support.chunks_exact(2)).map(of_row).sum();
    let [heads, heads_kv] = [num_heads, num_heads_kv].map(|heads| f64::from(batch) * f64::from(heads));
    let (d, m, n) = (f64::from(head_dim), f64::from(m), f64::from(seqlen));
    let pair = 4.0 * d + 1.0;
    let flops = heads * pairs * pair + (heads + heads_kv) * n * m * pair;
    // O of chunks is written once, read once for the chunks before and once for those behind; O outside is written, and but for
    // causal problems changed, and read.
    let states = heads_kv * f64::from(seqlen.div_ceil(CHUNK)) * m * d * 4.0 * if causal { 4.0 } else { 7.0 };
    let size = problem.element.size() as f64;
    // Each tensor is read twice, and once more in f32, which is written; exact O and that of the features are written and read.
    let rows =
        (heads * (3.0 * size + 4.0 * size) + heads * (2.0 + 2.0) * 4.0 + heads_kv * 2.0 * (2.0 * size + 8.0)) * n * d;
    Cost { flops, bytes: rows + states, extra_bytes: 0 }
}
