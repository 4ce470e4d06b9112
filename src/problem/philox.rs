//! Philox4x32-10, a counter-based random generator: one call turns a key and a counter into four words.
//!
//! J. K. Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011.

const MULTIPLIERS: [u64; 2] = [0xD251_1F53, 0xCD9E_8D57];
/// The golden ratio and √3 − 1, as 32-bit fractions.
const KEY_STEPS: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
const ROUNDS: u32 = 10;

/// Four random words from a key and a counter.
///
/// ```
/// let words = wgpu_flash_attention::reference::philox4x32_10([0, 0], [0, 0, 0, 0]);
/// assert_eq!(words, [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8]);
/// ```
pub fn philox4x32_10(key: [u32; 2], counter: [u32; 4]) -> [u32; 4] {
    let mut key = key;
    let mut state = counter;
    for _ in 0..ROUNDS {
        let product_0 = MULTIPLIERS[0] * u64::from(state[0]);
        let product_1 = MULTIPLIERS[1] * u64::from(state[2]);
        state = [
            (product_1 >> 32) as u32 ^ state[1] ^ key[0],
            product_1 as u32,
            (product_0 >> 32) as u32 ^ state[3] ^ key[1],
            product_0 as u32,
        ];
        key = [key[0].wrapping_add(KEY_STEPS[0]), key[1].wrapping_add(KEY_STEPS[1])];
    }
    state
}
