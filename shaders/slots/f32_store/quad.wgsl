// Tensors in f32 of a problem in another type, rows of whole quads.

// unroll TENSOR in F32_OUTPUTS {
  @group(0) @binding(BINDING_TENSOR) var<storage, read_write> TENSOR: array<vec4<f32>>;

  fn store_TENSOR(index: u32, valid: u32, value: vec4<f32>) { TENSOR[index / 4u] = value; }
// }
