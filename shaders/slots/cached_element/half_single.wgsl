// K and V of 16 bits, whatever the element of Q and O, element by element: see slots/access/half_word.wgsl.
alias Loaded = vec4<f32>;

fn decode(loaded: Loaded) -> vec4<f32> { return loaded; }

fn cached_half(word: u32, index: u32) -> f32 { return cached_pair(word >> (16u * (index & 1u))).x; }

// unroll TENSOR in CACHES {
  @group(0) @binding(BINDING_TENSOR) var<storage, read> TENSOR: array<u32>;

  fn load_one_TENSOR(index: u32) -> f32 { return cached_half(TENSOR[index / 2u], index); }

  fn load_TENSOR(index: u32, valid: u32) -> Loaded {
    let last = valid - 1u;
    let x = load_one_TENSOR(index);
    let y = load_one_TENSOR(index + min(1u, last));
    let z = load_one_TENSOR(index + min(2u, last));
    let w = load_one_TENSOR(index + min(3u, last));
    return select(vec4<f32>(0.0), vec4<f32>(x, y, z, w), vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(valid));
  }
// }
