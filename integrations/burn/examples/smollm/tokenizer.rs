//! Text to tokens and back, from the vocabulary and the merges in a GGUF header: byte-level BPE as in GPT-2, where each digit
//! is a word by itself, as SmolLM has it.

use anyhow::{Context, Result, bail, ensure};
use minijinja::context;
use tokenizers::AddedToken;
use tokenizers::models::bpe::BPE;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;

use crate::gguf::Gguf;

pub struct Tokenizer {
    tokenizer: tokenizers::Tokenizer,
    template: String,
    /// The token that ends an answer, and how it is written out.
    pub end: u32,
    pub end_text: String,
}

/// A message of a chat. `role` is "system", "user" or "assistant".
pub struct Message {
    pub role: &'static str,
    pub content: String,
}

impl Tokenizer {
    pub fn read(file: &Gguf) -> Result<Self> {
        match (file.string("tokenizer.ggml.model")?, file.string("tokenizer.ggml.pre")?) {
            ("gpt2", "smollm") => {}
            (model, pre) => bail!("the tokenizer is {model} with {pre}; this program reads gpt2 with smollm"),
        }
        let tokens = file.strings("tokenizer.ggml.tokens")?;
        let kinds = file.integers("tokenizer.ggml.token_type")?;
        ensure!(tokens.len() == kinds.len(), "{} tokens have {} types", tokens.len(), kinds.len());
        let vocabulary = (0..).zip(&tokens).map(|(id, token)| (token.to_string(), id));
        let pair = |line: &str| {
            let (left, right) = line.split_once(' ').with_context(|| format!("merge {line:?} has no space"))?;
            Ok((left.to_owned(), right.to_owned()))
        };
        let merges = file.strings("tokenizer.ggml.merges")?.into_iter().map(pair).collect::<Result<Vec<_>>>()?;
        let bpe = BPE::builder().vocab_and_merges(vocabulary.collect::<tokenizers::models::bpe::Vocab>(), merges);

        let mut tokenizer = tokenizers::Tokenizer::new(bpe.build().map_err(anyhow::Error::from_boxed)?);
        let bytes = ByteLevel::new(false, true, true);
        tokenizer.with_pre_tokenizer(Some(Sequence::new(vec![Digits::new(true).into(), bytes.into()])));
        tokenizer.with_decoder(Some(bytes));
        // Type 3 is a control token, such as the start of a message.
        let control = tokens.iter().zip(kinds).filter(|(_, kind)| *kind == 3);
        let control = control.map(|(token, _)| AddedToken::from(token.to_string(), true));
        tokenizer.add_special_tokens(control).map_err(anyhow::Error::from_boxed)?;

        let end = file.number("tokenizer.ggml.eos_token_id")?;
        let end_text =
            tokens.get(end).with_context(|| format!("token {end}, the end, is not one of {}", tokens.len()))?;
        Ok(Self {
            tokenizer,
            template: file.string("tokenizer.chat_template")?.to_owned(),
            end: u32::try_from(end)?,
            end_text: end_text.to_string(),
        })
    }

    /// Tokens of a text in which control tokens may be written out.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        Ok(self.tokenizer.encode(text, false).map_err(anyhow::Error::from_boxed)?.get_ids().to_vec())
    }

    /// Takes tokens one by one and gives the text that each adds, without control tokens. A character may need several
    /// tokens: it comes with its last.
    pub fn decoder(&self) -> impl FnMut(u32) -> Result<String> {
        let mut stream = self.tokenizer.decode_stream(true);
        move |token| Ok(stream.step(token).map_err(anyhow::Error::from_boxed)?.unwrap_or_default())
    }

    /// A chat as one text that ends where the assistant's answer begins, by the template in the file.
    pub fn chat(&self, messages: &[Message]) -> Result<String> {
        let mut environment = minijinja::Environment::new();
        // A template that loops for ever is an error.
        environment.set_fuel(Some(1_000_000));
        let message = |message: &Message| context! { role => message.role, content => message.content.as_str() };
        let messages: Vec<minijinja::Value> = messages.iter().map(message).collect();
        let values = context! { messages => messages, add_generation_prompt => true };
        environment.render_str(&self.template, values).context("the chat template of the file")
    }
}
