/// Dropout on the probabilities. The entry (batch, head, row i, key j) is kept where
/// `philox4x32_10(key, counter)[j % 4] ≥ round(dropout_p · 2³²)` with key = the low and high word of the seed and
/// counter = (j / 4, i, batch · num_heads + head, philox_offset).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dropout {
    /// The chance to drop an entry, 0 ≤ dropout_p < 1.
    pub dropout_p: f64,
    /// The 64-bit seed.
    pub philox_seed: u64,
    /// Tells apart draws with one seed, such as the layers or steps of a training run.
    pub philox_offset: u32,
}

impl Dropout {
    /// A random word below this drops its entry.
    pub fn threshold(&self) -> u32 {
        // The cast saturates: a chance within 2⁻³³ of 1 still keeps the largest word.
        (self.dropout_p * 4_294_967_296.0).round() as u32
    }

    /// The factor on kept entries, 1/(1 − dropout_p).
    pub fn keep_scale(&self) -> f64 {
        1.0 / (1.0 - self.dropout_p)
    }
}
