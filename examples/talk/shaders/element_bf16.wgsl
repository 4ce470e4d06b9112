// Four elements of a row, in bf16, the upper half of an f32: two in a word.
alias Quad = vec2<u32>;

fn decode(quad: Quad) -> vec4<f32> {
  let low = bitcast<vec2<f32>>(quad << vec2<u32>(16u));
  let high = bitcast<vec2<f32>>(quad & vec2<u32>(0xffff0000u));
  return vec4<f32>(low.x, high.x, low.y, high.y);
}

// To the nearest, ties to even.
fn encode(values: vec4<f32>) -> Quad {
  let bits = bitcast<vec4<u32>>(values);
  let rounded = (bits + 0x7fffu + ((bits >> vec4<u32>(16u)) & vec4<u32>(1u))) >> vec4<u32>(16u);
  return rounded.xz | (rounded.yw << vec2<u32>(16u));
}
