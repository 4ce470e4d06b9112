//! Whole problems drawn at random, against the oracle. A failure prints the smallest problem that still fails and the
//! seed that drew it, and keeps the seed in `tests/gpu/property.regressions`, which later runs try first.

use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;
use wgpu_flash_attention::{Alignment, AttentionLayout, AttentionProblem, AttentionShape, Dropout, Element, Mask};

use crate::support::{check, check_gradients, gradient_inputs, inputs, limited, strided};

fn shapes() -> impl Strategy<Value = AttentionShape> {
    // Few widths: each compiles its own pipelines.
    let widths = prop_oneof![Just((8, 8)), Just((31, 20))];
    (1..=2u32, 1..=2u32, 1..=3u32, 0..=70u32, 0..=70u32, widths).prop_map(
        |(batch, num_heads_kv, heads_per_kv, seqlen_q, seqlen_kv, (head_dim, head_dim_v))| AttentionShape {
            batch,
            num_heads: num_heads_kv * heads_per_kv,
            num_heads_kv,
            seqlen_q,
            seqlen_kv,
            head_dim,
            head_dim_v,
        },
    )
}

fn masks() -> impl Strategy<Value = Mask> {
    let side = || prop_oneof![3 => Just(None), 1 => Just(Some(0)), 3 => (0..80u32).prop_map(Some), 1 => any::<u32>().prop_map(Some)];
    let alignments = prop_oneof![Just(Alignment::BottomRight), Just(Alignment::TopLeft)];
    (alignments, side(), side()).prop_map(|(alignment, window_left, window_right)| Mask {
        alignment,
        window_left,
        window_right,
    })
}

fn problems() -> impl Strategy<Value = AttentionProblem> {
    let elements = prop_oneof![Just(Element::F32), Just(Element::F16), Just(Element::Bf16)];
    let dropouts = proptest::option::of(
        (0.0..0.9, any::<u64>(), any::<u32>()).prop_map(|(dropout_p, philox_seed, philox_offset)| Dropout {
            dropout_p,
            philox_seed,
            philox_offset,
        }),
    );
    let scales = proptest::option::of(-1.0..1.0);
    let bounds = proptest::option::weighted(0.2, 1..100_000u64);
    (shapes(), masks(), elements, dropouts, scales, bounds, 0..4usize).prop_map(
        |(shape, mask, element, dropout, softmax_scale, max_flops_per_dispatch, layout)| {
            let mut problem = AttentionProblem::new(shape).element(element);
            problem.layout = match layout {
                0 => AttentionLayout::bshd(&shape),
                1 => AttentionLayout::bhsd(&shape),
                2 => strided(&shape, false),
                _ => strided(&shape, true),
            };
            problem.mask = mask;
            problem.dropout = dropout;
            problem.softmax_scale = softmax_scale;
            problem.max_flops_per_dispatch = max_flops_per_dispatch;
            problem
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 200,
        // Every step of a search for a smaller failure may compile shaders.
        max_shrink_iters: 100,
        failure_persistence: Some(Box::new(FileFailurePersistence::Direct("tests/gpu/property.regressions"))),
        ..ProptestConfig::default()
    })]

    #[test]
    fn random_problems_have_the_oracles_answers(problem in problems(), seed in any::<u64>()) {
        // Few of these pipelines are used elsewhere, so they are compiled beside those of the other tests.
        check(&limited(|_| ()), &problem, &inputs(&problem, seed));
    }

    #[test]
    fn random_problems_have_the_oracles_gradients(problem in problems(), seed in any::<u64>(), layout in 0..3usize) {
        let mut problem = problem;
        problem.gradient_layout = match layout {
            0 => None,
            1 => Some(AttentionLayout::bhsd(&problem.shape)),
            _ => Some(strided(&problem.shape, true)),
        };
        check_gradients(&limited(|_| ()), &problem, &gradient_inputs(&problem, seed));
    }
}
