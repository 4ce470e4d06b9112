// Rows are read from one tensor and written to another.
// unroll TENSOR in ROWS {
  @group(0) @binding(BINDING_TENSOR) var<storage, read> TENSOR: array<u32>;

  fn source_word(index: u32) -> u32 { return TENSOR[index]; }
// }
