//! Performer (FAVOR+): K. Choromanski et al., "Rethinking Attention with Performers", ICLR 2021.
//!
//!     φ(x) = m^(−1/2) (exp(ω x · d^(−1/4) − |x|² / (2 √d) − M) + ε)
//!     o_i = φ(q_i) Σ_j φ(k_j)ᵀ v_j / (φ(q_i) · Σ_j φ(k_j))
//!
//! with m = round(d ln d) random features and ε = 1e-4. M is the largest ω x · d^(−1/4), as in the authors' code: of a query
//! over the features, of the keys over the whole head. Rows of ω are orthogonal in blocks of d, and as long as Gaussian vectors are. All heads have
//! one ω. Everything is in f32. Causal: j ≤ i in both sums, as a prefix sum over chunks of keys.

use super::dense::{Depth, Tiles};
use super::{Cost, Method, Prepared, ready::Ready, sparse::Step};
use crate::case::{Case, Head, Inputs, Problem, State, Tensor, given};
use crate::device::Gpu;
use crate::draws::Draws;
use crate::failure::{Failure, Result};

const EPSILON: f64 = 1e-4;

/// ω, `[m, head_dim]`, before it is scaled.
const OMEGA: &str = "performer.omega";

pub struct Performer;

impl Method for Performer {
    fn name(&self) -> &'static str {
        "performer"
    }

    fn supports(&self, problem: &Problem) -> std::result::Result<(), String> {
        Tiles::of(problem).map(|_| ())
    }

    fn prepare(&self, gpu: &Gpu, case: &Case) -> Result<Box<dyn Prepared>> {
        Ok(Box::new(prepare(gpu, case)?))
    }

    fn twin(&self, inputs: &Inputs, state: &State, head: Head, rows: &[u32]) -> Vec<f64> {
        let Problem { seqlen, head_dim, causal, .. } = inputs.problem;
        let d = head_dim as usize;
        let [q, k, v] = inputs.of_head(head);
        let omega = state[OMEGA].f32s();
        let m = omega.len() / d;
        let root = f64::from(head_dim).sqrt();
        let projected = |x: &[f32]| -> Vec<f64> {
            let dot = |row: &[f32]| row.iter().zip(x).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum::<f64>();
            omega.chunks_exact(d).map(|row| dot(row) / root.sqrt()).collect()
        };
        let largest = |x: &[f64]| x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let features = |x: &[f32], projected: &[f64], stabiliser: f64| -> Vec<f64> {
            let squares: f64 = x.iter().map(|x| f64::from(*x).powi(2)).sum();
            let feature = |a: &f64| ((a - squares / (2.0 * root) - stabiliser).exp() + EPSILON) / (m as f64).sqrt();
            projected.iter().map(feature).collect()
        };
        let of_keys: Vec<Vec<f64>> = k.chunks_exact(d).map(projected).collect();
        let stabiliser = of_keys.iter().map(|a| largest(a)).fold(f64::NEG_INFINITY, f64::max);

        let (mut sums, mut weights) = (vec![0.0; m * d], vec![0.0; m]);
        let mut seen = 0;
        let mut out = Vec::with_capacity(rows.len() * d);
        for &row in rows {
            let end = if causal { row as usize + 1 } else { seqlen as usize };
            for j in seen..end {
                let phi = features(&k[j * d..][..d], &of_keys[j], stabiliser);
                for (f, phi) in phi.into_iter().enumerate() {
                    weights[f] += phi;
                    for e in 0..d {
                        sums[f * d + e] += phi * f64::from(v[j * d + e]);
                    }
                }
            }
            seen = end;
            let q = &q[row as usize * d..][..d];
            let own = projected(q);
            let phi = features(q, &own, largest(&own));
            let weight: f64 = (0..m).map(|f| phi[f] * weights[f]).sum();
            out.extend((0..d).map(|e| (0..m).map(|f| phi[f] * sums[f * d + e]).sum::<f64>() / weight));
        }
        out
    }
}

fn prepare(gpu: &Gpu, case: &Case) -> Result<Ready> {
    let problem = case.inputs.problem;
    let Problem { batch, num_heads, num_heads_kv, seqlen, head_dim, causal, .. } = problem;
    let tiles = Tiles::of(&problem).map_err(Failure::new)?;
    let (heads, heads_kv) = (batch * num_heads, batch * num_heads_kv);
    let m = num_features(head_dim);
    let omega = given(case, OMEGA, &[m as usize, head_dim as usize])?
        .unwrap_or_else(|| Tensor::f32(&[m as usize, head_dim as usize], orthogonal(m, head_dim, case.seed)));

    // The last feature counts 1: it sums V.
    let num_tiles = (m + 1).div_ceil(tiles.tile());
    let chunk_len = tiles.chunk_len(&problem);
    let num_chunks = seqlen.div_ceil(chunk_len);
    let state_quads = (m + 1) * tiles.columns();
    let chunks = u64::from(heads_kv) * u64::from(num_chunks);
    let state_bytes = chunks * u64::from(state_quads) * 16;
    let maxima_bytes = chunks * u64::from(num_tiles) * 4;
    let states = gpu.buffer("states", state_bytes)?;
    let maxima = gpu.buffer("maxima", maxima_bytes)?;
    let stabilisers = gpu.buffer("stabilisers", 4 * u64::from(heads_kv))?;
    let scaled = gpu.filled("omega", bytemuck::cast_slice(&turned_and_scaled(omega.f32s(), head_dim)))?;
    let o = case.output(gpu)?;

    let sizes = [("FEATURES", format!("{m}u")), ("CAUSAL", causal.to_string())];
    const COMMON: &str = include_str!("../shaders/performer_common.wgsl");
    let state = gpu.kernel(
        "performer_state",
        tiles.text(Depth::HeadDim, &sizes, &[COMMON, include_str!("../shaders/performer_state.wgsl")]),
        &[seqlen, chunk_len, num_chunks, head_dim],
        &[&case.k, &case.v, &scaled, &states, &maxima],
    )?;
    let max = gpu.kernel(
        "performer_max",
        include_str!("../shaders/performer_max.wgsl").to_owned(),
        &[num_chunks * num_tiles],
        &[&maxima, &stabilisers],
    )?;
    let constants = format!("const HEAD_DIM = {head_dim}u;\nconst FEATURES = {m}u;\nconst TILE = {}u;\n", tiles.tile());
    let scan = gpu.kernel(
        "performer_scan",
        format!("{constants}const CAUSAL = {causal};\n{}", include_str!("../shaders/performer_scan.wgsl")),
        &[num_chunks, num_tiles],
        &[&maxima, &stabilisers, &states],
    )?;
    let apply = gpu.kernel(
        "performer_apply",
        tiles.text(Depth::HeadDim, &sizes, &[COMMON, include_str!("../shaders/performer_apply.wgsl")]),
        &[seqlen, chunk_len, num_chunks, num_heads / num_heads_kv, head_dim, m],
        &[&case.q, &case.k, &case.v, &scaled, &stabilisers, &states, &o],
    )?;
    let steps = vec![
        Step::Kernel(state, [num_chunks, num_tiles, heads_kv]),
        Step::Kernel(max, [heads_kv, 1, 1]),
        Step::Kernel(scan, [(m * tiles.columns()).div_ceil(64), heads_kv, 1]),
        Step::Kernel(apply, [seqlen.div_ceil(tiles.tile()), heads, 1]),
    ];

    let [rows, rows_kv] = [heads, heads_kv].map(|heads| f64::from(heads) * f64::from(seqlen));
    let (m, d, e) = (f64::from(m), f64::from(head_dim), f64::from(head_dim) + 1.0);
    // Features of a row, and their product with V, or with S.
    let once = m * (2.0 * d + 1.0 + 2.0 * e);
    // The keys of its chunk that a causal row sees, about half of them.
    let near = if causal { f64::from(chunk_len.min(seqlen)) / 2.0 } else { 0.0 };
    let flops = rows_kv * once + rows * (once + near * 2.0 * (m + e));
    let again = if causal { 1.0 } else { 0.0 };
    let tensors = problem.tensor_bytes() as f64 + again * 2.0 * rows_kv * d * problem.element.size() as f64;
    let bytes = tensors + state_bytes as f64 * (2.0 + 2.0 * again);
    let extra_bytes = state_bytes + maxima_bytes + 4 * u64::from(heads_kv) + scaled.size();
    let state = State::from([(OMEGA.to_owned(), omega)]);
    Ok(Ready { steps, o, cost: Cost { flops, bytes, extra_bytes }, state })
}

/// m = round(d ln d), and at least 1.
pub fn num_features(head_dim: u32) -> u32 {
    (f64::from(head_dim) * f64::from(head_dim).ln()).round().max(1.0) as u32
}

/// m rows in blocks of `d`. The rows of a block are orthogonal, and uniform in direction: a Gaussian matrix, made orthogonal by
/// Gram and Schmidt, which is a QR decomposition with positive diagonal of R. (With the signs that other QR methods leave, ω
/// would be biased.) Each row is then as long as a Gaussian vector of its own.
pub fn orthogonal(m: u32, head_dim: u32, seed: u64) -> Vec<f32> {
    let draws = Draws::new(seed, "performer");
    let d = head_dim as usize;
    let [directions, lengths] = [0, 1].map(|stream| draws.normals(stream, m as usize * d, |x| x as f32));
    let wide = |row: &[f32]| -> Vec<f64> { row.iter().copied().map(f64::from).collect() };
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let mut rows: Vec<Vec<f64>> = Vec::new();
    for row in directions.chunks_exact(d) {
        let block = rows.len() / d * d;
        let mut own = wide(row);
        // Twice, so that rounding does not count.
        for other in rows[block..].iter().chain(&rows[block..]) {
            let along = dot(&own, other);
            own.iter_mut().zip(other).for_each(|(x, y)| *x -= along * y);
        }
        let length = dot(&own, &own).sqrt();
        rows.push(own.into_iter().map(|x| x / length).collect());
    }
    let lengths = lengths.chunks_exact(d).map(wide).map(|row| dot(&row, &row).sqrt());
    rows.iter().zip(lengths).flat_map(|(row, length)| row.iter().map(move |x| (x * length) as f32)).collect()
}

/// ω · d^(−1/4) as the kernels read it: `[head_dim, m rounded up to fours]`.
fn turned_and_scaled(omega: &[f32], head_dim: u32) -> Vec<f32> {
    let d = head_dim as usize;
    let m = omega.len() / d;
    let scale = f64::from(head_dim).powf(-0.25);
    let value = |i: usize, f: usize| if f < m { (f64::from(omega[f * d + i]) * scale) as f32 } else { 0.0 };
    (0..d).flat_map(|i| (0..m.next_multiple_of(4)).map(move |f| value(i, f))).collect()
}
