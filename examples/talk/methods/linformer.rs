//! Linformer: S. Wang, B. Z. Li, M. Khabsa, H. Fang, H. Ma, "Linformer: Self-Attention with Linear Complexity", 2020.
//!
//!     K' = E K,  V' = E V,  O = softmax(Q K'ᵀ / √d) V'
//!
//! E is k × seqlen, one for all heads, with k = min(256, seqlen). There are two variants: entries of E are normal with
//! variance 1/k, or a row of E is the mean of a segment of tokens. K' and V' are stored in the element of K and V. The
//! attention is exact, on the library's kernels. Not causal: a row of K' mixes all tokens.

use wgpu_flash_attention::{AttentionLayout, AttentionProblem, AttentionShape, ForwardBuffers, PreparedForward};

use super::dense::{self, Depth, Tiles};
use super::{Cost, Method, Prepared};
use crate::case::{Case, Head, Inputs, Problem, State, Tensor, given};
use crate::device::{Gpu, Kernel};
use crate::draws::Draws;
use crate::failure::{Failure, Result};

/// The most projected keys.
const MOST_ROWS: u32 = 256;

/// E, `[k, seqlen]`.
const E: &str = "linformer.e";

pub struct Linformer {
    pub pooled: bool,
}

impl Method for Linformer {
    fn name(&self) -> &'static str {
        if self.pooled { "linformer-pool" } else { "linformer" }
    }

    fn supports(&self, problem: &Problem) -> std::result::Result<(), String> {
        if problem.causal {
            return Err("is not defined for causal attention".to_owned());
        }
        Tiles::of(problem).map(|_| ())
    }

    fn prepare(&self, gpu: &Gpu, case: &Case) -> Result<Box<dyn Prepared>> {
        Ok(Box::new(Ready::new(gpu, case, self.pooled)?))
    }

    fn twin(&self, inputs: &Inputs, state: &State, head: Head, rows: &[u32]) -> Vec<f64> {
        let Problem { seqlen, head_dim, element, .. } = inputs.problem;
        let (n, d) = (seqlen as usize, head_dim as usize);
        let [q, k, v] = inputs.of_head(head);
        let projected_rows = seqlen.min(MOST_ROWS) as usize;
        let projected = |x: &[f32]| -> Vec<f64> {
            let mut out = Vec::with_capacity(projected_rows * d);
            for r in 0..projected_rows {
                let weights: Vec<(usize, f64)> = match state.get(E) {
                    Some(e) => e.f32s()[r * n..][..n].iter().map(|w| f64::from(*w)).enumerate().collect(),
                    None => {
                        let [first, end] = [r, r + 1].map(|r| r * n / projected_rows);
                        (first..end).map(|j| (j, 1.0 / (end - first) as f64)).collect()
                    }
                };
                let mut row = vec![0.0; d];
                for (j, weight) in weights {
                    row.iter_mut().zip(&x[j * d..]).for_each(|(sum, x)| *sum += weight * f64::from(*x));
                }
                out.extend(row.into_iter().map(|value| element.round(value)));
            }
            out
        };
        let (k, v) = (projected(k), projected(v));
        let scale = 1.0 / f64::from(head_dim).sqrt();
        let mut out = Vec::with_capacity(rows.len() * d);
        for &row in rows {
            let q = &q[row as usize * d..][..d];
            let scores: Vec<f64> = k
                .chunks_exact(d)
                .map(|k| scale * q.iter().zip(k).map(|(q, k)| f64::from(*q) * k).sum::<f64>())
                .collect();
            let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let p: Vec<f64> = scores.iter().map(|s| (s - largest).exp()).collect();
            let sum: f64 = p.iter().sum();
            out.extend((0..d).map(|e| p.iter().zip(v.chunks_exact(d)).map(|(p, v)| p * v[e]).sum::<f64>() / sum));
        }
        out
    }
}

struct Ready {
    /// The projection: kernels and their workgroups, in order.
    passes: Vec<(Kernel, [u32; 3])>,
    forward: PreparedForward,
    q: wgpu::Buffer,
    k: wgpu::Buffer,
    v: wgpu::Buffer,
    o: wgpu::Buffer,
    lse: wgpu::Buffer,
    cost: Cost,
    state: State,
}

impl Ready {
    fn new(gpu: &Gpu, case: &Case, pooled: bool) -> Result<Self> {
        let problem = case.inputs.problem;
        let Problem { batch, num_heads, num_heads_kv, seqlen, head_dim, element, .. } = problem;
        let rows = seqlen.min(MOST_ROWS);
        let shape = AttentionShape::new(batch, num_heads, seqlen, head_dim)
            .with_num_heads_kv(num_heads_kv)
            .with_seqlen_kv(rows);
        let attention = AttentionProblem::new(shape).with_layout(AttentionLayout::bhsd(&shape)).with_element(element);
        let forward = pollster::block_on(gpu.attention.prepare_forward(&attention))?;
        let projected_bytes = u64::from(batch * num_heads_kv * rows * head_dim) * element.size();
        let [k, v] = [gpu.buffer("projected K", projected_bytes)?, gpu.buffer("projected V", projected_bytes)?];
        let lse = gpu.buffer("LSE", shape.lse_len() * 4)?;
        let Projection { passes, flops, bytes, extra_bytes, state } = match pooled {
            true => pooled_projection(gpu, case, rows, [&k, &v])?,
            false => random_projection(gpu, case, rows, [&k, &v])?,
        };
        let cost = Cost {
            flops: flops + attention.forward_flops() as f64,
            bytes: bytes + (2 * projected_bytes) as f64 + problem.tensor_bytes() as f64,
            extra_bytes: extra_bytes + 2 * projected_bytes + forward.plan().extra_bytes(),
        };
        Ok(Self { passes, forward, q: case.q.clone(), k, v, o: case.output(gpu)?, lse, cost, state })
    }
}

/// Kernels that project K and V, and what they cost beyond reading K and V.
struct Projection {
    passes: Vec<(Kernel, [u32; 3])>,
    flops: f64,
    bytes: f64,
    extra_bytes: u64,
    state: State,
}

fn random_projection(gpu: &Gpu, case: &Case, rows: u32, projected: [&wgpu::Buffer; 2]) -> Result<Projection> {
    let problem = case.inputs.problem;
    let Problem { batch, num_heads_kv, seqlen, head_dim, .. } = problem;
    let tiles = Tiles::of(&problem).map_err(Failure::new)?;
    let heads_kv = batch * num_heads_kv;
    let (n, k) = (seqlen as usize, rows as usize);
    let drawn = || {
        let draws = Draws::new(case.seed, "linformer");
        Tensor::f32(&[k, n], draws.normals(0, k * n, |x| (x / f64::from(rows).sqrt()) as f32))
    };
    let e = given(case, E, &[k, n])?.unwrap_or_else(drawn);
    // Tokens first, and rows in fours.
    let padded = rows.next_multiple_of(4);
    let value = |j: usize, r: usize| if r < k { e.f32s()[r * n + j] } else { 0.0 };
    let turned: Vec<f32> = (0..n).flat_map(|j| (0..padded as usize).map(move |r| value(j, r))).collect();
    let e_buffer = gpu.filled("E", bytemuck::cast_slice(&turned))?;

    // Sixteen chunks keep a device busy.
    let chunk_len = seqlen.div_ceil(16).next_multiple_of(256);
    let num_chunks = seqlen.div_ceil(chunk_len);
    let len = heads_kv * padded * (head_dim / 4);
    let parts_bytes = 2 * u64::from(num_chunks) * u64::from(len) * 16;
    let parts = gpu.buffer("parts", parts_bytes)?;
    let project = gpu.kernel(
        "linformer_project",
        tiles.text(
            Depth::Slice,
            &[("ROWS", format!("{padded}u"))],
            &[include_str!("../shaders/linformer_project.wgsl")],
        ),
        &[seqlen, chunk_len, num_chunks],
        &[&case.k, &case.v, &e_buffer, &parts],
    )?;
    let sizes = format!("const ROWS = {rows}u;\nconst PADDED = {padded}u;\nconst DIM_QUADS = {}u;\n", head_dim / 4);
    let sum = gpu.kernel(
        "linformer_sum",
        [&sizes, dense::element_text(problem.element), include_str!("../shaders/linformer_sum.wgsl")].concat(),
        &[num_chunks, heads_kv],
        &[&parts, projected[0], projected[1]],
    )?;
    let own = heads_kv * rows * (head_dim / 4);
    Ok(Projection {
        passes: vec![(project, [num_chunks, padded.div_ceil(tiles.tile()), heads_kv]), (sum, [own.div_ceil(64), 1, 1])],
        flops: 4.0 * f64::from(rows) * problem.kv_len() as f64,
        bytes: (e_buffer.size() + 2 * parts_bytes) as f64,
        extra_bytes: e_buffer.size() + parts_bytes,
        state: State::from([(E.to_owned(), e)]),
    })
}

fn pooled_projection(gpu: &Gpu, case: &Case, rows: u32, projected: [&wgpu::Buffer; 2]) -> Result<Projection> {
    let problem = case.inputs.problem;
    let Problem { batch, num_heads_kv, seqlen, head_dim, .. } = problem;
    let sizes = format!("const HEAD_DIM = {head_dim}u;\nconst ROWS = {rows}u;\n");
    let pool = gpu.kernel(
        "linformer_pool",
        [&sizes, dense::element_text(problem.element), include_str!("../shaders/linformer_pool.wgsl")].concat(),
        &[seqlen, batch * num_heads_kv],
        &[&case.k, &case.v, projected[0], projected[1]],
    )?;
    let own = batch * num_heads_kv * rows * (head_dim / 4);
    Ok(Projection {
        passes: vec![(pool, [own.div_ceil(64), 1, 1])],
        flops: 2.0 * problem.kv_len() as f64,
        bytes: 0.0,
        extra_bytes: 0,
        state: State::new(),
    })
}

impl Prepared for Ready {
    fn encode(&self, encoder: &mut wgpu::CommandEncoder) -> Result<()> {
        self.passes.iter().for_each(|(kernel, workgroups)| kernel.encode(encoder, *workgroups));
        let [q, k, v, o, lse] = [&self.q, &self.k, &self.v, &self.o, &self.lse].map(|buffer| buffer.slice(..));
        Ok(self.forward.encode(encoder, &ForwardBuffers::new(q, k, v, o, lse))?)
    }

    fn output(&self) -> &wgpu::Buffer {
        &self.o
    }

    fn cost(&self) -> Cost {
        self.cost
    }

    fn state(&self, _: &Gpu) -> Result<State> {
        Ok(self.state.clone())
    }
}
