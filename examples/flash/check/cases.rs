//! The grid of problems, without element and algorithm.

use wgpu_flash_attention::{
    AttentionLayout, AttentionProblem, AttentionShape, BlockMask, Element, EntryLayout, KeyMask, ScoreMod, alibi_slopes,
};

use super::caches::Cached;
use crate::arguments::CacheChoice;

/// One problem and the options it stands for.
pub struct Case {
    pub group: &'static str,
    pub problem: AttentionProblem,
    /// Whether only f32 is worth the compilation of its shaders in a quick check.
    pub f32_only: bool,
    /// Whether its gradients are left out: they take longer loops than some drivers allow.
    pub forward_only: bool,
    /// Where K and V are in a cache.
    pub cached: Option<Cached>,
}

/// Every case, grouped. `quick` keeps what differs in kind. Software drivers are asked for long rows too: some end long loops
/// without a word.
pub fn cases(quick: bool, is_software: bool) -> Vec<Case> {
    let mut cases = Vec::new();
    // Most of a quick check on a software driver is compilation, and each head_dim compiles anew.
    let mut add = |group, problem: AttentionProblem| {
        let f32_only = quick && ![31, 64].contains(&problem.shape.head_dim);
        let forward_only = problem.shape.seqlen_kv > 50_000;
        cases.push(Case { group, problem, f32_only, forward_only, cached: None });
    };
    let shape = |batch, heads, q, kv, dim| AttentionShape::new(batch, heads, q, dim).with_seqlen_kv(kv);
    let new = AttentionProblem::new;

    let pairs: &[(u32, u32)] = if quick {
        &[(1, 1), (113, 203), (1, 1024)]
    } else {
        &[(1, 1), (1, 1024), (113, 203), (128, 217), (64, 64), (63, 65), (129, 31), (256, 300), (300, 1)]
    };
    for &(q, kv) in pairs {
        add("lengths", new(shape(1, 2, q, kv, 64)));
    }

    let dims: &[u32] = if quick { &[1, 31, 40, 128, 256] } else { &[1, 3, 31, 40, 59, 64, 80, 128, 160, 256] };
    for &dim in dims {
        add("head_dim", new(shape(1, 1, 70, 93, dim)));
    }
    add("head_dim_v", new(shape(1, 2, 50, 77, 40).with_head_dim_v(59)));
    if !quick {
        add("head_dim_v", new(shape(1, 2, 50, 77, 128).with_head_dim_v(8)));
        add("head_dim_v", new(shape(1, 2, 50, 77, 8).with_head_dim_v(256)));
    }

    let pairs: &[(u32, u32)] = if quick { &[(113, 203)] } else { &[(113, 203), (128, 128), (203, 210), (1, 70)] };
    for &(q, kv) in pairs {
        add("causal", new(shape(1, 2, q, kv, 64)).with_causal());
        add("causal top-left", new(shape(1, 2, q, kv, 64)).with_causal_top_left());
        add("causal top-left", new(shape(1, 2, kv, q, 64)).with_causal_top_left());
    }
    for (left, right) in [(Some(30), Some(17)), (None, Some(8)), (Some(0), Some(0)), (Some(64), None)] {
        add("window", new(shape(1, 2, 113, 203, 64)).with_window(left, right));
        if !quick {
            add("window", new(shape(1, 2, 203, 113, 64)).with_window(left, right));
            add("window", new(shape(1, 2, 113, 203, 64)).with_causal_top_left().with_window(left, right));
        }
    }
    add("window", new(shape(1, 1, 150, 150, 64)).with_causal().with_window(Some(40), None));

    add("rows that see nothing", new(shape(1, 2, 203, 113, 64)).with_causal());
    add("rows that see nothing", new(shape(1, 2, 70, 0, 64)));
    add("rows that see nothing", new(shape(1, 2, 90, 30, 64)).with_causal_top_left().with_window(Some(10), None));

    for (heads, heads_kv) in [(6, 2), (6, 1)] {
        add("grouped heads", new(shape(3, heads, 65, 97, 64).with_num_heads_kv(heads_kv)));
        add("grouped heads", new(shape(2, heads, 65, 97, 64).with_num_heads_kv(heads_kv)).with_causal());
    }

    add("dropout", new(shape(2, 2, 113, 203, 64)).with_dropout(0.2, 0x0123_4567_89ab_cdef));
    add("dropout", new(shape(1, 2, 130, 130, 64)).with_causal().with_dropout(0.5, 7));
    if !quick {
        add("dropout", new(shape(1, 2, 130, 141, 59)).with_dropout(0.0, 7));
        add("dropout", new(shape(1, 2, 130, 141, 59)).with_causal().with_dropout(0.9, u64::MAX));
    }

    add("softcap", new(shape(2, 2, 113, 203, 64)).with_score(ScoreMod::Softcap(2.0)));
    let alibi = |heads| ScoreMod::Alibi(alibi_slopes(heads));
    add("alibi", new(shape(2, 6, 113, 203, 64).with_num_heads_kv(2)).with_causal().with_score(alibi(6)));
    if !quick {
        let both = new(shape(1, 2, 130, 141, 59)).with_score(ScoreMod::Softcap(5.0)).with_score(alibi(2));
        add("softcap and alibi", both.with_causal().with_dropout(0.2, 7));
    }

    let bias = |counts| ScoreMod::Bias { layout: EntryLayout::contiguous(counts), element: Element::F32 };
    add("bias", new(shape(2, 4, 113, 203, 64).with_num_heads_kv(2)).with_score(bias([1, 4, 113, 203])));
    let shared = new(shape(2, 4, 70, 93, 64).with_num_heads_kv(2)).with_score(bias([1, 4, 70, 93]));
    add("bias gradient", shared.with_causal().with_bias_gradient());
    let mask = |counts| KeyMask::Boolean(EntryLayout::packed_bits(counts));
    add("boolean mask", new(shape(2, 2, 150, 141, 64)).with_causal().with_key_mask(mask([2, 1, 150, 141])));
    if !quick {
        add("bias", new(shape(2, 2, 70, 93, 59)).with_causal().with_dropout(0.2, 7).with_score(bias([2, 1, 1, 93])));
        add("boolean mask", new(shape(2, 2, 70, 93, 59)).with_dropout(0.2, 7).with_key_mask(mask([2, 2, 70, 1])));
    }

    let blocks = |problem: AttentionProblem, mask| problem.with_key_mask(KeyMask::Blocks(mask));
    add("block mask", blocks(new(shape(2, 4, 113, 203, 64).with_num_heads_kv(2)), BlockMask::longformer(17, 9)));
    add("block mask", blocks(new(shape(1, 2, 150, 141, 64)).with_causal(), BlockMask::strided(29)));
    if !quick {
        let wide = shape(1, 2, 450, 460, 32);
        add("block mask", blocks(new(wide).with_dropout(0.2, 7), BlockMask::bigbird(&wide, 3)));
        let ids: Vec<u32> = (0..2 * 203).map(|key| key / 37).collect();
        add("block mask", blocks(new(shape(2, 2, 113, 203, 59)).with_causal(), BlockMask::documents(2, &ids)));
    }

    let padded = new(shape(3, 4, 113, 203, 64).with_num_heads_kv(2)).with_causal();
    add("lengths", padded.with_lengths(vec![113, 70, 0], vec![203, 64, 99]));
    let sums = |lengths: [u32; 3]| vec![0, lengths[0], lengths[0] + lengths[1], lengths.iter().sum()];
    let ragged =
        new(shape(3, 4, 113, 203, 64).with_num_heads_kv(2)).with_cu_seqlens(sums([113, 0, 70]), sums([203, 9, 64]));
    add("packed", ragged.clone());
    add("packed", ragged.with_causal().with_dropout(0.2, 7));
    if !quick {
        let decode = new(shape(3, 6, 3, 300, 59).with_num_heads_kv(2)).with_causal().with_sink();
        add("packed", decode.with_cu_seqlens(sums([1, 3, 2]), sums([300, 7, 41])));
    }
    add("sink", new(shape(2, 4, 113, 203, 64).with_num_heads_kv(2)).with_causal().with_sink());

    for dim in if quick { &[64][..] } else { &[64, 59, 32] } {
        let shape = shape(2, 3, 70, 70, *dim).with_num_heads_kv(1);
        add("layouts", new(shape).with_layout(AttentionLayout::bhsd(&shape)));
        add("layouts", new(shape).with_layout(AttentionLayout::packed_qkv(&shape)).with_causal());
    }
    add("scale", new(shape(1, 2, 70, 93, 64)).with_softmax_scale(0.5));
    add("scale", new(shape(1, 2, 70, 93, 64)).with_softmax_scale(-0.1));

    if is_software || !quick {
        add("long rows", new(shape(1, 1, 64, 8_192, 64)));
        add("long rows", new(shape(1, 1, 256, 70_000, 16)));
        add("long rows", new(shape(1, 8, 512, 64, 64).with_num_heads_kv(1)));
    }

    let few = shape(3, 6, 1, 200, 64).with_num_heads_kv(2);
    let many = AttentionShape { seqlen_q: 40, head_dim_v: 24, ..few };
    for choice in [CacheChoice::Contiguous, CacheChoice::Paged(16), CacheChoice::Int8] {
        for shape in [few, many, AttentionShape { head_dim: 59, ..few }].into_iter().take(if quick { 2 } else { 3 }) {
            cases.push(Case {
                group: "KV cache",
                problem: new(shape).with_causal().with_sink(),
                f32_only: false,
                forward_only: true,
                cached: Some(Cached { choice, lengths: vec![200, 0, 77] }),
            });
        }
    }
    cases
}
