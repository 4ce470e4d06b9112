//! Linear Transformer: A. Katharopoulos, A. Vyas, N. Pappas, F. Fleuret, "Transformers are RNNs: Fast Autoregressive
//! Transformers with Linear Attention", ICML 2020.
//!
//!     o_i = φ(q_i) Σ_j φ(k_j)ᵀ v_j / (φ(q_i) · Σ_j φ(k_j)),   φ(x) = elu(x) + 1
//!
//! Causal: j ≤ i in both sums, as a prefix sum over chunks of keys. It does not approximate softmax. Its error against
//! exact attention is information, not a verdict: models are trained with it.

use super::dense::{Depth, Tiles};
use super::{Cost, Method, Prepared, ready::Ready, sparse::Step};
use crate::case::{Case, Head, Inputs, Problem, State};
use crate::device::Gpu;
use crate::failure::{Failure, Result};

pub struct Linear;

impl Method for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn supports(&self, problem: &Problem) -> std::result::Result<(), String> {
        Tiles::of(problem).map(|_| ())
    }

    fn prepare(&self, gpu: &Gpu, case: &Case) -> Result<Box<dyn Prepared>> {
        Ok(Box::new(prepare(gpu, case)?))
    }

    fn twin(&self, inputs: &Inputs, _: &State, head: Head, rows: &[u32]) -> Vec<f64> {
        let Problem { seqlen, head_dim, causal, .. } = inputs.problem;
        let d = head_dim as usize;
        let [q, k, v] = inputs.of_head(head);
        let feature = |x: f32| if x > 0.0 { f64::from(x) + 1.0 } else { f64::from(x).exp() };
        let mut state = vec![0.0; d * d];
        let mut weights = vec![0.0; d];
        let mut seen = 0;
        let mut out = Vec::with_capacity(rows.len() * d);
        for &row in rows {
            let end = if causal { row as usize + 1 } else { seqlen as usize };
            for j in seen..end {
                for f in 0..d {
                    let phi = feature(k[j * d + f]);
                    weights[f] += phi;
                    for e in 0..d {
                        state[f * d + e] += phi * f64::from(v[j * d + e]);
                    }
                }
            }
            seen = end;
            let phi: Vec<f64> = q[row as usize * d..][..d].iter().map(|x| feature(*x)).collect();
            let weight: f64 = (0..d).map(|f| phi[f] * weights[f]).sum();
            out.extend((0..d).map(|e| (0..d).map(|f| phi[f] * state[f * d + e]).sum::<f64>() / weight));
        }
        out
    }
}

fn prepare(gpu: &Gpu, case: &Case) -> Result<Ready> {
    let problem = case.inputs.problem;
    let Problem { batch, num_heads, num_heads_kv, seqlen, head_dim, causal, .. } = problem;
    let tiles = Tiles::of(&problem).map_err(Failure::new)?;
    let (heads, heads_kv) = (batch * num_heads, batch * num_heads_kv);
    let chunk_len = tiles.chunk_len(&problem);
    let num_chunks = seqlen.div_ceil(chunk_len);
    let state_quads = head_dim * tiles.columns();
    let state_bytes = u64::from(heads_kv) * u64::from(num_chunks) * u64::from(state_quads) * 16;
    let states = gpu.buffer("states", state_bytes)?;
    let o = case.output(gpu)?;

    const FEATURES: &str = include_str!("../shaders/linear_features.wgsl");
    let causal_text = [("CAUSAL", causal.to_string())];
    let state = gpu.kernel(
        "linear_state",
        tiles.text(Depth::Slice, &[], &[FEATURES, include_str!("../shaders/linear_state.wgsl")]),
        &[seqlen, chunk_len, num_chunks],
        &[&case.k, &case.v, &states],
    )?;
    let scan = gpu.kernel(
        "scan",
        format!("const CAUSAL = {causal};\n{}", include_str!("../shaders/scan.wgsl")),
        &[num_chunks, state_quads],
        &[&states],
    )?;
    let apply = gpu.kernel(
        "linear_apply",
        tiles.text(Depth::HeadDim, &causal_text, &[FEATURES, include_str!("../shaders/linear_apply.wgsl")]),
        &[seqlen, chunk_len, num_chunks, num_heads / num_heads_kv, head_dim],
        &[&case.q, &case.k, &case.v, &states, &o],
    )?;
    let steps = vec![
        Step::Kernel(state, [num_chunks, head_dim.div_ceil(tiles.tile()), heads_kv]),
        Step::Kernel(scan, [state_quads.div_ceil(64), heads_kv, 1]),
        Step::Kernel(apply, [seqlen.div_ceil(tiles.tile()), heads, 1]),
    ];

    let [rows, rows_kv] = [heads, heads_kv].map(|heads| f64::from(heads) * f64::from(seqlen));
    let (d, e) = (f64::from(head_dim), f64::from(head_dim) + 1.0);
    // The keys of its chunk that a row sees, about half of them.
    let near = if causal { f64::from(chunk_len.min(seqlen)) / 2.0 } else { 0.0 };
    let flops = rows_kv * 2.0 * d * e + rows * (2.0 * d * e + near * 2.0 * (d + e));
    // K and V are read again by causal rows; states are written, scanned (read, and written if causal) and read.
    let again = if causal { 1.0 } else { 0.0 };
    let tensors = problem.tensor_bytes() as f64 + again * 2.0 * rows_kv * d * problem.element.size() as f64;
    let bytes = tensors + state_bytes as f64 * (2.0 + 2.0 * again);
    Ok(Ready { steps, o, cost: Cost { flops, bytes, extra_bytes: state_bytes }, state: State::new() })
}
