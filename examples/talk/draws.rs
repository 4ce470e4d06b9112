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

    /// `len` numbers of a stream, normal with mean 0 and variance 1, each passed to `make`: computed by all cores. Numbers 4b
    /// to 4b + 3 come from Philox(key = seed, counter = (low and high word of b, stream, purpose)), two from each pair of words
    /// (Box and Muller).
    pub fn normals(&self, stream: u32, len: usize, make: impl Fn(f64) -> f32 + Sync) -> Vec<f32> {
        let cores = thread::available_parallelism().map_or(1, |cores| cores.get());
        let share = len.div_ceil(cores).next_multiple_of(4).max(4);
        let mut values = vec![0.0; len];
        thread::scope(|scope| {
            for (i, piece) in values.chunks_mut(share).enumerate() {
                let (make, first) = (&make, (i * share / 4) as u64);
                scope.spawn(move || {
                    for (block, places) in (first..).zip(piece.chunks_mut(4)) {
                        places.iter_mut().zip(self.four_normals(stream, block)).for_each(|(p, x)| *p = make(x));
                    }
                });
            }
        });
        values
    }

    fn four_normals(&self, stream: u32, block: u64) -> [f64; 4] {
        let words = self.words(stream, block);
        let unit = |word: u32| (f64::from(word) + 0.5) / 4_294_967_296.0;
        let pair = |a: u32, b: u32| {
            let radius = (-2.0 * unit(a).ln()).sqrt();
            let (sine, cosine) = (std::f64::consts::TAU * unit(b)).sin_cos();
            [radius * cosine, radius * sine]
        };
        let ([a, b], [c, d]) = (pair(words[0], words[1]), pair(words[2], words[3]));
        [a, b, c, d]
    }

    /// Four random words: Philox(key = seed, counter = (low and high word of `block`, stream, purpose)).
    pub fn words(&self, stream: u32, block: u64) -> [u32; 4] {
        philox4x32_10(self.key, [block as u32, (block >> 32) as u32, stream, self.purpose])
    }
}
