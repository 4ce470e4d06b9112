// a · b + c, in the order that compiles to four fused multiply-adds.
fn dot_add(a: vec4<f32>, b: vec4<f32>, c: f32) -> f32 {
  return fma(a.w, b.w, fma(a.z, b.z, fma(a.y, b.y, fma(a.x, b.x, c))));
}

fn largest_of_four(value: vec4<f32>) -> f32 { return max(max(value.x, value.y), max(value.z, value.w)); }

// Told by the exponents' bits: WGSL compilers may assume that all is finite.
fn are_finite(value: vec4<f32>) -> vec4<bool> {
  return (bitcast<vec4<u32>>(value) & vec4<u32>(0x7f800000u)) != vec4<u32>(0x7f800000u);
}

// Likewise.
fn is_nan(value: f32) -> bool { return (bitcast<u32>(value) & 0x7fffffffu) > 0x7f800000u; }

// o + p · v where the pair is seen; else o, even if v is infinite or not a number. What is seen counts even if p is 0.
// (`seen` may be `!(s == MASKED)`, not `s != MASKED`: naga compiles that to a comparison that is false for NaN.)
fn add_seen(seen: bool, p: f32, v: vec4<f32>, o: vec4<f32>) -> vec4<f32> {
  return select(o, fma(vec4<f32>(p), v, o), vec4<bool>(seen));
}
