// What was loaded is decoded, scaled, and rounded to what matrices take; the scale of halves is 1, and they stay what they
// were.
fn to_half(loaded: Loaded, scale: f32) -> vec4<f16> { return vec4<f16>(decode(loaded) * scale); }

fn as_half(value: vec4<f32>) -> vec4<f16> { return vec4<f16>(value); }
