// Entries of a bias in f32, four neighbouring keys at a time: rows are whole quads.
@group(0) @binding(BINDING_bias) var<storage, read> bias: array<vec4<f32>>;

fn bias_at(of_row: u32, key: u32) -> vec4<f32> {
  return bias[(of_row + min(key, (params.seqlen_kv - 1u) / 4u * 4u)) / 4u];
}
