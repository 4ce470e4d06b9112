// A loaded value is decoded, scaled, and rounded to f16. The scale of f16 elements is 1, so they do not change.
fn to_half(loaded: Loaded, scale: f32) -> vec4<f16> { return vec4<f16>(decode(loaded) * scale); }

fn as_half(value: vec4<f32>) -> vec4<f16> { return vec4<f16>(value); }

// Infinities in Q and K give infinite scores by themselves.
fn operand_K(loaded: Loaded) -> Loaded { return loaded; }
fn operand_V(loaded: Loaded) -> Loaded { return loaded; }
fn stands_for_infinity(score: f32) -> bool { return false; }
