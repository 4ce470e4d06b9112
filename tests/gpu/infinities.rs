//! Scores of −∞ that come from the data. A key with such a score has P = 0; a row that has no other is empty: O = 0,
//! LSE = −∞, and no gradient, as the oracle has it. And values of V so large that infinities are near.

use wgpu_flash_attention::{Algorithm, AttentionProblem, AttentionShape, Element, reference};

use crate::support::{
    Inputs, Library, Variant, check, check_gradients, gradient_inputs, inputs, library, limited, run, run_backward,
    with_matrices,
};

const DIM: usize = 16;

/// Which elements of Q and K are −∞. All others are positive, so that every product with them is −∞ too.
#[derive(Clone, Copy, Debug)]
enum Infinite {
    /// Some keys.
    SomeKeys,
    /// All of K.
    AllKeys,
    /// The first eight keys: all that the first rows of a causal mask see.
    FirstKeys,
    /// One dimension of some rows of Q.
    SomeRows,
}

impl Infinite {
    const ALL: [Infinite; 4] = [Infinite::SomeKeys, Infinite::AllKeys, Infinite::FirstKeys, Infinite::SomeRows];

    fn place(self, problem: &AttentionProblem, inputs: &mut Inputs) {
        for tensor in [&mut inputs.q, &mut inputs.k] {
            tensor.iter_mut().for_each(|value| *value = problem.element.round(value.abs() + 0.25));
        }
        let heads_kv = problem.shape.num_heads_kv as usize;
        let heads = problem.shape.num_heads as usize;
        let every = |tensor: &mut [f64], heads: usize, is_infinite: &dyn Fn(usize) -> bool, dims: usize| {
            for (place, row) in tensor.chunks_mut(DIM).enumerate() {
                if is_infinite(place / heads) {
                    row[..dims].fill(f64::NEG_INFINITY);
                }
            }
        };
        match self {
            Infinite::SomeKeys => every(&mut inputs.k, heads_kv, &|key| key % 7 == 3, DIM),
            Infinite::AllKeys => every(&mut inputs.k, heads_kv, &|_| true, DIM),
            Infinite::FirstKeys => every(&mut inputs.k, heads_kv, &|key| key < 8, DIM),
            Infinite::SomeRows => every(&mut inputs.q, heads, &|row| row % 5 == 2, 1),
        }
    }
}

fn masks(problem: AttentionProblem) -> [AttentionProblem; 4] {
    [
        problem.clone(),
        problem.clone().with_causal(),
        problem.clone().with_causal().with_window(Some(3), None),
        problem.with_causal().with_dropout(0.4, 3),
    ]
}

fn forward(library: &Library, problem: AttentionProblem) {
    for problem in masks(problem) {
        for infinite in Infinite::ALL {
            let mut inputs = inputs(&problem, 5);
            infinite.place(&problem, &mut inputs);
            println!("{infinite:?} {problem:?}");
            let output = check(library, &problem, &inputs);
            if let Infinite::AllKeys = infinite {
                assert!(output.lse().iter().all(|lse| *lse == f64::NEG_INFINITY));
                assert!(output.o().iter().all(|o| *o == 0.0));
            }
        }
    }
}

fn backward(library: &Library, problem: AttentionProblem) {
    for problem in masks(problem) {
        for infinite in Infinite::ALL {
            let mut given = gradient_inputs(&problem, 5);
            infinite.place(&problem, &mut given.inputs);
            println!("{infinite:?} {problem:?}");
            check_gradients(library, &problem, &given);
        }
    }
}

fn square(seqlen: u32) -> AttentionProblem {
    AttentionProblem::new(AttentionShape::new(1, 2, seqlen, DIM as u32).with_num_heads_kv(1))
}

#[test]
fn the_first_key_of_a_causal_problem() {
    let problem = AttentionProblem::new(AttentionShape::new(1, 1, 8, DIM as u32)).with_causal();
    for &element in Element::ALL {
        let problem = problem.clone().with_element(element);
        let mut inputs = inputs(&problem, 1);
        inputs.q.iter_mut().for_each(|q| *q = q.abs());
        inputs.k[..DIM].fill(f64::NEG_INFINITY);
        let output = check(library(Variant::Full), &problem, &inputs);
        assert_eq!(output.lse()[0], f64::NEG_INFINITY);
        assert!(output.o()[..DIM].iter().all(|o| *o == 0.0));
        assert!(output.o()[DIM..].iter().all(|o| o.is_finite()));
    }
}

#[test]
fn in_forward_kernels() {
    forward(library(Variant::Full), square(40));
    forward(library(Variant::NoSubgroups), square(40).with_element(Element::F16));
    forward(library(Variant::SmallTiles), square(40).with_element(Element::Bf16));
}

#[test]
fn with_split_keys() {
    forward(&limited(|_| ()).splits(4), square(70));
}

#[test]
fn when_decoding() {
    let shape = AttentionShape::new(1, 4, 5, DIM as u32).with_num_heads_kv(2).with_seqlen_kv(90);
    forward(library(Variant::Full), AttentionProblem::new(shape));
    forward(&limited(|_| ()).splits(3), AttentionProblem::new(shape));
}

#[test]
fn in_gradients() {
    backward(&limited(|capabilities| capabilities.matrix_side = None), square(40));
    backward(library(Variant::LargeTiles), square(70).with_element(Element::F16));
}

#[test]
fn on_matrices() {
    let Some(library) = with_matrices() else { return };
    for &element in Element::ALL {
        forward(library, square(70).with_element(element));
    }
    backward(library, square(70).with_element(Element::F16));
    backward(library, square(70).with_element(Element::Bf16));
}

/// Where f32 passes in two parts, an infinity in Q or K is a very large number: what is finite stays right, and what is NaN,
/// 0 times an infinity, is 0.
#[test]
fn in_gradients_on_matrices_in_f32() {
    let Some(library) = with_matrices() else { return };
    for problem in masks(square(70)) {
        for infinite in Infinite::ALL {
            let mut given = gradient_inputs(&problem, 4);
            infinite.place(&problem, &mut given.inputs);
            let Inputs { q, k, v, .. } = &given.inputs;
            let expected = reference::backward(&problem, q, k, v, &given.d_o, None);
            let found = run_backward(library, &problem, &given);
            for (found, expected) in [(found.dq(), expected.dq), (found.dk(), expected.dk), (found.dv(), expected.dv)] {
                let number = |value: f64| if value.is_nan() { 0.0 } else { value };
                let max = expected.iter().fold(0.0f64, |max, value| max.max(number(value.abs())));
                for (found, expected) in found.iter().zip(expected) {
                    assert!(expected.is_nan() || (found - expected).abs() <= 1e-5 * max, "{infinite:?} {problem:?}");
                    assert!(found.is_finite(), "{infinite:?} {problem:?}");
                }
            }
        }
    }
}

/// What an empty row holds reaches no gradient, and neither does its gradient of O.
#[test]
fn an_empty_row_passes_nothing_on() {
    for problem in [square(40), square(40).with_causal(), square(40).with_element(Element::F16)] {
        let mut given = gradient_inputs(&problem, 4);
        Infinite::SomeRows.place(&problem, &mut given.inputs);
        for (place, row) in given.d_o.chunks_mut(DIM).enumerate() {
            if (place / 2) % 5 == 2 {
                row.fill(f64::NAN);
            }
        }
        let gradients = check_gradients(library(Variant::Full), &problem, &given);
        let all = [gradients.dq(), gradients.dk(), gradients.dv()];
        assert!(all.iter().flatten().all(|value| value.is_finite()));
    }
}

/// V is as large as this, the first half of the keys has scores of 0, and P of the others is 2⁷·⁹ times as large: m may stay.
fn large_values(problem: &AttentionProblem, largest: f64) -> Inputs {
    let mut inputs = inputs(problem, 6);
    inputs
        .q
        .chunks_mut(DIM)
        .for_each(|row| row.copy_from_slice(&std::array::from_fn::<_, DIM, _>(|d| f64::from(d == 0))));
    let half = inputs.k.len() / 2;
    inputs.k.fill(0.0);
    let last = problem.element.round(7.9 * std::f64::consts::LN_2 / problem.softmax_scale());
    inputs.k[half..].chunks_mut(DIM).for_each(|key| key[0] = last);
    inputs.v.fill(problem.element.round(largest));
    inputs
}

fn with_large_values(library: &Library, problem: &AttentionProblem, largest: f64) {
    let output = check(library, problem, &large_values(problem, largest));
    assert!(output.o().iter().all(|o| o.is_finite()), "{problem:?}");
}

/// What `Algorithm` says of large values.
#[test]
fn large_values_of_v() {
    let keys = 128;
    for element in [Element::F32, Element::Bf16] {
        let shape = AttentionShape::new(1, 1, 40, DIM as u32).with_seqlen_kv(keys);
        let problem = AttentionProblem::new(shape).with_element(element);
        let decoding = AttentionProblem::new(AttentionShape { seqlen_q: 1, ..shape }).with_element(element);
        let largest = 0.99 * 2f64.powi(120) / f64::from(keys);
        for library in [library(Variant::Full), library(Variant::SmallTiles), &limited(|_| ()).splits(2)] {
            [&problem, &decoding].into_iter().for_each(|problem| with_large_values(library, problem, largest));
        }
        if let Some(library) = with_matrices() {
            with_large_values(library, &problem, largest);
        }
        // Standard attention alone: `check` asks flash attention too.
        let standard = problem.with_algorithm(Algorithm::Standard);
        let inputs = large_values(&standard, 3e38);
        let o = run(library(Variant::Full), &standard, &inputs).o();
        let unit = [1e-6, 1e-3, 8e-3][element as usize];
        assert!(o.iter().all(|o| (o / inputs.v[0] - 1.0).abs() <= unit), "{element:?}: {o:?}");
    }
}
