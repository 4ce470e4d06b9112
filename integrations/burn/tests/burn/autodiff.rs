//! Gradients against Burn's own of naive attention, and with dropout against finite differences.

use burn::tensor::{DType, Tensor};
use wgpu_flash_attention_burn::{AttentionOptions, AttentionOutput, attention};

use crate::support::{Naive, causal, close, device, naive, ours, tensor, values};

const SHAPES: [[usize; 4]; 3] = [[2, 4, 20, 32], [2, 2, 33, 32], [2, 2, 33, 24]];

/// Q, K, V and a bias that require gradients, all from the same numbers.
fn leaves(dtype: DType, exact: bool) -> [Tensor<4>; 4] {
    let device = device().autodiff();
    [SHAPES[0], SHAPES[1], SHAPES[2], [1, 4, 20, 33]].map(|shape| {
        let numbers = tensor(shape, shape[2] as u64 + shape[3] as u64, dtype, &device);
        let numbers = if exact { numbers.cast(DType::F32) } else { numbers };
        numbers.detach().require_grad()
    })
}

/// A loss of O, of LSE, or of both.
fn loss(output: AttentionOutput, of_o: bool, of_lse: bool) -> Tensor<1> {
    let device = output.o.device();
    let mut loss = Tensor::<1>::zeros([1], &device);
    if of_o {
        let weights: Tensor<4> = tensor(output.o.dims(), 77, output.o.dtype(), &device);
        loss = loss + (output.o * weights.detach()).cast(DType::F32).sum();
    }
    if of_lse {
        let weights: Tensor<3> = tensor(output.lse.dims(), 78, output.lse.dtype(), &device);
        loss = loss + (output.lse * weights.detach()).cast(DType::F32).sum();
    }
    loss
}

fn gradients(
    leaves: &[Tensor<4>; 4],
    run: impl Fn(&[Tensor<4>; 4]) -> AttentionOutput,
    [of_o, of_lse]: [bool; 2],
) -> [Vec<f32>; 4] {
    let gradients = loss(run(leaves), of_o, of_lse).backward();
    leaves.each_ref().map(|leaf| values(leaf.grad(&gradients).expect("it requires a gradient")))
}

fn check(dtype: DType, of: [bool; 2]) {
    let device = device().autodiff();
    let with_ours = |[q, k, v, bias]: &[Tensor<4>; 4]| {
        ours(q, k, v, &AttentionOptions::new().with_causal().with_bias(bias.clone()))
    };
    let by_burn = |[q, k, v, bias]: &[Tensor<4>; 4]| {
        let seen = Some(causal(20, 33, &device));
        naive(q.clone(), k.clone(), v.clone(), &Naive { bias: Some(bias.clone()), seen, softcap: None })
    };
    let found = gradients(&leaves(dtype, false), with_ours, of);
    let same_type = gradients(&leaves(dtype, false), by_burn, of);
    let exact = gradients(&leaves(dtype, true), by_burn, of);
    for (index, name) in ["dQ", "dK", "dV", "dBias"].into_iter().enumerate() {
        // A loss of LSE alone has no gradient in V: Burn gives none.
        close(&format!("{name} in {dtype:?} of {of:?}"), &found[index], &same_type[index], &exact[index], 3.0);
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
    let leaves = leaves(DType::F32, true);
    let of_lse = |output: AttentionOutput, leaf: &Tensor<4>| {
        let gradients = loss(output, false, true).backward();
        values(leaf.grad(&gradients).expect("it requires a gradient"))
    };
    let [q, k, v, _] = &leaves;
    for leaf in [q, k] {
        let found = of_lse(ours(q, k, v, &AttentionOptions::new()), leaf);
        let exact = of_lse(naive(q.clone(), k.clone(), v.clone(), &Naive::default()), leaf);
        close("a gradient of LSE", &found, &exact, &exact, 3.0);
    }
}

/// A sink's gradient: a key whose score is the sink and whose value is 0.
#[test]
fn of_a_sink() {
    let device = device().autodiff();
    let [q, k, v] = SHAPES.map(|shape| tensor(shape, shape[3] as u64, DType::F32, &device));
    let sink: Tensor<1> = tensor([4], 3, DType::F32, &device).require_grad();
    let output = ours(&q, &k, &v, &AttentionOptions::new().with_sink(sink.clone()));
    let found = values(sink.grad(&loss(output, true, true).backward()).expect("it requires a gradient"));
    let exact_sink: Tensor<1> = sink.clone().detach().require_grad();
    let zeros = |tensor: &Tensor<4>| {
        let [batch, heads, _, dim] = tensor.dims();
        Tensor::cat(vec![tensor.clone(), Tensor::zeros([batch, heads, 1, dim], &device)], 2)
    };
    let of_keys = Tensor::<4>::zeros([1, 4, 1, 33], &device);
    let bias = Tensor::cat(vec![of_keys, exact_sink.clone().reshape([1, 4, 1, 1])], 3);
    let output = naive(q, zeros(&k), zeros(&v), &Naive { bias: Some(bias), ..Naive::default() });
    let exact = values(exact_sink.grad(&loss(output, true, true).backward()).expect("it requires a gradient"));
    close("dsink", &found, &exact, &exact, 3.0);
}

/// With dropout: the same seed drops the same, so that the loss has finite differences.
#[test]
fn with_dropout() {
    let device = device().autodiff();
    let shapes = [[1, 2, 9, 16], [1, 2, 11, 16], [1, 2, 11, 16]];
    let options = AttentionOptions::new().with_causal().with_dropout(0.3, 42, 7);
    let run = |[q, k, v]: &[Tensor<4>; 3]| loss(ours(q, k, v, &options), true, false);
    let leaves = shapes.map(|shape| tensor(shape, shape[2] as u64, DType::F32, &device).require_grad());
    let gradients = run(&leaves).backward();
    let step = 0.01f32;
    for index in 0..3 {
        let found = values(leaves[index].grad(&gradients).expect("it requires a gradient"));
        let direction: Tensor<4> = tensor(shapes[index], 99 + index as u64, DType::F32, &device);
        let moved = |by: f32| {
            let mut moved = leaves.each_ref().map(|leaf| leaf.clone().detach());
            moved[index] = moved[index].clone() + direction.clone() * by;
            f64::from(values(run(&moved))[0])
        };
        let difference = (moved(step) - moved(-step)) / f64::from(2.0 * step);
        let along: f64 = found.iter().zip(values(direction.clone())).map(|(g, d)| f64::from(*g) * f64::from(d)).sum();
        // The third derivative times step² / 6, and f32's rounding of the losses over the step.
        let size = found.iter().map(|g| f64::from(*g).powi(2)).sum::<f64>().sqrt().max(1.0);
        assert!(
            (difference - along).abs() <= 5e-3 * size,
            "{index}: {along} along a direction, {difference} by differences"
        );
    }
    // Another seed drops others.
    let other = AttentionOptions::new().with_causal().with_dropout(0.3, 43, 7);
    let [q, k, v] = &leaves;
    assert_ne!(values(ours(q, k, v, &options).o), values(ours(q, k, v, &other).o));
    assert_eq!(values(ours(q, k, v, &options).o), values(ours(q, k, v, &options).o));
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
