//! Both models in f64 on the CPU, in plain loops, from the weights that the tests made.

use half::f16;

use crate::files::{EPSILON, HEAD_DIM, HEADS, HEADS_KV, LAYERS, Matrix, SmallFile, THETA};

/// How K and V are kept for later tokens.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Rounding {
    None,
    F16,
    /// Signed bytes with one scale for each token and head.
    Int8,
}

impl Rounding {
    /// Of one row of a head.
    fn round(self, row: &[f64]) -> Vec<f64> {
        match self {
            Self::None => row.to_vec(),
            Self::F16 => row.iter().map(|&value| f16::from_f64(value).to_f64()).collect(),
            Self::Int8 => {
                let scale = row.iter().fold(0.0_f64, |most, value| most.max(value.abs())) / 127.0;
                row.iter().map(|value| (value / scale).round_ties_even() * scale).collect()
            }
        }
    }
}

/// The logits after each token. The first `first` tokens are read at once and see each other's exact K and V; all others
/// see them as they are kept.
pub fn smollm(file: &SmallFile, tokens: &[u32], rounding: Rounding, first: usize) -> Vec<Vec<f64>> {
    let weight = |name: &str| &file.weights[name];
    let embedding = weight("token_embd.weight");
    let mut xs: Vec<Vec<f64>> = tokens.iter().map(|&token| embedding.row(token as usize).to_vec()).collect();
    for layer in 0..LAYERS {
        let weight = |part: &str| weight(&format!("blk.{layer}.{part}.weight"));
        let (mut qs, mut ks, mut vs) = (Vec::new(), Vec::new(), Vec::new());
        for (position, x) in xs.iter().enumerate() {
            let h = rms_norm(x, weight("attn_norm"));
            qs.push(rotated(&weight("attn_q").apply(&h), position));
            ks.push(rotated(&weight("attn_k").apply(&h), position));
            vs.push(weight("attn_v").apply(&h));
        }
        for row in 0..xs.len() {
            let mut o = Vec::new();
            for head in 0..HEADS {
                let of_head = |all: &[f64], head: usize| all[head * HEAD_DIM..][..HEAD_DIM].to_vec();
                let head_kv = head / (HEADS / HEADS_KV);
                let kept = |all: &Vec<Vec<f64>>| -> Vec<Vec<f64>> {
                    let rounding = if row < first { Rounding::None } else { rounding };
                    all[..=row].iter().map(|values| rounding.round(&of_head(values, head_kv))).collect()
                };
                o.extend(attention(&of_head(&qs[row], head), &kept(&ks), &kept(&vs)));
            }
            add(&mut xs[row], &weight("attn_output").apply(&o));
            let h = rms_norm(&xs[row], weight("ffn_norm"));
            let gate = weight("ffn_gate").apply(&h).into_iter().map(|gate| gate / (1.0 + (-gate).exp()));
            let inner: Vec<f64> = gate.zip(weight("ffn_up").apply(&h)).map(|(gate, up)| gate * up).collect();
            add(&mut xs[row], &weight("ffn_down").apply(&inner));
        }
    }
    xs.iter().map(|x| embedding.apply(&rms_norm(x, weight("output_norm.weight")))).collect()
}

fn rms_norm(x: &[f64], weight: &Matrix) -> Vec<f64> {
    let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
    let root = (mean + f64::from(EPSILON)).sqrt();
    x.iter().zip(&weight.values).map(|(x, weight)| x / root * weight).collect()
}

/// Neighbours (2i, 2i + 1) of each head turn by position · theta^(−2i / head_dim).
fn rotated(heads: &[f64], position: usize) -> Vec<f64> {
    let pairs = heads.chunks(2).enumerate();
    pairs
        .flat_map(|(pair, values)| {
            let turn = (2 * (pair % (HEAD_DIM / 2))) as f64 / HEAD_DIM as f64;
            let (sin, cos) = (position as f64 * f64::from(THETA).powf(-turn)).sin_cos();
            [values[0] * cos - values[1] * sin, values[1] * cos + values[0] * sin]
        })
        .collect()
}

/// softmax(q · Kᵀ / √dim) · V of one row of one head.
fn attention(q: &[f64], k: &[Vec<f64>], v: &[Vec<f64>]) -> Vec<f64> {
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let scores: Vec<f64> = k.iter().map(|k| dot(q, k) / (q.len() as f64).sqrt()).collect();
    let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let weights: Vec<f64> = scores.iter().map(|score| (score - largest).exp()).collect();
    let sum: f64 = weights.iter().sum();
    (0..q.len()).map(|i| weights.iter().zip(v).map(|(weight, v)| weight * v[i]).sum::<f64>() / sum).collect()
}

fn add(x: &mut [f64], more: &[f64]) {
    x.iter_mut().zip(more).for_each(|(x, more)| *x += more);
}

/// The embedding of a sentence.
pub fn minilm(file: &SmallFile, config: &crate::minilm::Config, tokens: &[u32]) -> Vec<f64> {
    let linear = |name: &str, x: &[f64]| {
        let mut y = file.weights[&format!("{name}.weight")].apply(x);
        add(&mut y, &file.weights[&format!("{name}.bias")].values);
        y
    };
    let norm = |name: &str, x: &[f64]| -> Vec<f64> {
        let count = x.len() as f64;
        let mean = x.iter().sum::<f64>() / count;
        let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / count;
        let (weight, bias) = (&file.weights[&format!("{name}.weight")], &file.weights[&format!("{name}.bias")]);
        let scaled = x.iter().map(|x| (x - mean) / (variance + config.layer_norm_eps).sqrt());
        scaled.zip(&weight.values).zip(&bias.values).map(|((x, weight), bias)| x * weight + bias).collect()
    };
    let rows = |name: &str| &file.weights[&format!("embeddings.{name}_embeddings.weight")];
    let embedded = tokens.iter().enumerate().map(|(position, &token)| {
        let mut x = rows("word").row(token as usize).to_vec();
        add(&mut x, rows("position").row(position));
        add(&mut x, rows("token_type").row(0));
        norm("embeddings.LayerNorm", &x)
    });
    let mut xs: Vec<Vec<f64>> = embedded.collect();
    let head_dim = config.hidden_size / config.num_attention_heads;
    for layer in 0..config.num_hidden_layers {
        let name = |part: &str| format!("encoder.layer.{layer}.{part}");
        let all = |part: &str| -> Vec<Vec<f64>> { xs.iter().map(|x| linear(&name(part), x)).collect() };
        let (qs, ks, vs) = (all("attention.self.query"), all("attention.self.key"), all("attention.self.value"));
        for (row, x) in xs.iter_mut().enumerate() {
            let mut o = Vec::new();
            for head in 0..config.num_attention_heads {
                let of_head = |values: &Vec<f64>| values[head * head_dim..][..head_dim].to_vec();
                let (k, v): (Vec<_>, Vec<_>) = (ks.iter().map(of_head).collect(), vs.iter().map(of_head).collect());
                o.extend(attention(&of_head(&qs[row]), &k, &v));
            }
            add(x, &linear(&name("attention.output.dense"), &o));
            *x = norm(&name("attention.output.LayerNorm"), x);
            let gelu = |x: f64| 0.5 * x * (1.0 + libm::erf(x / 2.0_f64.sqrt()));
            let inner: Vec<f64> = linear(&name("intermediate.dense"), x).into_iter().map(gelu).collect();
            add(x, &linear(&name("output.dense"), &inner));
            *x = norm(&name("output.LayerNorm"), x);
        }
    }
    let sums = (0..config.hidden_size).map(|i| xs.iter().map(|x| x[i]).sum::<f64>());
    let mean: Vec<f64> = sums.map(|sum| sum / xs.len() as f64).collect();
    let length = mean.iter().map(|x| x * x).sum::<f64>().sqrt();
    mean.into_iter().map(|x| x / length).collect()
}
