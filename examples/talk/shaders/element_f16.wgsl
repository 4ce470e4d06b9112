// Four elements of a row, in f16: two in a word, so that no device feature is needed.
alias Quad = vec2<u32>;

fn decode(quad: Quad) -> vec4<f32> {
  return vec4<f32>(unpack2x16float(quad.x), unpack2x16float(quad.y));
}

fn encode(values: vec4<f32>) -> Quad {
  return vec2<u32>(pack2x16float(values.xy), pack2x16float(values.zw));
}
