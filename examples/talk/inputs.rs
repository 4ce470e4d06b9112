//! Q, K and V to compare on.

use crate::case::{Inputs, Problem};
use crate::draws::Draws;

/// Tensor numbers, which keep the draws of one from those of another.
const Q: u32 = 0;
const K: u32 = 1;
const V: u32 = 2;

/// N(0, 1): softmax is nearly uniform, which flatters low-rank methods.
pub fn random(problem: &Problem, seed: u64) -> Inputs {
    scaled(problem, seed, 1.0)
}

fn scaled(problem: &Problem, seed: u64, scale: f64) -> Inputs {
    let draws = Draws::new(seed, "inputs");
    let tensor = |stream: u32, len: usize, scale: f64| {
        let value = |index| problem.element.round(scale * draws.normal(stream, index)) as f32;
        crate::draws::filled(len, value)
    };
    Inputs {
        problem: *problem,
        q: tensor(Q, problem.q_len(), scale),
        k: tensor(K, problem.kv_len(), scale),
        v: tensor(V, problem.kv_len(), 1.0),
    }
}
