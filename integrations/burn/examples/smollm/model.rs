//! SmolLM2, a decoder of the llama family, on Burn tensors. Read it from top to bottom:
//!
//!     x = embedding[tokens]
//!     for each layer:
//!         x = x + attention(rms_norm(x)) · Wo
//!         x = x + (silu(h · Wgate) ∘ (h · Wup)) · Wdown,    h = rms_norm(x)
//!     logits = rms_norm(last row of x) · embeddingᵀ
//!
//! `x` stays in f32 in every form of the model: some of its values reach 25,000, and their squares do not fit f16. With
//! `DType::F16` the weights of the layers, Q, K, V and what goes through the matrices are f16.

use anyhow::{Result, bail, ensure};
use burn::tensor::activation::silu;
use burn::tensor::{DType, Device, Int, Tensor, TensorData};

use crate::cache::{Attention, Cache, Storage};
use crate::gguf::Gguf;
use crate::rotary::Angles;

/// What the header of the file says.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    pub layers: usize,
    pub hidden: usize,
    /// Query heads. Each `heads / heads_kv` of them share one head of K and V.
    pub heads: usize,
    pub heads_kv: usize,
    pub head_dim: usize,
    /// The width between the two matrices of a layer's second half.
    pub inner: usize,
    pub vocabulary: usize,
    /// Tokens that the model was trained to look back on.
    pub context: usize,
    /// Base of the angles of the rotary embedding.
    pub theta: f32,
    /// What `rms_norm` adds to the mean of squares.
    pub epsilon: f32,
}

impl Config {
    pub fn read(file: &Gguf) -> Result<Self> {
        let architecture = file.string("general.architecture")?;
        ensure!(architecture == "llama", "the model is {architecture}; this program runs llama");
        let config = Self {
            layers: file.number("llama.block_count")?,
            hidden: file.number("llama.embedding_length")?,
            heads: file.number("llama.attention.head_count")?,
            heads_kv: file.number("llama.attention.head_count_kv")?,
            head_dim: file.number("llama.rope.dimension_count")?,
            inner: file.number("llama.feed_forward_length")?,
            vocabulary: file.number("llama.vocab_size")?,
            context: file.number("llama.context_length")?,
            theta: file.float("llama.rope.freq_base")?,
            epsilon: file.float("llama.attention.layer_norm_rms_epsilon")?,
        };
        let Self { layers, hidden, heads, heads_kv, head_dim, inner, vocabulary, context, .. } = config;
        let counts = [layers, hidden, heads, heads_kv, head_dim, inner, vocabulary, context];
        ensure!(counts.iter().all(|count| (1..=1 << 20).contains(count)), "a size is 0 or above 1,048,576: {config:?}");
        ensure!(heads % heads_kv == 0, "{heads} heads cannot share {heads_kv} heads of K and V");
        ensure!(heads * head_dim == hidden, "{heads} heads of {head_dim} do not make up {hidden}");
        ensure!(head_dim % 2 == 0, "head_dim {head_dim} is odd and has no rotary pairs");
        Ok(config)
    }
}

pub struct SmolLm {
    pub config: Config,
    device: Device,
    element: DType,
    /// `[vocabulary, hidden]`, in f32.
    embedding: Tensor<2>,
    layers: Vec<Layer>,
    norm: Tensor<1>,
}

/// Weights of matrices are `[out, in]`, as the file has them.
struct Layer {
    attention_norm: Tensor<1>,
    q: Tensor<2>,
    k: Tensor<2>,
    v: Tensor<2>,
    output: Tensor<2>,
    inner_norm: Tensor<1>,
    gate: Tensor<2>,
    up: Tensor<2>,
    down: Tensor<2>,
}

impl SmolLm {
    /// The model of a file. `element` is f32 or f16.
    pub fn read(file: &Gguf, element: DType, device: &Device) -> Result<Self> {
        let config = Config::read(file)?;
        let Config { hidden, heads_kv, head_dim, inner, vocabulary, .. } = config;
        let vector = |name: &str| -> Result<Tensor<1>> {
            let data = TensorData::new(file.tensor(name, &[hidden])?, [hidden]);
            Ok(Tensor::from_data(data, (device, DType::F32)))
        };
        let matrix = |name: &str, shape: [usize; 2], element: DType| -> Result<Tensor<2>> {
            Ok(Tensor::from_data(TensorData::new(file.tensor(name, &shape)?, shape), (device, element)))
        };
        let layer = |number: usize| {
            let name = |part: &str| format!("blk.{number}.{part}.weight");
            Ok(Layer {
                attention_norm: vector(&name("attn_norm"))?,
                q: matrix(&name("attn_q"), [hidden, hidden], element)?,
                k: matrix(&name("attn_k"), [heads_kv * head_dim, hidden], element)?,
                v: matrix(&name("attn_v"), [heads_kv * head_dim, hidden], element)?,
                output: matrix(&name("attn_output"), [hidden, hidden], element)?,
                inner_norm: vector(&name("ffn_norm"))?,
                gate: matrix(&name("ffn_gate"), [inner, hidden], element)?,
                up: matrix(&name("ffn_up"), [inner, hidden], element)?,
                down: matrix(&name("ffn_down"), [hidden, inner], element)?,
            })
        };
        Ok(Self {
            device: device.clone(),
            element,
            embedding: matrix("token_embd.weight", [vocabulary, hidden], DType::F32)?,
            layers: (0..config.layers).map(layer).collect::<Result<_>>()?,
            norm: vector("output_norm.weight")?,
            config,
        })
    }

    /// Starts a text of at most `capacity` tokens.
    pub fn start(&self, attention: Attention, storage: Storage, capacity: usize) -> Result<Text<'_>> {
        let Config { heads_kv, head_dim, .. } = self.config;
        let cache = |_| Cache::new(attention, storage, [heads_kv, capacity, head_dim], &self.device);
        let caches = self.layers.iter().map(cache).collect::<Result<_>>()?;
        let angles = Angles::new(capacity, head_dim, f64::from(self.config.theta), &self.device);
        Ok(Text { model: self, caches, angles, length: 0, capacity })
    }
}

/// A text that the model has read: the caches of all layers.
pub struct Text<'a> {
    model: &'a SmolLm,
    caches: Vec<Cache>,
    angles: Angles,
    length: usize,
    capacity: usize,
}

impl Text<'_> {
    /// Tokens read so far.
    pub fn length(&self) -> usize {
        self.length
    }

    /// Reads more tokens, one or many, and returns the logits of the token that comes next: `vocabulary` values.
    pub fn read(&mut self, tokens: &[u32]) -> Result<Tensor<1>> {
        let SmolLm { config, device, element, .. } = self.model;
        let (rows, room) = (tokens.len(), self.capacity - self.length);
        ensure!(rows > 0, "the model needs a token to read");
        ensure!(rows <= room, "{} tokens and {rows} more are over {}", self.length, self.capacity);
        if let Some(token) = tokens.iter().find(|&&token| token as usize >= config.vocabulary) {
            bail!("token {token} is not one of {}", config.vocabulary);
        }
        let tokens: Vec<i32> = tokens.iter().map(|&token| token as i32).collect();
        let tokens = Tensor::<1, Int>::from_data(TensorData::new(tokens, [rows]), device);

        let angles = self.angles.at(self.length..self.length + rows);

        let mut x = self.model.embedding.clone().select(0, tokens);
        for (layer, cache) in self.model.layers.iter().zip(&mut self.caches) {
            let h = rms_norm(x.clone(), &layer.attention_norm, config.epsilon).cast(*element);
            let heads =
                |weight: &Tensor<2>, count: usize| project(h.clone(), weight).reshape([rows, count, config.head_dim]);
            let (q, k, v) =
                (heads(&layer.q, config.heads), heads(&layer.k, config.heads_kv), heads(&layer.v, config.heads_kv));
            let o = cache.attend(q, k, v, &angles)?.reshape([rows, config.hidden]);
            x = x + project(o, &layer.output).cast(DType::F32);

            let h = rms_norm(x.clone(), &layer.inner_norm, config.epsilon).cast(*element);
            let inner = silu(project(h.clone(), &layer.gate)) * project(h, &layer.up);
            x = x + project(inner, &layer.down).cast(DType::F32);
        }
        self.length += rows;
        let last = rms_norm(x.slice(rows - 1..rows), &self.model.norm, config.epsilon);
        Ok(project(last, &self.model.embedding).flatten(0, 1))
    }
}

/// x · weightᵀ for x `[rows, in]` and weight `[out, in]`.
fn project(x: Tensor<2>, weight: &Tensor<2>) -> Tensor<2> {
    x.matmul(weight.clone().transpose())
}

/// Each row of x `[rows, hidden]` divided by the root of the mean of its squares, times the weight.
fn rms_norm(x: Tensor<2>, weight: &Tensor<1>, epsilon: f32) -> Tensor<2> {
    let mean = x.clone().square().mean_dim(1);
    x / (mean + epsilon).sqrt() * weight.clone().unsqueeze::<2>()
}
