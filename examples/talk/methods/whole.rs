//! Exact attention, to compare with: flash (T. Dao, D. Y. Fu, S. Ermon, A. Rudra, C. Ré, "FlashAttention", NeurIPS 2022) and
//! standard, which keeps the matrix of scores in device memory. Both are the library's.
//!
//!     O = softmax(Q Kᵀ / √d) V

use wgpu_flash_attention::{Algorithm, ForwardBuffers, PreparedForward};

use super::{Cost, Method, Prepared};
use crate::case::{Case, Head, Inputs, Problem, State};
use crate::device::Gpu;
use crate::failure::Result;

pub struct Whole {
    pub algorithm: Algorithm,
}

impl Method for Whole {
    fn name(&self) -> &'static str {
        self.algorithm.name()
    }

    fn supports(&self, _: &Problem) -> std::result::Result<(), String> {
        Ok(())
    }

    fn prepare(&self, gpu: &Gpu, case: &Case) -> Result<Box<dyn Prepared>> {
        let problem = case.inputs.problem.attention().with_algorithm(self.algorithm);
        let forward = pollster::block_on(gpu.attention.prepare_forward(&problem))?;
        let lse = gpu.buffer("LSE", problem.shape.lse_len() * 4)?;
        let cost = Cost {
            flops: problem.forward_flops() as f64,
            bytes: forward.plan().traffic_bytes() as f64,
            extra_bytes: forward.plan().extra_bytes(),
        };
        let inputs = [&case.q, &case.k, &case.v].map(Clone::clone);
        Ok(Box::new(Ready { forward, inputs, o: case.output(gpu)?, lse, cost }))
    }

    fn twin(&self, inputs: &Inputs, _: &State, head: Head, rows: &[u32]) -> Vec<f64> {
        let Problem { seqlen, head_dim, causal, .. } = inputs.problem;
        let d = head_dim as usize;
        let [q, k, v] = inputs.of_head(head);
        let scale = 1.0 / f64::from(head_dim).sqrt();
        let mut out = Vec::with_capacity(rows.len() * d);
        for &row in rows {
            let seen = if causal { row as usize + 1 } else { seqlen as usize } * d;
            let q = &q[row as usize * d..][..d];
            let dot = |k: &[f32]| q.iter().zip(k).map(|(q, k)| f64::from(*q) * f64::from(*k)).sum::<f64>();
            let scores: Vec<f64> = k[..seen].chunks_exact(d).map(|k| scale * dot(k)).collect();
            let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let mut o = vec![0.0; d];
            let mut sum = 0.0;
            for (score, v) in scores.iter().zip(v.chunks_exact(d)) {
                let p = (score - largest).exp();
                sum += p;
                o.iter_mut().zip(v).for_each(|(o, v)| *o += p * f64::from(*v));
            }
            out.extend(o.into_iter().map(|o| o / sum));
        }
        out
    }
}

struct Ready {
    forward: PreparedForward,
    /// Q, K and V.
    inputs: [wgpu::Buffer; 3],
    o: wgpu::Buffer,
    lse: wgpu::Buffer,
    cost: Cost,
}

impl Prepared for Ready {
    fn encode(&self, encoder: &mut wgpu::CommandEncoder) -> Result<()> {
        let [q, k, v] = &self.inputs;
        let [q, k, v, o, lse] = [q, k, v, &self.o, &self.lse].map(|buffer| buffer.slice(..));
        Ok(self.forward.encode(encoder, &ForwardBuffers::new(q, k, v, o, lse))?)
    }

    fn output(&self) -> &wgpu::Buffer {
        &self.o
    }

    fn cost(&self) -> Cost {
        self.cost
    }
}
