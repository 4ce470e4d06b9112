//! A GPT over bytes.

use burn::module::{Module, ModuleVisitor, Param};
use burn::nn::loss::CrossEntropyLossConfig;
use burn::nn::{Embedding, EmbeddingConfig, LayerNorm, LayerNormConfig, Linear, LinearConfig};
use burn::tensor::activation::{gelu, softmax};
use burn::tensor::{Bool, Device, Distribution, Int, Tensor};
use std::fmt;
use wgpu_flash_attention_burn::{AttentionOptions, Error, attention};

/// Whose attention a model uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    ThisCrate,
    Burn,
}

impl fmt::Display for By {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            By::ThisCrate => "this crate",
            By::Burn => "Burn's operations",
        })
    }
}

pub struct Sizes {
    pub context: usize,
    pub layers: usize,
    pub heads: usize,
    pub head_dim: usize,
}

#[derive(Module, Debug)]
struct Layer {
    norm: LayerNorm,
    qkv: Linear,
    out: Linear,
    norm_of_mlp: LayerNorm,
    up: Linear,
    down: Linear,
}

#[derive(Module, Debug)]
pub struct Gpt {
    tokens: Embedding,
    positions: Embedding,
    layers: Vec<Layer>,
    norm: LayerNorm,
    logits: Linear,
    heads: usize,
}

/// Draws all weights at once. Burn draws each where it is first used, behind what the attention before it has drawn.
struct Draw;

impl ModuleVisitor for Draw {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        param.val();
    }
}

impl Gpt {
    pub fn new(sizes: &Sizes, device: &Device) -> Self {
        let width = sizes.heads * sizes.head_dim;
        let linear = |from, to| LinearConfig::new(from, to).init(device);
        let norm = || LayerNormConfig::new(width).init(device);
        let layer = |_| Layer {
            norm: norm(),
            qkv: linear(width, 3 * width),
            out: linear(width, width),
            norm_of_mlp: norm(),
            up: linear(width, 4 * width),
            down: linear(4 * width, width),
        };
        let model = Self {
            tokens: EmbeddingConfig::new(256, width).init(device),
            positions: EmbeddingConfig::new(sizes.context, width).init(device),
            layers: (0..sizes.layers).map(layer).collect(),
            norm: norm(),
            logits: linear(width, 256),
            heads: sizes.heads,
        };
        model.visit(&mut Draw);
        model
    }

    /// The mean loss of a batch: `inputs` `[batch, context]`, `targets` `[batch · context]`.
    pub fn loss(
        &self,
        inputs: Tensor<2, Int>,
        targets: Tensor<1, Int>,
        by: By,
        dropout: f64,
        step: u64,
    ) -> Result<Tensor<1>, Error> {
        let [batch, context] = inputs.dims();
        let device = inputs.device();
        let positions = Tensor::<1, Int>::arange(0..context as i64, &device).reshape([1, context]);
        let mut x = self.tokens.forward(inputs) + self.positions.forward(positions);
        for (index, layer) in self.layers.iter().enumerate() {
            let width = x.dims()[2];
            let qkv = layer.qkv.forward(layer.norm.forward(x.clone()));
            let qkv = qkv.reshape([batch, context, 3 * self.heads, width / self.heads]).swap_dims(1, 2);
            let [q, k, v] = [0, 1, 2].map(|part| qkv.clone().narrow(1, part * self.heads, self.heads));
            let o = match by {
                By::ThisCrate => {
                    let options = AttentionOptions::new().with_causal().with_dropout(dropout, step, index as u32);
                    attention(q, k, v, &options)?.o
                }
                By::Burn => attention_by_burn(q, k, v, dropout),
            };
            x = x + layer.out.forward(o.swap_dims(1, 2).reshape([batch, context, width]));
            x = x.clone() + layer.down.forward(gelu(layer.up.forward(layer.norm_of_mlp.forward(x))));
        }
        let logits = self.logits.forward(self.norm.forward(x)).reshape([batch * context, 256]);
        Ok(CrossEntropyLossConfig::new().init(&device).forward(logits, targets))
    }
}

/// Causal attention with dropout, by Burn's own operations. (The attention of Burn's module has no dropout.)
fn attention_by_burn(q: Tensor<4>, k: Tensor<4>, v: Tensor<4>, dropout: f64) -> Tensor<4> {
    let [batch, heads, context, head_dim] = q.dims();
    let hidden = Tensor::<2, Bool>::tril_mask([context, context], 0, &q.device());
    let hidden = hidden.reshape([1, 1, context, context]).expand([batch, heads, context, context]);
    let scores = q.matmul(k.swap_dims(2, 3)) / (head_dim as f64).sqrt();
    let probabilities = softmax(scores.mask_fill(hidden, f32::NEG_INFINITY), 3);
    let kept = probabilities.random_like(Distribution::Bernoulli(1.0 - dropout));
    (probabilities * kept / (1.0 - dropout)).matmul(v)
}
