// A loaded value is decoded, scaled, and split into what f16 holds of it and the rest: 11 bits each. Infinities and
// NaNs have no rest.
fn to_half(loaded: Loaded, scale: f32) -> vec4<f16> {
  let value = decode(loaded) * scale;
  return vec4<f16>(select(value, rounded(value), are_finite(value)));
}

fn to_rest(loaded: Loaded, scale: f32) -> vec4<f16> {
  let value = decode(loaded) * scale;
  return vec4<f16>(select(vec4<f32>(0.0), value - rounded(value), are_finite(value)));
}

fn as_half(value: vec4<f32>) -> vec4<f16> { return vec4<f16>(rounded(value)); }
fn as_rest(value: vec4<f32>) -> vec4<f16> { return vec4<f16>(value - rounded(value)); }

// Rounded by its bits to the 11 of f16, since compilers take f32(f16(value)) for the value itself.
fn rounded(value: vec4<f32>) -> vec4<f32> {
  return bitcast<vec4<f32>>((bitcast<vec4<u32>>(value) + vec4<u32>(0x1000u)) & vec4<u32>(0xffffe000u));
}

// An infinity in Q or K becomes the largest number instead: its product with what others leave as rest may be NaN. What
// comes of it is far from every score of numbers, and a row that has no other sees nothing.
fn operand_K(loaded: Loaded) -> Loaded {
  let bits = bitcast<vec4<u32>>(loaded);
  let is_infinite = (bits & vec4<u32>(0x7fffffffu)) == vec4<u32>(0x7f800000u);
  return bitcast<vec4<f32>>(bits - select(vec4<u32>(0u), vec4<u32>(1u), is_infinite));
}
fn operand_V(loaded: Loaded) -> Loaded { return loaded; }
fn stands_for_infinity(score: f32) -> bool { return score < -1e30; }
