// Rows of f32.
// unroll TENSOR in TARGET {
  @group(0) @binding(BINDING_TENSOR) var<storage, read_write> TENSOR: array<u32>;

  fn target_word(index: u32) -> u32 { return TENSOR[index]; }

  // Four dimensions, from `dim` on, of the row that starts at `first`.
  fn store_row(first: u32, dim: u32, value: vec4<f32>, stored: bool, invocation: u32) {
    let bits = bitcast<vec4<u32>>(value);
    let at = first + dim;
    if stored { TENSOR[at] = bits.x; }
    if stored && dim + 1u < DIM { TENSOR[at + 1u] = bits.y; }
    if stored && dim + 2u < DIM { TENSOR[at + 2u] = bits.z; }
    if stored && dim + 3u < DIM { TENSOR[at + 3u] = bits.w; }
  }
// }
