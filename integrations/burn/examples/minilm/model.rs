//! MiniLM, an encoder of the BERT family, on Burn tensors. Read it from top to bottom:
//!
//!     x = layer_norm(word[token] + position[place] + kind[0])
//!     for each layer:
//!         x = layer_norm(x + attention(x) · Wo)
//!         x = layer_norm(x + gelu(x · Wup) · Wdown)
//!     embedding of a sentence = mean of the rows of x that are its tokens, then divided by its length
//!
//! (Every product has a bias, too.) Sentences of a batch have different lengths. This library takes their tokens one sentence
//! after the other, packed. Burn's own attention needs sentences of one length: shorter ones get rows that nobody may see.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use burn::tensor::activation::gelu;
use burn::tensor::module::{attention as burn_attention, layer_norm, linear};
use burn::tensor::{Bool, DType, Device, Int, Tensor, TensorData};
use safetensors::{Dtype, SafeTensors};
use wgpu_flash_attention_burn::{AttentionOptions, attention};

/// Whose attention the model calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Attention {
    /// This library's, of packed sentences.
    Flash,
    /// Burn's own, of padded sentences.
    Burn,
}

/// What `config.json` says.
#[derive(Clone, Debug, serde::Deserialize)]
pub struct Config {
    pub num_hidden_layers: usize,
    pub hidden_size: usize,
    pub num_attention_heads: usize,
    pub intermediate_size: usize,
    pub vocab_size: usize,
    pub max_position_embeddings: usize,
    pub type_vocab_size: usize,
    pub layer_norm_eps: f64,
    pub hidden_act: String,
    pub position_embedding_type: String,
}

pub struct MiniLm {
    pub config: Config,
    device: Device,
    /// `[vocab_size, hidden]`.
    words: Tensor<2>,
    /// `[max_position_embeddings, hidden]`.
    positions: Tensor<2>,
    /// `[type_vocab_size, hidden]`; the kind of all tokens is 0.
    kinds: Tensor<2>,
    norm: Norm,
    layers: Vec<Layer>,
}

struct Layer {
    q: Linear,
    k: Linear,
    v: Linear,
    output: Linear,
    attention_norm: Norm,
    up: Linear,
    down: Linear,
    inner_norm: Norm,
}

struct Linear {
    /// `[out, in]`, as the file has it.
    weight: Tensor<2>,
    bias: Tensor<1>,
}

impl Linear {
    /// Of x `[rows, in]`.
    fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        linear(x, self.weight.clone().transpose(), Some(self.bias.clone()))
    }
}

struct Norm {
    weight: Tensor<1>,
    bias: Tensor<1>,
    epsilon: f64,
}

impl Norm {
    fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        layer_norm(x, self.weight.clone(), Some(self.bias.clone()), self.epsilon)
    }
}

impl MiniLm {
    /// The model of a folder with `config.json` and `model.safetensors`.
    pub fn open(folder: &Path, device: &Device) -> Result<Self> {
        let read = |name: &str| {
            let path = folder.join(name);
            std::fs::read(&path).with_context(|| format!("{}: `make models` brings it", path.display()))
        };
        let config = serde_json::from_slice(&read("config.json")?).context("config.json")?;
        Self::read(config, &read("model.safetensors")?, device).context("model.safetensors")
    }

    /// The model of a safetensors file's bytes.
    pub fn read(config: Config, bytes: &[u8], device: &Device) -> Result<Self> {
        let Config { hidden_size: hidden, num_attention_heads: heads, .. } = config;
        ensure!(heads > 0 && hidden % heads == 0, "{heads} heads do not divide {hidden}");
        let (act, position) = (&config.hidden_act, &config.position_embedding_type);
        ensure!(
            act == "gelu" && position == "absolute",
            "{act} and {position} positions are not gelu and absolute ones"
        );
        let file = SafeTensors::deserialize(bytes)?;
        let values = |name: &str, shape: &[usize]| -> Result<TensorData> {
            let tensor = file.tensor(name)?;
            let (kind, found) = (tensor.dtype(), tensor.shape());
            ensure!(
                kind == Dtype::F32 && found == shape,
                "{name} is {kind:?} {found:?}; the model needs F32 {shape:?}"
            );
            let values = tensor.data().chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap()));
            Ok(TensorData::new(values.collect::<Vec<_>>(), shape))
        };
        let options = (device, DType::F32);
        let vector = |name: &str, side: usize| -> Result<Tensor<1>> {
            let values = values(name, &[side])?;
            Ok(Tensor::from_data(values, options))
        };
        let matrix = |name: &str, shape: [usize; 2]| -> Result<Tensor<2>> {
            let values = values(name, &shape)?;
            Ok(Tensor::from_data(values, options))
        };
        let linear = |name: &str, [out, into]: [usize; 2]| -> Result<Linear> {
            let (weight, bias) = (format!("{name}.weight"), format!("{name}.bias"));
            Ok(Linear { weight: matrix(&weight, [out, into])?, bias: vector(&bias, out)? })
        };
        let norm = |name: &str| -> Result<Norm> {
            let (weight, bias) = (format!("{name}.weight"), format!("{name}.bias"));
            Ok(Norm { weight: vector(&weight, hidden)?, bias: vector(&bias, hidden)?, epsilon: config.layer_norm_eps })
        };
        let layer = |number: usize| {
            let name = |part: &str| format!("encoder.layer.{number}.{part}");
            let inner = config.intermediate_size;
            Ok(Layer {
                q: linear(&name("attention.self.query"), [hidden, hidden])?,
                k: linear(&name("attention.self.key"), [hidden, hidden])?,
                v: linear(&name("attention.self.value"), [hidden, hidden])?,
                output: linear(&name("attention.output.dense"), [hidden, hidden])?,
                attention_norm: norm(&name("attention.output.LayerNorm"))?,
                up: linear(&name("intermediate.dense"), [inner, hidden])?,
                down: linear(&name("output.dense"), [hidden, inner])?,
                inner_norm: norm(&name("output.LayerNorm"))?,
            })
        };
        Ok(Self {
            device: device.clone(),
            words: matrix("embeddings.word_embeddings.weight", [config.vocab_size, hidden])?,
            positions: matrix("embeddings.position_embeddings.weight", [config.max_position_embeddings, hidden])?,
            kinds: matrix("embeddings.token_type_embeddings.weight", [config.type_vocab_size, hidden])?,
            norm: norm("embeddings.LayerNorm")?,
            layers: (0..config.num_hidden_layers).map(layer).collect::<Result<_>>()?,
            config,
        })
    }

    /// The embeddings of sentences, each a list of tokens: `[sentences, hidden]`, each of length 1.
    pub fn embed(&self, sentences: &[Vec<u32>], attention: Attention) -> Result<Tensor<2>> {
        let rows = Rows::new(sentences, attention, &self.config, &self.device)?;
        let word = self.words.clone().select(0, rows.tokens.clone());
        let position = self.positions.clone().select(0, rows.positions.clone());
        let mut x = self.norm.forward(word + position + self.kinds.clone().slice(0..1));
        for layer in &self.layers {
            let [q, k, v] = [&layer.q, &layer.k, &layer.v].map(|linear| linear.forward(x.clone()));
            let o = rows.attention(q, k, v, self.config.num_attention_heads)?;
            x = layer.attention_norm.forward(x + layer.output.forward(o));
            let inner = layer.down.forward(gelu(layer.up.forward(x.clone())));
            x = layer.inner_norm.forward(x + inner);
        }
        let mean = rows.means.matmul(x);
        let length = mean.clone().square().sum_dim(1).sqrt();
        Ok(mean / length)
    }
}

/// The tokens of a batch as rows of one matrix.
struct Rows {
    tokens: Tensor<1, Int>,
    /// Of each token in its sentence.
    positions: Tensor<1, Int>,
    /// `[sentences, rows]`: one over the length of the sentence where a row is one of its tokens, else 0.
    means: Tensor<2>,
    sentences: usize,
    longest: usize,
    seen: Seen,
}

enum Seen {
    /// Sentence b has the rows from entry b to entry b + 1.
    Packed(Tensor<1, Int>),
    /// Each sentence has `longest` rows. This is true for those that are not tokens, `[sentences, 1, 1, longest]`.
    Padded(Tensor<4, Bool>),
}

impl Rows {
    fn new(sentences: &[Vec<u32>], attention: Attention, config: &Config, device: &Device) -> Result<Self> {
        ensure!(sentences.iter().all(|sentence| !sentence.is_empty()), "a sentence has no tokens");
        let longest = sentences.iter().map(Vec::len).max().context("there are no sentences")?;
        let most = config.max_position_embeddings;
        ensure!(longest <= most, "a sentence has {longest} tokens; the model reads {most}");
        let is_known = |&token: &u32| (token as usize) < config.vocab_size;
        ensure!(sentences.iter().flatten().all(is_known), "a token is not one of {}", config.vocab_size);

        // The first row of each sentence, and the row after the last.
        let mut starts = vec![0];
        for sentence in sentences {
            let rows = if attention == Attention::Flash { sentence.len() } else { longest };
            starts.push(starts[starts.len() - 1] + rows);
        }
        let total = starts[sentences.len()];
        let (mut tokens, mut positions) = (vec![0_i32; total], vec![0_i32; total]);
        let mut means = vec![0.0_f32; sentences.len() * total];
        let mut is_padding = vec![true; total];
        for (number, (sentence, &start)) in sentences.iter().zip(&starts).enumerate() {
            for (position, &token) in sentence.iter().enumerate() {
                let row = start + position;
                tokens[row] = i32::try_from(token)?;
                positions[row] = i32::try_from(position)?;
                means[number * total + row] = 1.0 / sentence.len() as f32;
                is_padding[row] = false;
            }
        }
        let list = |values: Vec<i32>| {
            let count = values.len();
            Tensor::<1, Int>::from_data(TensorData::new(values, [count]), device)
        };
        let seen = match attention {
            Attention::Flash => Seen::Packed(list(starts.into_iter().map(i32::try_from).collect::<Result<_, _>>()?)),
            Attention::Burn => {
                Seen::Padded(Tensor::from_data(TensorData::new(is_padding, [sentences.len(), 1, 1, longest]), device))
            }
        };
        Ok(Self {
            tokens: list(tokens),
            positions: list(positions),
            means: Tensor::from_data(TensorData::new(means, [sentences.len(), total]), (device, DType::F32)),
            sentences: sentences.len(),
            longest,
            seen,
        })
    }

    /// Every token over all tokens of its sentence: Q, K, V and the result are `[rows, hidden]`.
    fn attention(&self, q: Tensor<2>, k: Tensor<2>, v: Tensor<2>, heads: usize) -> Result<Tensor<2>> {
        let [rows, hidden] = q.dims();
        let batch = if matches!(self.seen, Seen::Packed(_)) { 1 } else { self.sentences };
        // `[batch, heads, rows of each, head_dim]`
        let split = |x: Tensor<2>| x.reshape([batch, rows / batch, heads, hidden / heads]).swap_dims(1, 2);
        let (q, k, v) = (split(q), split(k), split(v));
        let o = match &self.seen {
            Seen::Packed(starts) => {
                let lengths = || (starts.clone(), self.longest);
                attention(q, k, v, &AttentionOptions::new().with_cu_seqlens(lengths(), lengths()))?.o
            }
            Seen::Padded(is_padding) => {
                let mask = is_padding.clone().expand([batch, heads, self.longest, self.longest]);
                burn_attention(q, k, v, Some(mask), None, Default::default())
            }
        };
        Ok(o.swap_dims(1, 2).reshape([rows, hidden]))
    }
}
