// Gradients in f32, rows of any length, added to what is there.

// unroll TENSOR in F32_OUTPUTS {
  @group(0) @binding(BINDING_TENSOR) var<storage, read_write> TENSOR: array<f32>;

  fn store_TENSOR(index: u32, valid: u32, value: vec4<f32>) {
    TENSOR[index] += value.x;
    if valid > 1u { TENSOR[index + 1u] += value.y; }
    if valid > 2u { TENSOR[index + 2u] += value.z; }
    if valid > 3u { TENSOR[index + 3u] += value.w; }
  }
// }
