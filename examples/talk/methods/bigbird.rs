//! BigBird: M. Zaheer et al., "Big Bird: Transformers for Longer Sequences", NeurIPS 2020, its block form (ITC).
//!
//!     row block r sees key block c if |r − c| ≤ 1, or r or c is the first or the last, or c is one of three drawn for (head, r)
//!
//! on blocks of 64. Draws are those of `BlockMask::bigbird`. With fewer than six blocks everything is seen. Not causal.
//!
//! Exact attention on blocks. The first and the last row of blocks see all keys and go by themselves: their loops are the longest.

use wgpu_flash_attention::reference::philox4x32_10;
use wgpu_flash_attention::{BlockKind, BlockMask, KeyMask};

use super::longformer::masked;
use super::ready::Ready;
use super::sparse::{self, Attention};
use super::{Method, Prepared};
use crate::case::{Case, Head, Inputs, Problem, State, Tensor, Values};
use crate::device::Gpu;
use crate::failure::Result;

/// Rows and keys of a block.
const SIDE: u32 = 64;

/// Blocks that are drawn for each row of blocks.
const DRAWN: usize = 3;

/// The state: `[num_heads, rows of blocks, 3]`.
const BLOCKS: &str = "bigbird.blocks";

pub struct BigBird;

impl Method for BigBird {
    fn name(&self) -> &'static str {
        "bigbird"
    }

    fn supports(&self, problem: &Problem) -> std::result::Result<(), String> {
        if problem.causal {
            return Err("is not defined for causal attention".to_owned());
        }
        sparse::takes_blocks(problem.num_heads, problem.seqlen.div_ceil(SIDE))
    }

    fn prepare(&self, gpu: &Gpu, case: &Case) -> Result<Box<dyn Prepared>> {
        let problem = case.inputs.problem;
        let Problem { num_heads, seqlen, .. } = problem;
        let o = case.output(gpu)?;
        let tensors = [&case.q, &case.k, &case.v, &o];
        let blocks = seqlen.div_ceil(SIDE);
        let drawn = match sparse::given_words(case, BLOCKS, &dims(&problem), blocks)? {
            Some(drawn) => drawn.to_vec(),
            None => drawn_blocks(case.seed, num_heads, blocks),
        };
        let mut parts = Vec::new();
        if blocks < 6 {
            parts.push(Attention::new(gpu, &problem.attention(), tensors, None)?);
        } else {
            let last = (blocks - 1) * SIDE;
            for (first, count) in [(0, SIDE), (last, seqlen - last)] {
                parts.push(Attention::of_few_rows(gpu, &sparse::some_rows(&problem, first, count), tensors)?);
            }
            let rows = sparse::some_rows(&problem, SIDE, last - SIDE);
            let kinds: Vec<BlockKind> = (0..num_heads)
                .flat_map(|head| (1..blocks - 1).map(move |row| (head, row)))
                .flat_map(|(head, row)| seen_by(&drawn, head, row, blocks))
                .map(|seen| if seen { BlockKind::Partial } else { BlockKind::Absent })
                .collect();
            let mask = BlockMask::new([1, num_heads, blocks - 2, blocks], [SIDE; 2], &kinds);
            parts.push(Attention::new(gpu, &rows.with_key_mask(KeyMask::Blocks(mask)), tensors, None)?);
        }
        let pairs = pairs(&problem, &drawn, blocks);
        let dims = dims(&problem).iter().map(|dim| *dim as usize).collect();
        let state = State::from([(BLOCKS.to_owned(), Tensor { dims, values: Values::U32(drawn) })]);
        Ok(Box::new(Ready::of_parts(parts, o, sparse::cost_of_pairs(&problem, pairs), state)))
    }

    fn twin(&self, inputs: &Inputs, state: &State, head: Head, rows: &[u32]) -> Vec<f64> {
        let blocks = inputs.problem.seqlen.div_ceil(SIDE);
        let drawn = state[BLOCKS].u32s();
        let seen: Vec<Vec<bool>> = (0..blocks).map(|row| seen_by(drawn, head.head, row, blocks)).collect();
        masked(inputs, head, rows, |i, j| seen[i / SIDE as usize][j / SIDE as usize])
    }
}

/// `[num_heads, rows of blocks, 3]`
fn dims(problem: &Problem) -> [u32; 3] {
    [problem.num_heads, problem.seqlen.div_ceil(SIDE), DRAWN as u32]
}

/// Three columns for each head and row of blocks, other than those that are seen anyway. Where fewer are left, the row's own
/// column stands in.
fn drawn_blocks(seed: u64, num_heads: u32, blocks: u32) -> Vec<u32> {
    let mut drawn = Vec::new();
    for (head, row) in (0..num_heads).flat_map(|head| (0..blocks).map(move |row| (head, row))) {
        let is_seen = |column: u32| column.abs_diff(row) <= 1 || column == 0 || column + 1 == blocks;
        let mut left: Vec<u32> = (0..blocks).filter(|column| !is_seen(*column)).collect();
        for word in philox4x32_10([seed as u32, (seed >> 32) as u32], [row, head, 0, 0]).into_iter().take(DRAWN) {
            let pick = (u64::from(word) * left.len() as u64) >> 32;
            drawn.push(if left.is_empty() { row } else { left.remove(pick as usize) });
        }
    }
    drawn
}

/// Which columns a row of blocks sees.
fn seen_by(drawn: &[u32], head: u32, row: u32, blocks: u32) -> Vec<bool> {
    let at = (head * blocks + row) as usize * DRAWN;
    let drawn = &drawn[at..at + DRAWN];
    let is_end = |block: u32| block == 0 || block + 1 == blocks;
    let is_seen = |column: u32| column.abs_diff(row) <= 1 || is_end(column) || drawn.contains(&column);
    (0..blocks).map(|column| blocks < 6 || is_end(row) || is_seen(column)).collect()
}

/// (row, key) pairs of all heads and sequences.
fn pairs(problem: &Problem, drawn: &[u32], blocks: u32) -> f64 {
    let len = |block: u32| u64::from(SIDE.min(problem.seqlen - block * SIDE));
    let of_row = |head: u32, row: u32| {
        let seen = seen_by(drawn, head, row, blocks);
        len(row) * (0..blocks).filter(|column| seen[*column as usize]).map(len).sum::<u64>()
    };
    let heads = 0..problem.num_heads;
    let of_all: u64 = heads.map(|head| (0..blocks).map(|row| of_row(head, row)).sum::<u64>()).sum();
    of_all as f64 * f64::from(problem.batch)
}
