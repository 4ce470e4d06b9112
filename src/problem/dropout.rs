/// Dropout on the probabilities. The entry (batch, head, row i, key j) is kept where
/// `philox4x32_10(key, counter)[j % 4] ≥ round(dropout_p · 2³²)` with key = the low and high word of the seed and
/// counter = (j / 4, i, batch · num_heads + head, philox_offset).
#[derive(Clone, Copy, Debug, PartialEq)]
#[must_use]
#[non_exhaustive]
pub struct Dropout {
    /// The chance to drop an entry, 0 ≤ dropout_p < 1.
    pub dropout_p: f64,
    /// The 64-bit seed.
    pub philox_seed: u64,
    /// Separates draws with one seed, such as the layers or steps of a training run.
    pub philox_offset: u32,
}

impl Dropout {
    /// Drops each entry with chance `dropout_p` (0 ≤ dropout_p < 1), drawn with this seed at offset 0.
    pub const fn new(dropout_p: f64, philox_seed: u64) -> Self {
        Self { dropout_p, philox_seed, philox_offset: 0 }
    }

    /// Draws at another offset.
    pub const fn with_philox_offset(mut self, philox_offset: u32) -> Self {
        self.philox_offset = philox_offset;
        self
    }

    /// An entry is dropped if its random word is below this.
    pub fn threshold(&self) -> u32 {
        // The cast saturates: a chance within 2⁻³³ of 1 still keeps the largest word.
        (self.dropout_p * 4_294_967_296.0).round() as u32
    }

    /// The factor on kept entries, 1/(1 − dropout_p).
    pub fn keep_scale(&self) -> f64 {
        1.0 / (1.0 - self.dropout_p)
    }
}
