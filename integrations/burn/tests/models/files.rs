//! Small models from a seed, as the files that the programs read, and their weights as the tests know them.

use std::collections::HashMap;

use half::f16;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// A matrix `[out, in]`, or a vector as one row.
pub struct Matrix {
    pub columns: usize,
    pub values: Vec<f64>,
}

impl Matrix {
    pub fn row(&self, number: usize) -> &[f64] {
        &self.values[number * self.columns..][..self.columns]
    }

    /// weight · x
    pub fn apply(&self, x: &[f64]) -> Vec<f64> {
        assert_eq!(self.columns, x.len());
        self.values.chunks(self.columns).map(|row| row.iter().zip(x).map(|(w, x)| w * x).sum()).collect()
    }
}

pub type Weights = HashMap<String, Matrix>;

pub struct SmallFile {
    pub bytes: Vec<u8>,
    pub weights: Weights,
}

pub const LAYERS: usize = 2;
pub const HEADS: usize = 3;
pub const HEADS_KV: usize = 1;
pub const HEAD_DIM: usize = 32;
pub const HIDDEN: usize = HEADS * HEAD_DIM;
pub const INNER: usize = 160;
pub const CONTEXT: usize = 64;
pub const THETA: f32 = 10_000.0;
pub const EPSILON: f32 = 1e-5;
pub const CHAT_TEMPLATE: &str = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + ' ' + message['content'] + \
     '<|im_end|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant ' }}{% endif %}";

/// Control tokens, the 256 bytes as GPT-2 writes them, and what the merges below make of them.
pub fn vocabulary() -> Vec<String> {
    let mut tokens: Vec<String> = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"].map(String::from).to_vec();
    let is_shown = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let mut hidden = 0x100..;
    for byte in 0..=255 {
        // Bytes that are not shown have the characters from U+0100 on.
        let code = if is_shown(byte) { u32::from(byte) } else { hidden.next().unwrap() };
        tokens.push(char::from_u32(code).unwrap().to_string());
    }
    tokens.extend(["he", "ll", "hell", "Ġhell"].map(String::from));
    tokens
}

pub const MERGES: [&str; 4] = ["h e", "l l", "he ll", "Ġ hell"];

/// A GGUF file of a small llama: the embedding in Q8_0, matrices in Q4_1, norms in F32.
pub fn small_gguf(seed: u64) -> SmallFile {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let tokens = vocabulary();
    let mut tensors: Vec<(String, Vec<usize>, u32, Vec<u8>)> = Vec::new();
    let mut weights = Weights::new();
    let mut add = |name: String, shape: &[usize], encode: Encode| {
        let (kind, bytes, values) = encode(shape, &mut random);
        weights.insert(name.clone(), Matrix { columns: shape[shape.len() - 1], values });
        tensors.push((name, shape.to_vec(), kind, bytes));
    };
    add("token_embd.weight".into(), &[tokens.len(), HIDDEN], q8_0);
    for layer in 0..LAYERS {
        let mut add = |part: &str, shape: &[usize], encode| add(format!("blk.{layer}.{part}.weight"), shape, encode);
        add("attn_norm", &[HIDDEN], f32_near_one);
        add("attn_q", &[HIDDEN, HIDDEN], q4_1);
        add("attn_k", &[HEADS_KV * HEAD_DIM, HIDDEN], q4_1);
        add("attn_v", &[HEADS_KV * HEAD_DIM, HIDDEN], q4_1);
        add("attn_output", &[HIDDEN, HIDDEN], q4_1);
        add("ffn_norm", &[HIDDEN], f32_near_one);
        add("ffn_gate", &[INNER, HIDDEN], q4_1);
        add("ffn_up", &[INNER, HIDDEN], q4_1);
        add("ffn_down", &[HIDDEN, INNER], q4_1);
    }
    add("output_norm.weight".into(), &[HIDDEN], f32_near_one);

    let mut file = Header::default();
    file.text("general.architecture", "llama");
    file.number("llama.block_count", LAYERS);
    file.number("llama.embedding_length", HIDDEN);
    file.number("llama.attention.head_count", HEADS);
    file.number("llama.attention.head_count_kv", HEADS_KV);
    file.number("llama.rope.dimension_count", HEAD_DIM);
    file.number("llama.feed_forward_length", INNER);
    file.number("llama.vocab_size", tokens.len());
    file.number("llama.context_length", CONTEXT);
    file.float("llama.rope.freq_base", THETA);
    file.float("llama.attention.layer_norm_rms_epsilon", EPSILON);
    file.text("tokenizer.ggml.model", "gpt2");
    file.text("tokenizer.ggml.pre", "smollm");
    let kinds: Vec<i32> = (0..tokens.len()).map(|id| if id < 3 { 3 } else { 1 }).collect();
    file.texts("tokenizer.ggml.tokens", tokens.iter().map(String::as_str));
    file.integers("tokenizer.ggml.token_type", &kinds);
    file.texts("tokenizer.ggml.merges", MERGES.into_iter());
    file.number("tokenizer.ggml.eos_token_id", 2);
    file.text("tokenizer.chat_template", CHAT_TEMPLATE);
    SmallFile { bytes: file.with_tensors(&tensors), weights }
}

/// Type number, bytes, and values of a tensor with this shape.
type Encode = fn(&[usize], &mut ChaCha8Rng) -> (u32, Vec<u8>, Vec<f64>);

fn f32_near_one(shape: &[usize], random: &mut ChaCha8Rng) -> (u32, Vec<u8>, Vec<f64>) {
    let values: Vec<f32> = (0..shape.iter().product::<usize>()).map(|_| random.random_range(0.5..1.5)).collect();
    (0, values.iter().flat_map(|value| value.to_le_bytes()).collect(), values.into_iter().map(f64::from).collect())
}

fn q4_1(shape: &[usize], random: &mut ChaCha8Rng) -> (u32, Vec<u8>, Vec<f64>) {
    // Sums of `in` products keep their size.
    let most = (3.0 / shape[1] as f64).sqrt();
    let (mut bytes, mut values) = (Vec::new(), Vec::new());
    for _ in 0..shape[0] * shape[1] / 32 {
        let (scale, minimum) = (f16::from_f64(2.0 * most / 15.0), f16::from_f64(-most));
        let numbers: [u8; 32] = std::array::from_fn(|_| random.random_range(0..16));
        bytes.extend(scale.to_le_bytes());
        bytes.extend(minimum.to_le_bytes());
        bytes.extend((0..16).map(|i| numbers[i] | numbers[i + 16] << 4));
        values.extend(numbers.map(|number| f64::from(number) * scale.to_f64() + minimum.to_f64()));
    }
    (3, bytes, values)
}

fn q8_0(shape: &[usize], random: &mut ChaCha8Rng) -> (u32, Vec<u8>, Vec<f64>) {
    let (mut bytes, mut values) = (Vec::new(), Vec::new());
    for _ in 0..shape[0] * shape[1] / 32 {
        // Small beside what the layers add, so that a token is not always likeliest after itself.
        let scale = f16::from_f64(random.random_range(0.1..0.3) / 127.0);
        let numbers: [i8; 32] = std::array::from_fn(|_| random.random_range(-127..=127));
        bytes.extend(scale.to_le_bytes());
        bytes.extend(numbers.map(|number| number as u8));
        values.extend(numbers.map(|number| f64::from(number) * scale.to_f64()));
    }
    (8, bytes, values)
}

/// The named values of a GGUF file.
#[derive(Default)]
pub struct Header {
    count: u64,
    bytes: Vec<u8>,
}

impl Header {
    fn name(&mut self, name: &str, kind: u32) {
        self.count += 1;
        self.string(name);
        self.bytes.extend(kind.to_le_bytes());
    }

    fn string(&mut self, text: &str) {
        self.bytes.extend((text.len() as u64).to_le_bytes());
        self.bytes.extend(text.as_bytes());
    }

    pub fn number(&mut self, name: &str, value: usize) {
        self.name(name, 4);
        self.bytes.extend((value as u32).to_le_bytes());
    }

    pub fn float(&mut self, name: &str, value: f32) {
        self.name(name, 6);
        self.bytes.extend(value.to_le_bytes());
    }

    pub fn text(&mut self, name: &str, value: &str) {
        self.name(name, 8);
        self.string(value);
    }

    pub fn texts<'a>(&mut self, name: &str, values: impl ExactSizeIterator<Item = &'a str>) {
        self.name(name, 9);
        self.bytes.extend(8_u32.to_le_bytes());
        self.bytes.extend((values.len() as u64).to_le_bytes());
        values.for_each(|value| self.string(value));
    }

    pub fn integers(&mut self, name: &str, values: &[i32]) {
        self.name(name, 9);
        self.bytes.extend(5_u32.to_le_bytes());
        self.bytes.extend((values.len() as u64).to_le_bytes());
        self.bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
    }

    pub fn with_tensors(mut self, tensors: &[(String, Vec<usize>, u32, Vec<u8>)]) -> Vec<u8> {
        let mut file = b"GGUF".to_vec();
        file.extend(3_u32.to_le_bytes());
        file.extend((tensors.len() as u64).to_le_bytes());
        file.extend(self.count.to_le_bytes());
        let mut data = Vec::new();
        for (name, shape, kind, bytes) in tensors {
            self.string(name);
            self.bytes.extend((shape.len() as u32).to_le_bytes());
            self.bytes.extend(shape.iter().rev().flat_map(|&side| (side as u64).to_le_bytes()));
            self.bytes.extend(kind.to_le_bytes());
            self.bytes.extend((data.len() as u64).to_le_bytes());
            data.extend(bytes);
            data.resize(data.len().next_multiple_of(32), 0);
        }
        file.extend(self.bytes);
        file.resize(file.len().next_multiple_of(32), 0);
        file.extend(data);
        file
    }
}

/// A safetensors file of a small BERT, and its configuration.
pub fn small_safetensors(seed: u64) -> (SmallFile, crate::minilm::Config) {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let (layers, hidden, inner, words, positions) = (2, 48, 80, 61, 40);
    let mut tensors: Vec<(String, Vec<usize>, Vec<u8>)> = Vec::new();
    let mut weights = Weights::new();
    let mut add = |name: String, shape: &[usize], [middle, most]: [f32; 2]| {
        let values: Vec<f32> =
            (0..shape.iter().product::<usize>()).map(|_| middle + random.random_range(-most..most)).collect();
        tensors.push((name.clone(), shape.to_vec(), values.iter().flat_map(|value| value.to_le_bytes()).collect()));
        let values = values.into_iter().map(f64::from).collect();
        weights.insert(name, Matrix { columns: shape[shape.len() - 1], values });
    };
    for (name, rows) in [("word", words), ("position", positions), ("token_type", 2)] {
        add(format!("embeddings.{name}_embeddings.weight"), &[rows, hidden], [0.0, 1.0]);
    }
    let mut norms = vec!["embeddings.LayerNorm".to_owned()];
    for layer in 0..layers {
        let name = |part: &str| format!("encoder.layer.{layer}.{part}");
        for (part, out, into) in [
            ("attention.self.query", hidden, hidden),
            ("attention.self.key", hidden, hidden),
            ("attention.self.value", hidden, hidden),
            ("attention.output.dense", hidden, hidden),
            ("intermediate.dense", inner, hidden),
            ("output.dense", hidden, inner),
        ] {
            add(name(part) + ".weight", &[out, into], [0.0, (3.0 / into as f32).sqrt()]);
            add(name(part) + ".bias", &[out], [0.0, 0.1]);
        }
        norms.extend([name("attention.output.LayerNorm"), name("output.LayerNorm")]);
    }
    for norm in norms {
        add(norm.clone() + ".weight", &[hidden], [1.0, 0.5]);
        add(norm + ".bias", &[hidden], [0.0, 0.1]);
    }
    let views = tensors.iter().map(|(name, shape, bytes)| {
        let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.clone(), bytes);
        (name.clone(), view.expect("the bytes fit the shape"))
    });
    let bytes = safetensors::serialize(views.collect::<Vec<_>>(), None).expect("the tensors are sound");
    let config = crate::minilm::Config {
        num_hidden_layers: layers,
        hidden_size: hidden,
        num_attention_heads: 3,
        intermediate_size: inner,
        vocab_size: words,
        max_position_embeddings: positions,
        type_vocab_size: 2,
        layer_norm_eps: 1e-12,
        hidden_act: "gelu".into(),
        position_embedding_type: "absolute".into(),
    };
    (SmallFile { bytes, weights }, config)
}
