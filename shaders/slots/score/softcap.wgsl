// S → softcap · tanh(S / softcap). Its table holds softcap.

// softcap and 1 / softcap.
fn score_softcap_of_head(batch: u32, head: u32) -> vec2<f32> {
  let softcap = bitcast<f32>(tables[tables[TABLE_softcap]]);
  return vec2<f32>(softcap, min(1.0 / softcap, 3.0e38));
}

// tanh, right to a few units in the last place, 1 and −1 for infinities, NaN for NaN: WGSL promises none of that for
// its own.
fn tanh_of(x: vec4<f32>) -> vec4<f32> {
  let square = x * x;
  var series = fma(square, vec4<f32>(-0.00626912), vec4<f32>(0.02111096));
  series = fma(series, square, vec4<f32>(-0.053873949));
  series = fma(series, square, vec4<f32>(0.133329154));
  series = fma(series, square, vec4<f32>(-0.333333303));
  let small = fma(series * square, x, x);
  let size = vec4<f32>(1.0) - vec4<f32>(2.0) / (exp2(abs(x) * (2.0 * LOG2_E)) + vec4<f32>(1.0));
  return select(small, select(-size, size, x > vec4<f32>(0.0)), abs(x) > vec4<f32>(0.6));
}

fn score_softcap(score: vec4<f32>, cell: Cell) -> vec4<f32> {
  return head_softcap.x * tanh_of(score * head_softcap.y);
}

fn score_softcap_gradient(gradient: vec4<f32>, score: vec4<f32>, cell: Cell) -> vec4<f32> {
  let share = tanh_of(score * head_softcap.y);
  return gradient * fma(-share, share, vec4<f32>(1.0));
}
