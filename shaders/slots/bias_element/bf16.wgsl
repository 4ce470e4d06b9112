// Entries of a bias in bf16, in pairs: the upper half of an f32 each.

fn bias_entry(index: u32) -> f32 {
  let pair = bias[index / 2u];
  return bitcast<f32>(select(pair << 16u, pair & 0xffff0000u, index % 2u == 1u));
}
