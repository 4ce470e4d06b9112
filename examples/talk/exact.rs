//! Exact attention, which the errors are measured against.

use std::borrow::Cow;

use wgpu_flash_attention::reference::{self, Case};
use wgpu_flash_attention::{Element, KeyMask, MaskWgsl};

use crate::case::{Inputs, Problem};
use crate::device::Gpu;
use crate::failure::{Failure, Result};
use crate::methods::Exact;

/// To this length the f64 oracle is asked, beyond it flash attention in f32.
pub const ORACLE_TO: u32 = 2048;

/// O, exactly, laid out like Q.
pub fn output(gpu: &Gpu, inputs: &Inputs, exact: Exact) -> Result<Vec<f32>> {
    let Problem { seqlen, causal, .. } = inputs.problem;
    let mut attention = Problem { element: Element::F32, ..inputs.problem }.attention();
    // A token sees itself only if it sees nothing else.
    let lone = causal || seqlen == 1;
    let sees = |row: u32, key: u32| key != row || (lone && row == 0);
    if exact == Exact::SharedQk {
        let text = format!(
            "fn mask_mod(batch: u32, head: u32, q_idx: u32, kv_idx: u32) -> bool {{
  return kv_idx != q_idx || ({lone} && q_idx == 0u);
}}"
        );
        let mask = MaskWgsl::new(&text).map_err(Failure::new)?;
        attention = attention.with_key_mask(KeyMask::Wgsl(mask));
    }
    let k = match exact {
        Exact::Attention => Cow::Borrowed(&inputs.k),
        Exact::SharedQk => Cow::Owned(unit_rows(&inputs.q, inputs.problem.head_dim)),
    };
    if seqlen > ORACLE_TO {
        return Ok(pollster::block_on(gpu.attention.forward(&attention, &inputs.q, &k, &inputs.v))?.o);
    }
    let wide = |tensor: &[f32]| tensor.iter().copied().map(f64::from).collect::<Vec<f64>>();
    let shown = |[_, _, row, key]: [u32; 4]| sees(row, key);
    let case = Case::new(&attention, &[], &[]).with_mask_mod(&shown);
    let output = reference::forward(case, &wide(&inputs.q), &wide(&k), &wide(&inputs.v));
    Ok(output.o.into_iter().map(|value| value as f32).collect())
}

/// Each row at length 1. A row of zeros stays one.
pub fn unit_rows(rows: &[f32], head_dim: u32) -> Vec<f32> {
    let unit = |row: &[f32]| -> Vec<f32> {
        let length = row.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt().max(f64::MIN_POSITIVE);
        row.iter().map(|x| (f64::from(*x) / length) as f32).collect()
    };
    rows.chunks_exact(head_dim as usize).flat_map(unit).collect()
}

/// What the exact answer comes from.
pub fn source(problem: &Problem) -> &'static str {
    if problem.seqlen <= ORACLE_TO { "the f64 oracle" } else { "flash attention in f32" }
}
