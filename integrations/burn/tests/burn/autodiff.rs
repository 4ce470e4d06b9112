//! Gradients against the oracle in f64, and beside Burn's own of naive attention. (The library's tests hold the oracle to finite
//! differences.)

use burn::tensor::{DType, Tensor};
use wgpu_flash_attention::{AttentionProblem, Dropout, ScoreWgsl};
use wgpu_flash_attention_burn::{AttentionOptions, AttentionOutput, Error, ScoreMod, attention};

use crate::support::{Naive, Oracle, causal, device, naive, normal, of_values, ours, tensor, values};

const SHAPES: [[usize; 4]; 3] = [[2, 4, 20, 32], [2, 2, 33, 32], [2, 2, 33, 24]];

/// Q, K, V and a bias that require gradients.
fn leaves(dtype: DType) -> [Tensor<4>; 4] {
    let device = device().autodiff();
    [SHAPES[0], SHAPES[1], SHAPES[2], [1, 4, 20, 33]]
        .map(|shape| tensor(shape, shape[2] as u64 + shape[3] as u64, dtype, &device).require_grad())
}

/// (`detach` keeps what a leaf requires.)
fn without_gradient(tensor: Tensor<4>) -> Tensor<4> {
    tensor.set_require_grad(false)
}

/// The gradients of O and of LSE in [`loss`].
fn weights(output: &AttentionOutput) -> (Tensor<4>, Tensor<3>) {
    let device = output.o.device();
    let (of_o, of_lse) = (output.o.dtype(), output.lse.dtype());
    (tensor(output.o.dims(), 77, of_o, &device), tensor(output.lse.dims(), 78, of_lse, &device))
}

/// A loss of O, of LSE, or of both.
fn loss(output: AttentionOutput, [of_o, of_lse]: [bool; 2]) -> Tensor<1> {
    let (d_o, d_lse) = weights(&output);
    let mut loss = Tensor::<1>::zeros([1], &output.o.device());
    if of_o {
        loss = loss + (output.o * d_o).cast(DType::F32).sum();
    }
    if of_lse {
        loss = loss + (output.lse * d_lse).cast(DType::F32).sum();
    }
    loss
}

fn check(dtype: DType, of: [bool; 2]) {
    let device = device().autodiff();
    let leaves = leaves(dtype);
    let [q, k, v, bias] = &leaves;
    let gradients_of = |output: AttentionOutput| {
        let gradients = loss(output, of).backward();
        leaves.each_ref().map(|leaf| values(leaf.grad(&gradients).expect("it requires a gradient")))
    };
    let output = ours(q, k, v, &AttentionOptions::new().with_causal().with_bias(bias.clone()));
    let (d_o, d_lse) = weights(&output);
    let oracle = Oracle::new([q, k, v]).with_bias(bias).with(AttentionProblem::with_causal);
    let exact = oracle.backward(&output.o, &(d_o * f32::from(u8::from(of[0]))), of[1].then_some(&d_lse));
    let found = gradients_of(output);
    let seen = Some(causal(20, 33, &device));
    let modified = Naive { bias: Some(bias.clone()), seen, softcap: None };
    let by_burn = gradients_of(naive(q.clone(), k.clone(), v.clone(), &modified));
    for (index, name) in ["dQ", "dK", "dV", "dBias"].into_iter().enumerate() {
        exact[index].expect_beside(&format!("{name} in {dtype:?} of {of:?}"), &found[index], &by_burn[index], 3.0);
    }
}

#[test]
fn of_o() {
    check(DType::F32, [true, false]);
    check(DType::F16, [true, false]);
}

#[test]
fn of_o_and_lse() {
    check(DType::F32, [true, true]);
}

/// LSE alone, without a gradient of O.
#[test]
fn of_lse() {
    let [q, k, v, _] = leaves(DType::F32);
    let output = ours(&q, &k, &v, &AttentionOptions::new());
    let (d_o, d_lse) = weights(&output);
    let exact = Oracle::new([&q, &k, &v]).backward(&output.o, &d_o.zeros_like(), Some(&d_lse));
    let gradients = loss(output, [false, true]).backward();
    for (leaf, exact) in [q, k, v].iter().zip(&exact) {
        exact.expect("a gradient of LSE", &values(leaf.grad(&gradients).expect("it requires a gradient")));
    }
}

#[test]
fn of_a_sink() {
    let device = device().autodiff();
    let [q, k, v] = SHAPES.map(|shape| tensor(shape, shape[3] as u64, DType::F32, &device));
    let sink: Tensor<1> = tensor([4], 3, DType::F32, &device).require_grad();
    let output = ours(&q, &k, &v, &AttentionOptions::new().with_sink(sink.clone()));
    let (d_o, d_lse) = weights(&output);
    let [.., exact] = Oracle::new([&q, &k, &v]).with_sink(&sink).backward(&output.o, &d_o, Some(&d_lse));
    let gradients = loss(output, [true, true]).backward();
    exact.expect("dsink", &values(sink.grad(&gradients).expect("it requires a gradient")));
}

/// A bias and a sink at once, with a gradient for the sink alone.
#[test]
fn of_a_sink_beside_a_bias() {
    let [q, k, v, bias] = leaves(DType::F32).map(without_gradient);
    let sink: Tensor<1> = tensor([4], 3, DType::F32, &device().autodiff()).require_grad();
    let output = ours(&q, &k, &v, &AttentionOptions::new().with_bias(bias.clone()).with_sink(sink.clone()));
    let (d_o, d_lse) = weights(&output);
    let oracle = Oracle::new([&q, &k, &v]).with_bias(&bias).with_sink(&sink);
    let [.., exact] = oracle.backward(&output.o, &d_o, Some(&d_lse));
    let gradients = loss(output, [true, true]).backward();
    exact.expect("dsink", &values(sink.grad(&gradients).expect("it requires a gradient")));
    assert!(bias.grad(&gradients).is_none() && q.grad(&gradients).is_none());
}

/// The oracle drops the same probabilities for the same seed.
#[test]
fn with_dropout() {
    let [q, k, v, _] = leaves(DType::F32);
    let options = |seed| AttentionOptions::new().with_causal().with_dropout(0.3, seed, 7);
    let output = ours(&q, &k, &v, &options(42));
    let o = values(output.o.clone());
    assert_eq!(o, values(ours(&q, &k, &v, &options(42)).o));
    assert_ne!(o, values(ours(&q, &k, &v, &options(43)).o));
    let oracle = Oracle::new([&q, &k, &v]).with(|mut problem| {
        problem.dropout = Some(Dropout::new(0.3, 42).with_philox_offset(7));
        problem.with_causal()
    });
    let (d_o, d_lse) = weights(&output);
    let exact = oracle.backward(&output.o, &d_o, Some(&d_lse));
    let gradients = loss(output, [true, true]).backward();
    for (leaf, exact) in [q, k, v].iter().zip(&exact) {
        exact.expect("a gradient with dropout", &values(leaf.grad(&gradients).expect("it requires a gradient")));
    }
}

/// The same without an oracle of gradients: a seed drops the same probabilities at all points near Q, K and V, so that the loss
/// has a slope, and the gradient is that slope in every direction.
#[test]
fn with_dropout_by_differences() {
    const STEP: f32 = 0.0625;
    let device = device().autodiff();
    let shapes = [[1, 2, 9, 16], [1, 1, 12, 16], [1, 1, 12, 8]];
    // Multiples of 2^-8: what a step adds to them is not rounded.
    let numbers = |shape: [usize; 4], seed| -> Vec<f32> {
        normal(shape.iter().product(), seed).iter().map(|number| (number * 256.0).round() / 256.0).collect()
    };
    let options = AttentionOptions::new().with_causal().with_dropout(0.3, 42, 7);
    let oracle = |[q, k, v]: [&Tensor<4>; 3]| {
        Oracle::new([q, k, v]).with(|mut problem| {
            problem.dropout = Some(Dropout::new(0.3, 42).with_philox_offset(7));
            problem.with_causal()
        })
    };
    let at: [Vec<f32>; 3] = [0, 1, 2].map(|index| numbers(shapes[index], index as u64));
    let leaves = [0, 1, 2].map(|index| of_values(shapes[index], at[index].clone(), &device).require_grad());
    let output = ours(&leaves[0], &leaves[1], &leaves[2], &options);
    let (d_o, d_lse) = weights(&output);
    let exact = oracle(leaves.each_ref()).backward(&output.o, &d_o, Some(&d_lse));
    let gradients = loss(output, [true, true]).backward();
    let (d_o, d_lse) = (values(d_o), values(d_lse));

    for (moved, name) in ["dQ", "dK", "dV"].into_iter().enumerate() {
        let gradient = values(leaves[moved].grad(&gradients).expect("it requires a gradient"));
        let size = gradient.iter().map(|number| f64::from(*number).powi(2)).sum::<f64>().sqrt();
        for seed in 10..14 {
            let direction = numbers(shapes[moved], seed);
            // The loss when one input goes so many steps, and how far rounding may take it.
            let loss = |steps: f32| {
                let mut point = at.clone();
                for (number, along) in point[moved].iter_mut().zip(&direction) {
                    *number += steps * STEP * along;
                }
                let [q, k, v] = [0, 1, 2].map(|index| of_values(shapes[index], point[index].clone(), &device));
                let output = ours(&q, &k, &v, &options);
                let [of_o, of_lse] = oracle([&q, &k, &v]).forward();
                let sum = weighted(&d_o, &values(output.o)) + weighted(&d_lse, &values(output.lse));
                (sum, of_o.bound_of_sum(&d_o) + of_lse.bound_of_sum(&d_lse))
            };
            let difference = |steps: f32| {
                let ((ahead, of_ahead), (behind, of_behind)) = (loss(steps), loss(-steps));
                let width = 2.0 * f64::from(steps * STEP);
                ((ahead - behind) / width, (of_ahead + of_behind) / width)
            };
            // Richardson: (4 D(h) - D(2h)) / 3 has no error of the order h², and a sixteenth of that of twice the step. So its
            // error is a fifteenth of their difference, and terms of a higher order. Here all of the difference is allowed.
            let [(near, of_near), (middle, of_middle), (far, of_far)] = [1.0, 2.0, 4.0].map(difference);
            let (slope, coarse) = ((4.0 * near - middle) / 3.0, (4.0 * middle - far) / 3.0);
            let rounding = (4.0 * of_near + 5.0 * of_middle + of_far) / 3.0 + exact[moved].bound_of_sum(&direction);
            let tolerance = (slope - coarse).abs() + rounding;
            let along = weighted(&direction, &gradient);
            eprintln!("{name}: {along:.5} along direction {seed}, by differences {slope:.5} within {tolerance:.1e}");
            assert!(
                (along - slope).abs() <= tolerance,
                "{name} gives {along}, differences {slope}: over {tolerance:e}"
            );
            // In a direction of a normal distribution, a gradient of this size has a slope of about this size.
            assert!(tolerance < 0.05 * size, "{name}: a tolerance of {tolerance:e} proves nothing beside {size:e}");
        }
    }
}

/// The sum of products, in f64.
fn weighted(weights: &[f32], values: &[f32]) -> f64 {
    assert_eq!(weights.len(), values.len());
    weights.iter().zip(values).map(|(weight, value)| f64::from(*weight) * f64::from(*value)).sum()
}

/// A gradient that cannot be had is refused where attention is called, not in the backward pass. Without one, the call is sound.
#[test]
fn that_cannot_be_had() {
    let text =
        "fn score_mod(score: f32, batch: u32, head: u32, q_idx: u32, kv_idx: u32) -> f32 { return score * 0.5; }";
    let score_mod = ScoreMod::Wgsl(ScoreWgsl::new(text).expect("the text is sound"));
    let options = AttentionOptions::new().with_score(score_mod);
    let [q, k, v, _] = leaves(DType::F32);
    let refused = attention(q.clone(), k.clone(), v.clone(), &options).unwrap_err();
    assert!(matches!(&refused, Error::Attention(_)) && refused.to_string().contains("score_mod_grad"), "{refused}");
    // What depends on a tensor with a gradient asks for one, too.
    let depends = k.clone() * v.mean().reshape([1, 1, 1, 1]);
    let [q, k, v] = [q, k, depends.clone()].map(without_gradient);
    attention(q.clone(), depends, k.clone(), &options).unwrap_err();
    ours(&q, &k, &v, &options);
}

/// Gradients reach what requires them, and nothing else is asked for them.
#[test]
fn of_some_inputs() {
    let device = device().autodiff();
    let [q, k, v] = SHAPES.map(|shape| tensor(shape, 1, DType::F32, &device));
    let k = k.require_grad();
    let gradients = ours(&q, &k, &v, &AttentionOptions::new()).o.sum().backward();
    assert!(q.grad(&gradients).is_none());
    assert_eq!(k.grad(&gradients).expect("it requires a gradient").dims(), SHAPES[1]);
    let untracked = attention(q.clone(), q.clone(), q, &AttentionOptions::new()).unwrap();
    assert_eq!(untracked.o.dims(), SHAPES[0]);
}
