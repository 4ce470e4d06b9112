// What was loaded is decoded, scaled, and rounded to what matrices take; the scale of halves is 1, and they stay what
// they were.
fn to_half(loaded: Loaded, scale: f32) -> vec4<f16> { return vec4<f16>(decode(loaded) * scale); }

fn as_half(value: vec4<f32>) -> vec4<f16> { return vec4<f16>(value); }

// Infinities in Q and K give infinite scores by themselves.
fn score_operand(loaded: Loaded) -> Loaded { return loaded; }
fn stands_for_infinity(score: f32) -> bool { return false; }
