// Entries of a bias in f16, four neighbouring keys at a time: rows are whole quads. No device feature is needed.
@group(0) @binding(BINDING_bias) var<storage, read> bias: array<vec2<u32>>;

fn bias_at(of_row: u32, key: u32) -> vec4<f32> {
  let pairs = bias[(of_row + min(key, (params.seqlen_kv - 1u) / 4u * 4u)) / 4u];
  return vec4<f32>(unpack2x16float(pairs.x), unpack2x16float(pairs.y));
}
