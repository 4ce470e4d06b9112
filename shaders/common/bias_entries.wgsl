// Entries of a bias one by one, at any strides.
@group(0) @binding(BINDING_bias) var<storage, read> bias: array<u32>;

// Four neighbouring keys of the row that starts at `of_row`.
fn bias_at(of_row: u32, key: u32) -> vec4<f32> {
  let keys = min(vec4<u32>(key) + vec4<u32>(0u, 1u, 2u, 3u), vec4<u32>(params.seqlen_kv - 1u));
  let at = vec4<u32>(of_row) + keys * params.bias_stride_key;
  return vec4<f32>(bias_entry(at.x), bias_entry(at.y), bias_entry(at.z), bias_entry(at.w));
}
