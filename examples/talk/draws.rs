//! Random numbers that depend on nothing but a seed, a purpose and a place (Philox), so that they are the same everywhere.

use std::thread;

use wgpu_flash_attention::reference::philox4x32_10;

/// Draws for one purpose.
#[derive(Clone, Copy, Debug)]
pub struct Draws {
    key: [u32; 2],
    purpose: u32,
}

impl Draws {
    /// Draws of one purpose are independent of those of another.
    pub fn new(seed: u64, purpose: &str) -> Self {
        // FNV-1a of the name.
        let hash =
            purpose.bytes().fold(0x811c_9dc5u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
        Self { key: [seed as u32, (seed >> 32) as u32], purpose: hash }
    }

    /// Word `index` of a stream: word index % 4 of Philox(key = seed, counter = (low and high word of index / 4, stream,
    /// purpose)).
    pub fn word(&self, stream: u32, index: u64) -> u32 {
        self.words(stream, index / 4)[(index % 4) as usize]
    }

    /// A normal number: mean 0, variance 1. Two words make two of them (Box and Muller).
    pub fn normal(&self, stream: u32, index: u64) -> f64 {
        let words = self.words(stream, index / 4);
        let [a, b] = if index % 4 < 2 { [words[0], words[1]] } else { [words[2], words[3]] };
        let unit = |word: u32| (f64::from(word) + 0.5) / 4_294_967_296.0;
        let radius = (-2.0 * unit(a).ln()).sqrt();
        let (sine, cosine) = (std::f64::consts::TAU * unit(b)).sin_cos();
        radius * if index.is_multiple_of(2) { cosine } else { sine }
    }

    fn words(&self, stream: u32, block: u64) -> [u32; 4] {
        philox4x32_10(self.key, [block as u32, (block >> 32) as u32, stream, self.purpose])
    }
}

/// `len` values, computed by all cores.
pub fn filled(len: usize, value: impl Fn(u64) -> f32 + Sync) -> Vec<f32> {
    let cores = thread::available_parallelism().map_or(1, |cores| cores.get());
    let share = len.div_ceil(cores).max(1);
    let mut values = vec![0.0; len];
    thread::scope(|scope| {
        for (i, piece) in values.chunks_mut(share).enumerate() {
            let (value, first) = (&value, i * share);
            scope.spawn(move || {
                for (j, place) in piece.iter_mut().enumerate() {
                    *place = value((first + j) as u64);
                }
            });
        }
    });
    values
}
