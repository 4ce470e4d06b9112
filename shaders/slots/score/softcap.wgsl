// S → softcap · tanh(S / softcap). Its table holds softcap.

// softcap and 1 / softcap.
fn score_softcap_of_head(batch: u32, head: u32) -> vec2<f32> {
  let softcap = bitcast<f32>(tables[tables[TABLE_softcap]]);
  return vec2<f32>(softcap, min(1.0 / softcap, 3.0e38));
}

fn score_softcap(score: vec4<f32>, cell: Cell) -> vec4<f32> {
  return head_softcap.x * tanh_of(score * head_softcap.y);
}

fn score_softcap_gradient(gradient: vec4<f32>, score: vec4<f32>, cell: Cell) -> vec4<f32> {
  let share = tanh_of(score * head_softcap.y);
  return gradient * fma(-share, share, vec4<f32>(1.0));
}
