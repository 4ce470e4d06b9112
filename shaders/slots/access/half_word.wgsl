// Tensors of any shape whose elements are halves of 32-bit words. `valid` is as in single.wgsl.

fn half_of(word: u32, index: u32) -> u32 { return (word >> (16u * (index & 1u))) & 0xffffu; }

// unroll LOADED in LOADED_ROW, DECODE in DECODE_ROW {
  alias LOADED = vec4<f32>;

  fn DECODE(loaded: LOADED) -> vec4<f32> { return loaded; }

  // unroll TENSOR in INPUTS {
    @group(0) @binding(BINDING_TENSOR) var<storage, read> TENSOR: array<u32>;

    fn load_half_TENSOR(index: u32) -> f32 { return decode_half(half_of(TENSOR[index / 2u], index)); }

    fn load_TENSOR(index: u32, valid: u32) -> LOADED {
      let last = valid - 1u;
      let x = load_half_TENSOR(index);
      let y = load_half_TENSOR(index + min(1u, last));
      let z = load_half_TENSOR(index + min(2u, last));
      let w = load_half_TENSOR(index + min(3u, last));
      return select(vec4<f32>(0.0), vec4<f32>(x, y, z, w), vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(valid));
    }
  // }
// }

// If a row has an odd number of elements, one word holds the end of this row and the start of another, which another
// workgroup may write at the same time. Atomic operations clear and set one half and do not touch the other. The halves
// are disjoint, so the order of the writers does not matter, and the result is the same in every run.

// unroll TENSOR in OUTPUTS {
  @group(0) @binding(BINDING_TENSOR) var<storage, read_write> TENSOR: array<atomic<u32>>;

  fn store_half_TENSOR(index: u32, value: f32) {
    let shift = 16u * (index & 1u);
    atomicAnd(&TENSOR[index / 2u], ~(0xffffu << shift));
    atomicOr(&TENSOR[index / 2u], encode_half(value) << shift);
  }

  fn store_TENSOR(index: u32, valid: u32, value: vec4<f32>) {
    store_half_TENSOR(index, value.x);
    if valid > 1u { store_half_TENSOR(index + 1u, value.y); }
    if valid > 2u { store_half_TENSOR(index + 2u, value.z); }
    if valid > 3u { store_half_TENSOR(index + 3u, value.w); }
  }
// }
