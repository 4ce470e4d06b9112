// tanh, right to a few units in the last place, 1 and −1 for infinities, NaN for NaN: WGSL promises none of that for
// its own.
fn tanh_of(x: vec4<f32>) -> vec4<f32> {
  let square = x * x;
  var series = fma(square, vec4<f32>(-0.00626912), vec4<f32>(0.02111096));
  series = fma(series, square, vec4<f32>(-0.053873949));
  series = fma(series, square, vec4<f32>(0.133329154));
  series = fma(series, square, vec4<f32>(-0.333333303));
  let small = fma(series * square, x, x);
  // 1 / y as the square of 1 / √y: one step on GPUs, and a division is many.
  let root = inverseSqrt(exp2(abs(x) * (2.0 * LOG2_E)) + vec4<f32>(1.0));
  let size = fma(vec4<f32>(-2.0) * root, root, vec4<f32>(1.0));
  return select(small, select(-size, size, x > vec4<f32>(0.0)), abs(x) > vec4<f32>(0.6));
}
