// Entries of a bias in bf16, four neighbouring keys at a time: rows are whole quads. Each is the upper half of an f32.
@group(0) @binding(BINDING_bias) var<storage, read> bias: array<vec2<u32>>;

fn bias_at(of_row: u32, key: u32) -> vec4<f32> {
  let pairs = bias[(of_row + min(key, (params.seqlen_kv - 1u) / 4u * 4u)) / 4u].xxyy;
  let is_upper = vec4<bool>(false, true, false, true);
  return bitcast<vec4<f32>>(select(pairs << vec4<u32>(16u), pairs & vec4<u32>(0xffff0000u), is_upper));
}
