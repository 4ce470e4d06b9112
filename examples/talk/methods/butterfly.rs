//! Block-sparse FlashAttention: T. Dao, D. Fu, S. Ermon, A. Rudra, C. Ré, "FlashAttention: Fast and Memory-Efficient Exact
//! Attention with IO-Awareness", NeurIPS 2022, with the paper's butterfly (Pixelated Butterfly):
//!
//!     row block r sees key block c if r = c or r xor c is a power of two     (blocks of 64)
//!
//! Causal: and j ≤ i.

use wgpu_flash_attention::{BlockMask, KeyMask};

use super::longformer::masked;
use super::ready::Ready;
use super::sparse::{self, Attention};
use super::{Method, Prepared};
use crate::case::{Case, Head, Inputs, Problem, State};
use crate::device::Gpu;
use crate::failure::Result;

/// Rows and keys of a block.
const SIDE: usize = 64;

pub struct Butterfly;

fn sees_block(row: usize, column: usize) -> bool {
    row == column || (row ^ column).is_power_of_two()
}

impl Method for Butterfly {
    fn name(&self) -> &'static str {
        "block-sparse"
    }

    fn supports(&self, _: &Problem) -> std::result::Result<(), String> {
        Ok(())
    }

    fn prepare(&self, gpu: &Gpu, case: &Case) -> Result<Box<dyn Prepared>> {
        let problem = case.inputs.problem;
        let o = case.output(gpu)?;
        let attention = problem.attention();
        let mask = KeyMask::Blocks(BlockMask::butterfly(&attention.shape));
        let attention = attention.with_key_mask(mask);
        let part = Attention::new(gpu, &attention, [&case.q, &case.k, &case.v, &o], None)?;
        let pairs = pairs(&problem) as f64 * f64::from(problem.batch * problem.num_heads);
        Ok(Box::new(Ready::of_parts(vec![part], o, sparse::cost_of_pairs(&problem, pairs), State::new())))
    }

    fn twin(&self, inputs: &Inputs, _: &State, head: Head, rows: &[u32]) -> Vec<f64> {
        let causal = inputs.problem.causal;
        masked(inputs, head, rows, |i, j| sees_block(i / SIDE, j / SIDE) && (!causal || j <= i))
    }
}

/// (row, key) pairs of a head.
fn pairs(problem: &Problem) -> u64 {
    let n = problem.seqlen as usize;
    let len = |block: usize| SIDE.min(n - block * SIDE) as u64;
    let blocks = n.div_ceil(SIDE);
    let of_block = |row: usize, column: usize| match (problem.causal, row == column) {
        _ if !sees_block(row, column) || (problem.causal && column > row) => 0,
        (true, true) => len(row) * (len(row) + 1) / 2,
        _ => len(row) * len(column),
    };
    (0..blocks).map(|row| (0..blocks).map(|column| of_block(row, column)).sum::<u64>()).sum()
}
