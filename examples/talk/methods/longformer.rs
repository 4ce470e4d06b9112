//! Longformer: I. Beltagy, M. Peters, A. Cohan, "Longformer: The Long-Document Transformer", 2020.
//!
//!     row i sees key j if |i − j| ≤ WINDOW, or j < GLOBAL, or i < GLOBAL
//!
//! Causal: and j ≤ i. The global tokens are the first ones. (The paper gives their rows separate projections; a caller can put
//! those into Q, K and V.)
//!
//! Exact attention on a block mask. Global rows go by themselves, as attention of few rows with all keys: in a tile with other
//! rows, their loop over all keys would be the longest of all.

use wgpu_flash_attention::{BlockMask, KeyMask};

use super::ready::Ready;
use super::sparse::{self, Attention};
use super::{Method, Prepared};
use crate::case::{Case, Head, Inputs, Problem, State, Tensor, Values};
use crate::device::Gpu;
use crate::failure::Result;

/// The state: window and global, `[2]`.
const SIZES: &str = "longformer.sizes";

#[derive(Clone, Copy)]
pub struct Longformer {
    /// Keys that a row sees on each side.
    pub window: u32,
    /// Tokens that all rows see, and that see all keys.
    pub global: u32,
}

impl Default for Longformer {
    fn default() -> Self {
        Self { window: 256, global: 64 }
    }
}

impl Longformer {
    fn sees(&self, i: usize, j: usize, causal: bool) -> bool {
        let (window, global) = (self.window as usize, self.global as usize);
        (i.abs_diff(j) <= window || i.min(j) < global) && (!causal || j <= i)
    }

    /// (row, key) pairs of a head.
    fn pairs(&self, problem: &Problem) -> u64 {
        let Problem { seqlen, causal, .. } = *problem;
        let of_row = |i: u32| {
            let end = if causal { i + 1 } else { seqlen };
            if i < self.global {
                return u64::from(end);
            }
            let first = i.saturating_sub(self.window);
            let behind = end.min(i.saturating_add(self.window).saturating_add(1));
            u64::from(behind - first) + u64::from(self.global.min(first))
        };
        (0..seqlen).map(of_row).sum()
    }
}

impl Method for Longformer {
    fn name(&self) -> &'static str {
        "longformer"
    }

    fn supports(&self, _: &Problem) -> std::result::Result<(), String> {
        Ok(())
    }

    fn prepare(&self, gpu: &Gpu, case: &Case) -> Result<Box<dyn Prepared>> {
        let problem = case.inputs.problem;
        let o = case.output(gpu)?;
        let tensors = [&case.q, &case.k, &case.v, &o];
        let sizes = match sparse::given_words(case, SIZES, &[2], u32::MAX)? {
            Some(sizes) => Self { window: sizes[0], global: sizes[1] },
            None => *self,
        };
        let global = sizes.global.min(problem.seqlen);
        let mut steps = Vec::new();
        if global > 0 {
            let mut rows = sparse::some_rows(&problem, 0, global);
            if problem.causal {
                // No row sees a key behind them.
                rows.shape.seqlen_kv = global;
                rows = rows.with_causal();
            }
            steps.push(Attention::of_few_rows(gpu, &rows, tensors)?);
        }
        if global < problem.seqlen {
            // The last row meets the last key, as the mask and causal have it.
            let mask = KeyMask::Blocks(BlockMask::longformer(sizes.window, sizes.global));
            let rows = sparse::some_rows(&problem, global, problem.seqlen - global).with_key_mask(mask);
            let rows = if problem.causal { rows.with_causal() } else { rows };
            steps.push(Attention::new(gpu, &rows, tensors, None)?);
        }
        let pairs = sizes.pairs(&problem) as f64 * f64::from(problem.batch * problem.num_heads);
        let tensor = Tensor { dims: vec![2], values: Values::U32(vec![sizes.window, sizes.global]) };
        let state = State::from([(SIZES.to_owned(), tensor)]);
        Ok(Box::new(Ready::of_parts(steps, o, sparse::cost_of_pairs(&problem, pairs), state)))
    }

    fn twin(&self, inputs: &Inputs, state: &State, head: Head, rows: &[u32]) -> Vec<f64> {
        let sizes = state[SIZES].u32s();
        let sizes = Self { window: sizes[0], global: sizes[1] };
        masked(inputs, head, rows, |i, j| sizes.sees(i, j, inputs.problem.causal))
    }
}

/// The twin of a mask: exact attention over the keys that each row sees.
pub fn masked(inputs: &Inputs, head: Head, rows: &[u32], sees: impl Fn(usize, usize) -> bool) -> Vec<f64> {
    let d = inputs.problem.head_dim as usize;
    let [q, k, v] = inputs.of_head(head);
    let attend = |i: usize| {
        let keys = (0..inputs.problem.seqlen as usize).filter(|j| sees(i, *j));
        sparse::attend(&sparse::row(q, i, d), |j| sparse::row(k, j, d), |j| sparse::row(v, j, d), keys).0
    };
    rows.iter().flat_map(|i| attend(*i as usize)).collect()
}
