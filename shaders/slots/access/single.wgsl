// Tensors of any shape, element by element. `valid` (at least 1) says how many elements are left in the row. The others
// belong to a neighbour: they are neither read nor written, and load as 0.

// unroll LOADED in LOADED_ROW, DECODE in DECODE_ROW {
  alias LOADED = vec4<f32>;

  fn DECODE(loaded: LOADED) -> vec4<f32> { return loaded; }

  // unroll TENSOR in INPUTS {
    @group(0) @binding(BINDING_TENSOR) var<storage, read> TENSOR: array<Single>;

    fn load_TENSOR(index: u32, valid: u32) -> LOADED {
      let last = valid - 1u;
      let x = decode_single(TENSOR[index]);
      let y = decode_single(TENSOR[index + min(1u, last)]);
      let z = decode_single(TENSOR[index + min(2u, last)]);
      let w = decode_single(TENSOR[index + min(3u, last)]);
      return select(vec4<f32>(0.0), vec4<f32>(x, y, z, w), vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(valid));
    }
  // }
// }

// unroll TENSOR in OUTPUTS {
  @group(0) @binding(BINDING_TENSOR) var<storage, read_write> TENSOR: array<Single>;

  fn store_TENSOR(index: u32, valid: u32, value: vec4<f32>) {
    TENSOR[index] = encode_single(value.x);
    if valid > 1u { TENSOR[index + 1u] = encode_single(value.y); }
    if valid > 2u { TENSOR[index + 2u] = encode_single(value.z); }
    if valid > 3u { TENSOR[index + 3u] = encode_single(value.w); }
  }
// }
