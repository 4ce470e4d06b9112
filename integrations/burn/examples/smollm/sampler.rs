//! Picks the next token from the logits.

use anyhow::{Result, ensure};
use rand::SeedableRng;
use rand::distr::Distribution;
use rand::distr::weighted::WeightedIndex;
use rand_chacha::ChaCha8Rng;

use crate::model::Text;

/// Reads a prompt and generates up to `most` tokens, `end` as the last. `each` sees every token as it comes. All of them are
/// read, so that a chat can go on.
pub fn generate(
    text: &mut Text<'_>,
    prompt: &[u32],
    sampler: &mut Sampler,
    most: usize,
    end: u32,
    mut each: impl FnMut(u32) -> Result<()>,
) -> Result<Vec<u32>> {
    let mut tokens = Vec::new();
    let mut logits = text.read(prompt)?;
    while tokens.len() < most && tokens.last() != Some(&end) {
        let token = sampler.pick(&logits.try_into_data()?.try_into_vec::<f32>()?)?;
        tokens.push(token);
        each(token)?;
        logits = text.read(&[token])?;
    }
    Ok(tokens)
}

/// With temperature 0 it takes the largest logit. Else it draws from softmax(logits / temperature); the same seed gives the
/// same draws.
pub struct Sampler {
    temperature: f32,
    random: ChaCha8Rng,
}

impl Sampler {
    pub fn new(temperature: f32, seed: u64) -> Result<Self> {
        ensure!(temperature.is_finite() && temperature >= 0.0, "temperature {temperature} is not 0 or more");
        Ok(Self { temperature, random: ChaCha8Rng::seed_from_u64(seed) })
    }

    /// The number of a token: of the first one, if two logits are equally large.
    pub fn pick(&mut self, logits: &[f32]) -> Result<u32> {
        ensure!(
            !logits.is_empty() && logits.iter().all(|logit| logit.is_finite()),
            "the model gave logits that are not finite"
        );
        let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let token = if self.temperature == 0.0 {
            logits.iter().position(|&logit| logit == largest).unwrap_or_default()
        } else {
            let weights = logits.iter().map(|logit| ((logit - largest) / self.temperature).exp());
            WeightedIndex::new(weights)?.sample(&mut self.random)
        };
        Ok(u32::try_from(token)?)
    }
}
