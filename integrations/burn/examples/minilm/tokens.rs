//! Text to tokens, by the `tokenizer.json` of a model.

use std::path::Path;

use anyhow::Result;
use tokenizers::{Tokenizer, TruncationParams};

/// The longest sentence that the model was trained on (`sentence_bert_config.json`). The rest of a longer one is left out.
const LONGEST: usize = 256;

pub struct Tokens(Tokenizer);

impl Tokens {
    pub fn open(folder: &Path) -> Result<Self> {
        let mut tokenizer = Tokenizer::from_file(folder.join("tokenizer.json")).map_err(anyhow::Error::from_boxed)?;
        // The file asks for sentences that all have 128 tokens.
        tokenizer.with_padding(None);
        let truncation = TruncationParams { max_length: LONGEST, ..Default::default() };
        tokenizer.with_truncation(Some(truncation)).map_err(anyhow::Error::from_boxed)?;
        Ok(Self(tokenizer))
    }

    /// The tokens of a sentence, with those that start and end it.
    pub fn encode(&self, sentence: &str) -> Result<Vec<u32>> {
        Ok(self.0.encode(sentence, true).map_err(anyhow::Error::from_boxed)?.get_ids().to_vec())
    }
}
