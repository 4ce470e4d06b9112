// tanh, right to four units in the last place of 1, which is far below what 16-bit elements have lost before: small
// numbers lose bits. 1 and −1 for infinities, NaN for NaN. 1 / y is the square of 1 / √y: one step on GPUs, and a
// division is many.
fn tanh_of(x: vec4<f32>) -> vec4<f32> {
  let root = inverseSqrt(exp2(x * (2.0 * LOG2_E)) + vec4<f32>(1.0));
  return fma(vec4<f32>(-2.0) * root, root, vec4<f32>(1.0));
}
