// Tensors whose rows start at a multiple of four elements and are a multiple of four long: one vector load for four.

// unroll LOADED in LOADED_ROW, DECODE in DECODE_ROW {
  // What a load keeps in registers until it is used: the stored form, which for 16-bit elements is half as large.
  alias LOADED = Quad;

  fn DECODE(loaded: LOADED) -> vec4<f32> { return decode_quad(loaded); }

  // unroll TENSOR in INPUTS {
    @group(0) @binding(BINDING_TENSOR) var<storage, read> TENSOR: array<Quad>;

    fn load_TENSOR(index: u32, valid: u32) -> LOADED { return TENSOR[index / 4u]; }
  // }
// }

// unroll TENSOR in OUTPUTS {
  @group(0) @binding(BINDING_TENSOR) var<storage, read_write> TENSOR: array<Quad>;

  fn store_TENSOR(index: u32, valid: u32, value: vec4<f32>) { TENSOR[index / 4u] = encode_quad(value); }
// }
