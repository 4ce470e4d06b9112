//! Numbers for tensors. They depend on seed and place alone, so each rank makes its own part.

use half::{bf16, f16};
use std::ops::Range;
use wgpu_flash_attention::Element;

/// After so many numbers of a row they begin again, in another order: drawing takes longer than uploading.
const DRAWN: usize = 1 << 16;

/// Q, K, V or dO, by number.
pub struct Numbers {
    drawn: Vec<u8>,
    size: usize,
}

impl Numbers {
    /// Nearly normal numbers of a type.
    pub fn new(element: Element, seed: u64, tensor: u64) -> Self {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (tensor << 56);
        let mut drawn = Vec::new();
        for _ in 0..DRAWN {
            let mut sum = 0.0f64;
            for _ in 0..6 {
                // SplitMix64: each word holds two numbers between 0 and 1.
                state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
                let word = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
                let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
                let word = word ^ (word >> 31);
                sum += (f64::from(word as u32) + f64::from((word >> 32) as u32)) / 4_294_967_296.0 - 1.0;
            }
            match element {
                Element::F16 => drawn.extend(f16::from_f64(sum).to_le_bytes()),
                Element::Bf16 => drawn.extend(bf16::from_f64(sum).to_le_bytes()),
                _ => drawn.extend((sum as f32).to_le_bytes()),
            }
        }
        Self { drawn, size: element.size() as usize }
    }

    /// Some rows of `width` numbers of a sequence.
    pub fn rows(&self, sequence: u32, rows: Range<u32>, width: u32) -> Vec<u8> {
        let bytes = width as usize * self.size;
        let mut filled = Vec::with_capacity(rows.len() * bytes);
        for row in rows {
            self.row(&mut filled, row as usize + sequence as usize * 7919, bytes);
        }
        filled
    }

    /// All of `[batch, length, width]`.
    pub fn all(&self, batch: u32, length: u32, width: u32) -> Vec<u8> {
        (0..batch).flat_map(|sequence| self.rows(sequence, 0..length, width)).collect()
    }

    /// One row, which starts elsewhere among the drawn numbers than its neighbours.
    fn row(&self, filled: &mut Vec<u8>, row: usize, bytes: usize) {
        let mut at = row.wrapping_mul(40_503) % DRAWN * self.size;
        let mut left = bytes;
        while left > 0 {
            let take = left.min(self.drawn.len() - at);
            filled.extend_from_slice(&self.drawn[at..at + take]);
            (at, left) = (0, left - take);
        }
    }
}
