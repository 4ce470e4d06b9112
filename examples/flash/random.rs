//! Inputs that look like a normal distribution and depend on nothing but their position, so that a tensor of any size
//! can be uploaded in pieces and read again in places without being kept.

/// The value at `index` of tensor number `stream`: mean 0, variance 1, within ±3.5.
pub fn normal_like(stream: u64, index: u64) -> f64 {
    // The sum of four uniform numbers of 16 bits.
    let z = mixed(index.wrapping_add(stream.wrapping_mul(0xd1b5_4a32_d192_ed03)).wrapping_mul(SPLITMIX));
    let sum = (z & 0xffff) + (z >> 16 & 0xffff) + (z >> 32 & 0xffff) + (z >> 48);
    // Four uniform numbers from 0 to 1 have the mean 2 and the variance 1/3.
    (sum as f64 / 65_535.0 - 2.0) * 1.732_050_807_568_877_2
}

/// What SplitMix64 (Steele, Lea, Flood, OOPSLA 2014) adds for each number.
pub const SPLITMIX: u64 = 0x9e37_79b9_7f4a_7c15;

/// What it then makes of the sum.
pub fn mixed(sum: u64) -> u64 {
    let word = (sum ^ (sum >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}
