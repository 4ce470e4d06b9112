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
        draws.normals(stream, len, |x| problem.element.round(scale * x) as f32)
    };
    Inputs {
        problem: *problem,
        q: tensor(Q, problem.q_len(), scale),
        k: tensor(K, problem.kv_len(), scale),
        v: tensor(V, problem.kv_len(), 1.0),
    }
}
