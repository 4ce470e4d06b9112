//! The oracle's gradients against central finite differences of Φ = Σ dO ∘ O + Σ dLSE ∘ LSE in f64. No GPU.

use wgpu_flash_attention::reference::{Case, backward, backward_rounding_p, forward};
use wgpu_flash_attention::{AttentionLayout, AttentionProblem, AttentionShape, Element, EntryLayout, ScoreMod};

/// Distinct, irregular values in [−1, 1].
fn values(len: u64, first: usize) -> Vec<f64> {
    (first..first + len as usize).map(|n| (n as f64 * 1.618).sin()).collect()
}

struct Inputs {
    /// Q, K and V.
    tensors: [Vec<f64>; 3],
    d_o: Vec<f64>,
    d_lse: Vec<f64>,
}

fn inputs(problem: &AttentionProblem) -> Inputs {
    let shape = problem.shape;
    let layout = &problem.layout;
    let of_q = problem.total_q().map_or((shape.batch, shape.seqlen_q), |total| (1, total));
    let of_kv = problem.total_kv().map_or((shape.batch, shape.seqlen_kv), |total| (1, total));
    let len = |layout: &wgpu_flash_attention::TensorLayout, (batch, rows), heads, dim| {
        layout.required_len(batch, rows, heads, dim).unwrap()
    };
    Inputs {
        tensors: [
            values(len(&layout.q, of_q, shape.num_heads, shape.head_dim), 0),
            values(len(&layout.k, of_kv, shape.num_heads_kv, shape.head_dim), 1000),
            values(len(&layout.v, of_kv, shape.num_heads_kv, shape.head_dim_v), 2000),
        ],
        d_o: values(len(&layout.o, of_q, shape.num_heads, shape.head_dim_v), 3000),
        d_lse: values(problem.lse_len(), 4000),
    }
}

fn phi(problem: &AttentionProblem, [q, k, v]: &[Vec<f64>; 3], inputs: &Inputs, with_lse: bool) -> f64 {
    let output = forward(problem, q, k, v);
    let of_o: f64 = output.o.iter().zip(&inputs.d_o).map(|(o, d_o)| o * d_o).sum();
    let of_lse = output.lse.iter().zip(&inputs.d_lse).filter(|(lse, _)| lse.is_finite());
    of_o + if with_lse { of_lse.map(|(lse, d_lse)| lse * d_lse).sum() } else { 0.0 }
}

fn check(problem: &AttentionProblem) {
    let inputs = inputs(problem);
    let [q, k, v] = &inputs.tensors;
    for with_lse in [false, true] {
        let d_lse = with_lse.then_some(&inputs.d_lse[..]);
        let gradients = backward(problem, q, k, v, &inputs.d_o, d_lse);
        for (tensor, gradient) in [&gradients.dq, &gradients.dk, &gradients.dv].into_iter().enumerate() {
            assert_eq!(gradient.len(), inputs.tensors[tensor].len());
            for (index, found) in gradient.iter().enumerate() {
                // The error of the quotient falls with the square of the step until rounding takes over.
                const STEP: f64 = 1e-5;
                let moved = |step: f64| {
                    let mut tensors = inputs.tensors.clone();
                    tensors[tensor][index] += step;
                    phi(problem, &tensors, &inputs, with_lse)
                };
                let expected = (moved(STEP) - moved(-STEP)) / (2.0 * STEP);
                assert!(
                    (found - expected).abs() <= 1e-8,
                    "tensor {tensor} [{index}]: {found}, not {expected}; {problem:?}"
                );
            }
        }
    }
}

#[test]
fn gradients_are_those_of_finite_differences() {
    let shape = AttentionShape::new(2, 4, 5, 3).with_num_heads_kv(2).with_seqlen_kv(6).with_head_dim_v(2);
    let problem = AttentionProblem::new(shape);
    check(&problem);
    check(&problem.clone().with_causal());
    check(&problem.clone().with_causal_top_left());
    check(&problem.clone().with_window(Some(1), Some(2)).with_softmax_scale(-0.8));
    check(&problem.clone().with_dropout(0.4, 7));
    check(&problem.with_causal().with_dropout(0.2, 9).with_layout(AttentionLayout::bhsd(&shape)));
    // Rows that see nothing.
    check(&AttentionProblem::new(AttentionShape::new(1, 2, 7, 2).with_seqlen_kv(3)).with_causal());
}

#[test]
fn gradients_go_back_through_modifiers() {
    let shape = AttentionShape::new(2, 4, 5, 3).with_num_heads_kv(2).with_seqlen_kv(6).with_head_dim_v(2);
    let slopes = ScoreMod::Alibi((0..8).map(|n| 0.1 * (n as f32 - 2.0)).collect());
    let chains = [
        vec![ScoreMod::Softcap(0.7)],
        vec![ScoreMod::Softcap(0.7), slopes.clone()],
        vec![slopes, ScoreMod::Softcap(0.7)],
    ];
    for chain in chains {
        let problem = chain.into_iter().fold(AttentionProblem::new(shape), AttentionProblem::with_score);
        check(&problem);
        check(&problem.clone().with_causal_top_left().with_dropout(0.2, 9));
    }
}

/// The gradient of each head's sink, and dQ, dK and dV with one; a row that sees nothing passes its dLSE on.
#[test]
fn gradients_of_sinks_are_those_of_finite_differences() {
    let shape = AttentionShape::new(2, 4, 5, 3).with_num_heads_kv(2).with_seqlen_kv(3).with_head_dim_v(2);
    let dense = AttentionProblem::new(shape).with_sink();
    for problem in [dense.clone(), dense.clone().with_causal().with_dropout(0.4, 7), padded(dense.with_causal())] {
        let inputs = inputs(&problem);
        let [q, k, v] = &inputs.tensors;
        let sink = values(4, 5000);
        let case = Case::new(&problem, &[], &[]).with_sink(&sink);
        let gradients = backward(case, q, k, v, &inputs.d_o, Some(&inputs.d_lse));
        let phi = |tensors: &[Vec<f64>; 3], sink: &[f64]| {
            let output = forward(Case::new(&problem, &[], &[]).with_sink(sink), &tensors[0], &tensors[1], &tensors[2]);
            let of_o: f64 = output.o.iter().zip(&inputs.d_o).map(|(o, d_o)| o * d_o).sum();
            let of_lse = output.lse.iter().zip(&inputs.d_lse).filter(|(lse, _)| lse.is_finite());
            of_o + of_lse.map(|(lse, d_lse)| lse * d_lse).sum::<f64>()
        };
        const STEP: f64 = 1e-5;
        let near = |found: f64, moved: &dyn Fn(f64) -> f64, what: &str| {
            let expected = (moved(STEP) - moved(-STEP)) / (2.0 * STEP);
            assert!((found - expected).abs() <= 1e-8, "{what}: {found}, not {expected}; {problem:?}");
        };
        assert_eq!(gradients.dsink.len(), 4);
        for head in 0..4 {
            let moved = |step: f64| {
                let mut sink = sink.clone();
                sink[head] += step;
                phi(&inputs.tensors, &sink)
            };
            near(gradients.dsink[head], &moved, "dsink");
        }
        for (tensor, gradient) in [&gradients.dq, &gradients.dk, &gradients.dv].into_iter().enumerate() {
            for (index, found) in gradient.iter().enumerate() {
                let moved = |step: f64| {
                    let mut tensors = inputs.tensors.clone();
                    tensors[tensor][index] += step;
                    phi(&tensors, &sink)
                };
                near(*found, &moved, "a gradient beside a sink");
            }
        }
    }
}

/// The gradient of each entry of a bias, wherever it stands in the chain and whatever shares it.
#[test]
fn gradients_of_biases_are_those_of_finite_differences() {
    let shape = AttentionShape::new(2, 4, 5, 3).with_num_heads_kv(2).with_seqlen_kv(6).with_head_dim_v(2);
    let element = Element::F32;
    let slopes = ScoreMod::Alibi(vec![0.1, 0.2, 0.3, 0.4]);
    let mut checked = 0;
    for counts in [[2, 4, 5, 6], [1, 4, 5, 6], [2, 1, 1, 6], [1, 1, 5, 1], [1, 1, 1, 1]] {
        let layout = EntryLayout::contiguous(counts);
        let bias = ScoreMod::Bias { layout, element };
        let chains = [
            vec![bias.clone()],
            vec![ScoreMod::Softcap(0.7), bias.clone()],
            vec![slopes.clone(), bias, ScoreMod::Softcap(0.7)],
        ];
        for (chain, scores) in chains.into_iter().enumerate() {
            let problem = scores.into_iter().fold(AttentionProblem::new(shape), AttentionProblem::with_score);
            let problem = match chain {
                0 => problem.with_lengths(vec![5, 3], vec![6, 2]),
                1 => problem.with_causal().with_dropout(0.3, 4),
                _ => problem.with_sink(),
            };
            let problem = problem.with_bias_gradient();
            let inputs = inputs(&problem);
            let ([q, k, v], sink) = (&inputs.tensors, values(4, 6000));
            let bias = values(layout.required_len(&shape), 5000);
            let case = Case::new(&problem, &bias, &[]).with_sink(&sink);
            let gradients = backward(case, q, k, v, &inputs.d_o, Some(&inputs.d_lse));
            assert_eq!(gradients.dbias.len(), bias.len());
            for (entry, found) in gradients.dbias.iter().enumerate() {
                const STEP: f64 = 1e-5;
                let moved = |step: f64| {
                    let mut bias = bias.clone();
                    bias[entry] += step;
                    let output = forward(Case::new(&problem, &bias, &[]).with_sink(&sink), q, k, v);
                    let of_o: f64 = output.o.iter().zip(&inputs.d_o).map(|(o, d_o)| o * d_o).sum();
                    let of_lse = output.lse.iter().zip(&inputs.d_lse).filter(|(lse, _)| lse.is_finite());
                    of_o + of_lse.map(|(lse, d_lse)| lse * d_lse).sum::<f64>()
                };
                let expected = (moved(STEP) - moved(-STEP)) / (2.0 * STEP);
                assert!((found - expected).abs() <= 1e-8, "dbias[{entry}]: {found}, not {expected}; {problem:?}");
                checked += 1;
            }
        }
    }
    assert_eq!(checked, 3 * (240 + 120 + 12 + 5 + 1));
}

/// The second sequence has three rows and two keys.
fn padded(problem: AttentionProblem) -> AttentionProblem {
    problem.with_lengths(vec![5, 3], vec![3, 2])
}

#[test]
fn gradients_keep_to_lengths() {
    let shape = AttentionShape::new(2, 4, 5, 3).with_num_heads_kv(2).with_seqlen_kv(3).with_head_dim_v(2);
    let alibi = ScoreMod::Alibi(vec![0.1, 0.2, 0.3, 0.4]);
    for problem in [AttentionProblem::new(shape), AttentionProblem::new(shape).with_causal().with_score(alibi)] {
        let problem = padded(problem);
        check(&problem);
        let inputs = inputs(&problem);
        let [q, k, v] = &inputs.tensors;
        let gradients = backward(&problem, q, k, v, &inputs.d_o, None);
        // The third key of the second sequence: 2 heads of 3 dimensions, 2 of V.
        assert_eq!((&gradients.dk[30..], &gradients.dv[20..]), (&[0.0; 6][..], &[0.0; 4][..]));
    }
}

#[test]
fn gradients_of_packed_sequences() {
    let shape = AttentionShape::new(4, 2, 4, 3).with_num_heads_kv(1).with_seqlen_kv(6).with_head_dim_v(2);
    let packed = AttentionProblem::new(shape).with_cu_seqlens(vec![0, 4, 4, 5, 8], vec![0, 5, 7, 13, 13]);
    check(&packed.clone().with_causal());
    check(&packed.clone().with_dropout(0.4, 7));
    // With rows and keys that no sequence uses.
    check(&packed.with_lengths(vec![3, 0, 1, 2], vec![5, 1, 2, 0]));
    let rows = AttentionProblem::new(shape).with_cu_seqlens_q(vec![0, 4, 4, 5, 8]);
    check(&rows.with_causal().with_lengths(vec![4, 0, 1, 2], vec![5, 6, 2, 0]));
}

#[test]
fn gradients_of_nothing_are_zero() {
    let no_keys = AttentionProblem::new(AttentionShape::new(1, 2, 3, 4).with_seqlen_kv(0));
    let gradients = backward(&no_keys, &values(24, 0), &[], &[], &values(24, 1), None);
    assert_eq!((gradients.dq, gradients.dk.len()), (vec![0.0; 24], 0));
    let no_rows = AttentionProblem::new(AttentionShape::new(1, 2, 0, 4).with_seqlen_kv(3));
    let gradients = backward(&no_rows, &[], &values(24, 0), &values(24, 0), &[], None);
    assert_eq!((gradients.dq.len(), gradients.dk, gradients.dv), (0, vec![0.0; 24], vec![0.0; 24]));
}

/// dO, dQ, dK and dV follow the gradient layout, the others their own.
#[test]
fn gradients_have_a_layout_of_their_own() {
    let shape = AttentionShape::new(2, 2, 3, 2).with_seqlen_kv(4);
    let plain = AttentionProblem::new(shape);
    let moved = plain.clone().with_gradient_layout(AttentionLayout::bhsd(&shape));
    let inputs = inputs(&plain);
    let [q, k, v] = &inputs.tensors;
    // From [batch, row, head, 2] to [batch, head, row, 2].
    let place = |values: &[f64], rows: usize| -> Vec<f64> {
        let mut placed = vec![0.0; values.len()];
        for (n, pair) in values.chunks(2).enumerate() {
            let (head, row, batch) = (n % 2, n / 2 % rows, n / 2 / rows);
            placed[((batch * 2 + head) * rows + row) * 2..][..2].copy_from_slice(pair);
        }
        placed
    };
    let expected = backward(&plain, q, k, v, &inputs.d_o, None);
    let found = backward(&moved, q, k, v, &place(&inputs.d_o, 3), None);
    assert_eq!(found.dq, place(&expected.dq, 3));
    assert_eq!((found.dk, found.dv), (place(&expected.dk, 4), place(&expected.dv, 4)));
}

#[test]
fn rounding_p_keeps_eleven_bits() {
    // All scores are 0, so P is 1/3, in 11 bits 1365/4096, and dV is P times dO.
    let problem = AttentionProblem::new(AttentionShape::new(1, 1, 1, 2).with_seqlen_kv(3));
    let (q, k, d_o) = ([0.0; 2], values(6, 0), [1.0, -3.0]);
    let v = values(6, 10);
    let rounded = backward_rounding_p(&problem, &q, &k, &v, &d_o, None);
    assert_eq!(rounded.dv, [1.0, -3.0, 1.0, -3.0, 1.0, -3.0].map(|d_o| d_o * 1365.0 / 4096.0));
    // dS is off by half a unit in its last place at most: dQ by the sum of that over keys.
    let exact = backward(&problem, &q, &k, &v, &d_o, None);
    for dim in 0..2 {
        let allowed: f64 = (0..3).map(|key| k[2 * key + dim].abs() * 2.0 / 3.0 * 6.0 * 2f64.powi(-11)).sum();
        let error = (rounded.dq[dim] - exact.dq[dim]).abs();
        assert!(error > 0.0 && error <= allowed, "{error:e}, allowed {allowed:e}");
    }
}
