//! Packed sequences: one behind the other, without padding.

use wgpu_flash_attention::{
    AttentionProblem, AttentionShape, BlockMask, Element, EntryLayout, KeyMask, ScoreMod,
};

use crate::support::{Library, Variant, check_both, library, run, with_matrices};

/// Nothing, one row, many, more rows than keys, no rows, no keys.
const CU_SEQLENS_Q: [u32; 7] = [0, 0, 1, 131, 181, 181, 188];
const CU_SEQLENS_KV: [u32; 7] = [0, 5, 6, 151, 160, 200, 200];

fn shape() -> AttentionShape {
    AttentionShape::new(6, 4, 130, 8).with_num_heads_kv(2).with_seqlen_kv(145)
}

fn packed(problem: AttentionProblem) -> AttentionProblem {
    problem.with_cu_seqlens(CU_SEQLENS_Q.to_vec(), CU_SEQLENS_KV.to_vec())
}

#[test]
fn every_element_and_mask() {
    for &element in Element::ALL {
        let problem = packed(AttentionProblem::new(shape()).with_element(element));
        check_both(library(Variant::Full), &problem, 1);
        check_both(library(Variant::Full), &problem.clone().with_causal(), 2);
    }
}
