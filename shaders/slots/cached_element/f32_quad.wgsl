// K and V of f32, whatever the element of Q and O: quads.
alias Loaded = vec4<f32>;

fn decode(loaded: Loaded) -> vec4<f32> { return loaded; }

// unroll TENSOR in CACHES {
  @group(0) @binding(BINDING_TENSOR) var<storage, read> TENSOR: array<vec4<f32>>;

  fn load_TENSOR(index: u32, valid: u32) -> Loaded { return TENSOR[index / 4u]; }
// }
