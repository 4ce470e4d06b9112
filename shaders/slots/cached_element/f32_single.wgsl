// K and V of f32, whatever the element of Q and O, element by element: see slots/access/single.wgsl.
alias Loaded = vec4<f32>;

fn decode(loaded: Loaded) -> vec4<f32> { return loaded; }

// unroll TENSOR in CACHES {
  @group(0) @binding(BINDING_TENSOR) var<storage, read> TENSOR: array<f32>;

  fn load_TENSOR(index: u32, valid: u32) -> Loaded {
    let last = valid - 1u;
    let value = vec4<f32>(
      TENSOR[index], TENSOR[index + min(1u, last)], TENSOR[index + min(2u, last)], TENSOR[index + min(3u, last)]);
    return select(vec4<f32>(0.0), value, vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(valid));
  }
// }
