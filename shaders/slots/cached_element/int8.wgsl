// K and V of signed bytes. A row is a word with its scale, an f32, then four bytes in a word. Indices and strides count
// bytes, without the scale's four: those of a dimension are where they would be if elements were bytes.

// The scale, and four bytes.
alias Loaded = vec2<u32>;

fn decode(loaded: Loaded) -> vec4<f32> {
  let bytes = bitcast<vec4<i32>>(vec4<u32>(loaded.y) << vec4<u32>(24u, 16u, 8u, 0u)) >> vec4<u32>(24u);
  return bitcast<f32>(loaded.x) * vec4<f32>(bytes);
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
