// K and V of signed bytes. A row is a word with its scale, an f32, then four bytes in a word. Indices and strides count
// bytes, without the scale's four: those of a dimension are where they would be if elements were bytes.

// The scale, and four bytes.
alias Loaded = vec2<u32>;

fn decode(loaded: Loaded) -> vec4<f32> { return scale_of(loaded) * decode_bytes(loaded); }

fn scale_of(loaded: Loaded) -> f32 { return bitcast<f32>(loaded.x); }

// A byte plus 128 stands in the lowest bits of 2²³ + 128 + byte. This is exact, and a GPU converts integers at a
// quarter of the pace.
fn decode_bytes(loaded: Loaded) -> vec4<f32> {
  let bytes = (vec4<u32>(loaded.y ^ 0x80808080u) >> vec4<u32>(0u, 8u, 16u, 24u)) & vec4<u32>(0xffu);
  return bitcast<vec4<f32>>(bytes | vec4<u32>(0x4b000000u)) - vec4<f32>(8388736.0);
}

// unroll TENSOR in CACHES {
  @group(0) @binding(BINDING_TENSOR) var<storage, read> TENSOR: array<u32>;
// }

// `valid` is how many elements are left in the row, so it says where the row starts.
fn load_k(index: u32, valid: u32) -> Loaded {
  return vec2<u32>(k[(index + valid - HEAD_DIM) / 4u], k[index / 4u + 1u]);
}
fn load_v(index: u32, valid: u32) -> Loaded {
  return vec2<u32>(v[(index + valid - HEAD_DIM_V) / 4u], v[index / 4u + 1u]);
}
