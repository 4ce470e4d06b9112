//! Times the training step of attention alone: O of Q, K and V, then dQ, dK and dV of a given dO, without a mask. Each attention
//! runs in a process of its own, so that one without enough memory does not take the others with it. All are held to attention in
//! f32, one head after the other.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use burn::tensor::activation::softmax;
use burn::tensor::module::attention as burn_attention;
use burn::tensor::{DType, Device, Distribution, Tensor};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use wgpu_flash_attention_burn::{AttentionOptions, attention};

use crate::element::Element;
use crate::timing::timed;

/// Times one after another; the middle one counts.
const REPEATS: usize = 7;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Attention {
    /// This crate's.
    Flash,
    /// softmax(Q Kᵀ) V, of Burn's operations.
    BurnOperations,
    /// Burn's `attention`.
    BurnModule,
}

pub struct Problem {
    /// Of Q, K, V and O: `[batch, heads, tokens, head_dim]`.
    pub shape: [usize; 4],
    pub element: Element,
    pub seed: u64,
}

#[derive(Serialize, Deserialize)]
struct Row {
    attention: Attention,
    #[serde(flatten)]
    outcome: Outcome,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Outcome {
    Finished {
        milliseconds: f64,
        /// ‖found − exact‖ / ‖exact‖ of O, dQ, dK and dV.
        errors: [f64; 4],
    },
    Failed(String),
}

/// Times all attentions, each by this program with `--only` behind its arguments. As JSON, one row is one line.
pub fn run(json: bool) -> Result<()> {
    if !json {
        println!("attention               ms   errors of O, dQ, dK, dV");
    }
    for attention in Attention::value_variants() {
        let name = attention.to_possible_value().context("it has a name")?;
        let name = name.get_name();
        let mut child = Command::new(std::env::current_exe()?);
        let output = child.args(std::env::args_os().skip(1)).args(["--only", name]).output()?;
        let row = match serde_json::from_slice(&output.stdout) {
            Ok(row) if output.status.success() => row,
            _ => {
                let said = String::from_utf8_lossy(&output.stderr);
                Row { attention: *attention, outcome: Outcome::Failed(format!("{}: {}", output.status, said.trim())) }
            }
        };
        match &row.outcome {
            _ if json => println!("{}", serde_json::to_string(&row)?),
            Outcome::Finished { milliseconds, errors: [o, dq, dk, dv] } => {
                println!("{name:<16} {milliseconds:>9.2}   {o:.1e} {dq:.1e} {dk:.1e} {dv:.1e}");
            }
            Outcome::Failed(why) => println!("{name:<16} {why}"),
        }
    }
    Ok(())
}

/// Times one attention and prints its row.
pub fn run_one(problem: &Problem, attention: Attention) -> Result<()> {
    let device = wgpu_flash_attention_burn::init()?;
    device.seed(problem.seed);
    let normal = || {
        Tensor::<4>::random(problem.shape, Distribution::Normal(0.0, 1.0), (&device, DType::F32))
            .cast(DType::from(problem.element))
    };
    let (inputs, d_o) = ([normal(), normal(), normal()], normal());
    let run = |()| {
        let found = step(&inputs, &d_o, attention)?;
        device.sync()?;
        Ok(found)
    };
    let (seconds, found) = timed(&device, REPEATS, || Ok(()), run)?;
    let errors = errors(&found, &inputs, &d_o, &device)?;
    ensure!(errors.iter().all(|error| error.is_finite()), "O, dQ, dK and dV have the errors {errors:?}");
    let row = Row { attention, outcome: Outcome::Finished { milliseconds: 1e3 * seconds, errors } };
    println!("{}", serde_json::to_string(&row)?);
    Ok(())
}

/// O, dQ, dK and dV.
fn step(inputs: &[Tensor<4>; 3], d_o: &Tensor<4>, by: Attention) -> Result<[Tensor<4>; 4]> {
    let leaves = inputs.clone().map(|input| input.autodiff().require_grad());
    let [q, k, v] = leaves.clone();
    let o = match by {
        Attention::Flash => attention(q, k, v, &AttentionOptions::new())?.o,
        Attention::BurnOperations => {
            let scale = (q.dims()[3] as f64).sqrt().recip();
            softmax((q * scale).matmul(k.swap_dims(2, 3)), 3).matmul(v)
        }
        Attention::BurnModule => burn_attention(q, k, v, None, None, Default::default()),
    };
    // The gradient of this sum is dO.
    let gradients = (o.clone() * d_o.clone()).cast(DType::F32).sum().backward();
    let gradient = |leaf: &Tensor<4>| leaf.grad(&gradients).context("each input has a gradient");
    let [q, k, v] = &leaves;
    Ok([o.inner(), gradient(q)?, gradient(k)?, gradient(v)?])
}

/// How far O, dQ, dK and dV are from those of Burn's operations in f32.
fn errors(found: &[Tensor<4>; 4], inputs: &[Tensor<4>; 3], d_o: &Tensor<4>, device: &Device) -> Result<[f64; 4]> {
    // Of each tensor, the squares of what it differs by, and of the exact numbers.
    let zero = || Tensor::<1>::zeros([1], (device, DType::F32));
    let mut sums = [(); 4].map(|()| [zero(), zero()]);
    for head in 0..d_o.dims()[1] {
        let of_head = |tensor: &Tensor<4>| tensor.clone().narrow(1, head, 1).cast(DType::F32);
        let exact = step(&inputs.each_ref().map(of_head), &of_head(d_o), Attention::BurnOperations)?;
        for ((found, exact), sums) in found.iter().zip(exact).zip(&mut sums) {
            let apart = of_head(found) - exact.clone();
            for (sum, tensor) in sums.iter_mut().zip([apart, exact]) {
                *sum = sum.clone() + tensor.square().sum();
            }
        }
    }
    Ok(sums.map(|[apart, size]| (apart / size).sqrt().into_scalar::<f64>()))
}
