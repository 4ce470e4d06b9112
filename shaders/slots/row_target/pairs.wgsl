// Rows of 16-bit elements that are whole words.
// unroll TENSOR in TARGET {
  @group(0) @binding(BINDING_TENSOR) var<storage, read_write> TENSOR: array<u32>;

  fn target_word(index: u32) -> u32 { return TENSOR[index]; }

  // Four dimensions, from `dim` on, of the row that starts at `first`.
  fn store_row(first: u32, dim: u32, value: vec4<f32>, stored: bool, invocation: u32) {
    let at = (first + dim) / 2u;
    if stored { TENSOR[at] = target_half(value.x) | (target_half(value.y) << 16u); }
    if stored && dim + 2u < DIM { TENSOR[at + 1u] = target_half(value.z) | (target_half(value.w) << 16u); }
  }
// }
