// bfloat16: the upper half of an f32, two elements in a word, the first in its low half.
alias Quad = vec2<u32>;

fn decode_quad(stored: Quad) -> vec4<f32> {
  let low = stored << vec2<u32>(16u);
  let high = stored & vec2<u32>(0xffff0000u);
  return bitcast<vec4<f32>>(vec4<u32>(low.x, high.x, low.y, high.y));
}

fn encode_quad(value: vec4<f32>) -> Quad {
  return vec2<u32>(
    encode_half(value.x) | (encode_half(value.y) << 16u),
    encode_half(value.z) | (encode_half(value.w) << 16u),
  );
}

fn decode_half(half: u32) -> f32 { return bitcast<f32>(half << 16u); }

// Round to nearest, ties to even; a NaN keeps its upper bits and stays quiet.
fn encode_half(value: f32) -> u32 {
  let bits = bitcast<u32>(value);
  let rounded = (bits + 0x7fffu + ((bits >> 16u) & 1u)) >> 16u;
  return select(rounded, (bits >> 16u) | 0x40u, (bits & 0x7fffffffu) > 0x7f800000u);
}
