// K and V of 16 bits, whatever the element of Q and O: quads.
alias Loaded = vec2<u32>;

fn decode(loaded: Loaded) -> vec4<f32> { return vec4<f32>(cached_pair(loaded.x), cached_pair(loaded.y)); }

// unroll TENSOR in CACHES {
  @group(0) @binding(BINDING_TENSOR) var<storage, read> TENSOR: array<vec2<u32>>;

  fn load_TENSOR(index: u32, valid: u32) -> Loaded { return TENSOR[index / 4u]; }
// }
