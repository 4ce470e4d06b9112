// Rows of 16-bit elements, of which two may share a word: see slots/access/half_word.wgsl.
// unroll TENSOR in TARGET {
  @group(0) @binding(BINDING_TENSOR) var<storage, read_write> TENSOR: array<atomic<u32>>;

  fn target_word(index: u32) -> u32 { return atomicLoad(&TENSOR[index]); }

  fn store_half(index: u32, value: f32) {
    let shift = 16u * (index & 1u);
    atomicAnd(&TENSOR[index / 2u], ~(0xffffu << shift));
    atomicOr(&TENSOR[index / 2u], target_half(value) << shift);
  }

  // Four dimensions, from `dim` on, of the row that starts at `first`.
  fn store_row(first: u32, dim: u32, value: vec4<f32>, stored: bool, invocation: u32) {
    let at = first + dim;
    if stored { store_half(at, value.x); }
    if stored && dim + 1u < DIM { store_half(at + 1u, value.y); }
    if stored && dim + 2u < DIM { store_half(at + 2u, value.z); }
    if stored && dim + 3u < DIM { store_half(at + 3u, value.w); }
  }
// }
