// What was loaded is decoded, and rounded to what matrices take; halves stay what they were.
fn to_half(loaded: Loaded) -> vec4<f16> { return vec4<f16>(decode(loaded)); }
