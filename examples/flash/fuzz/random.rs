//! Random numbers, the same on every machine.

use crate::random::{SPLITMIX, mixed};

/// SplitMix64.
pub struct Random(u64);

impl Random {
    /// The numbers of a seed; each stream has its own.
    pub fn new(seed: u64, stream: u64) -> Self {
        let mut random = Self(seed);
        Self(random.word() ^ stream.wrapping_mul(0xd1b5_4a32_d192_ed03))
    }

    pub fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(SPLITMIX);
        mixed(self.0)
    }

    /// One of 0, 1, …, count − 1; 0 of none.
    pub fn below(&mut self, count: u64) -> u64 {
        self.word() % count.max(1)
    }

    pub fn one_in(&mut self, count: u64) -> bool {
        self.below(count) == 0
    }

    /// One of `first`, …, `last`.
    pub fn between(&mut self, first: u64, last: u64) -> u64 {
        first + self.below(last - first + 1)
    }

    /// One of these.
    pub fn of(&mut self, values: &[u64]) -> u64 {
        values[self.below(values.len() as u64) as usize]
    }

    /// Normal with mean 0 and variance 1 (Box and Muller).
    pub fn normal(&mut self) -> f64 {
        let mut unit = || ((self.word() >> 11) + 1) as f64 / (1u64 << 53) as f64;
        (-2.0 * unit().ln()).sqrt() * (std::f64::consts::TAU * unit()).cos()
    }
}
