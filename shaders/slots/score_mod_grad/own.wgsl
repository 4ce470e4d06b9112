// score_mod_grad, a function in the caller's own WGSL.

fn score_score_mod_gradient(gradient: vec4<f32>, score: vec4<f32>, cell: Cell) -> vec4<f32> {
  return vec4<f32>(
    one_score_mod_grad(gradient.x, score.x, cell, 0u),
    one_score_mod_grad(gradient.y, score.y, cell, 1u),
    one_score_mod_grad(gradient.z, score.z, cell, 2u),
    one_score_mod_grad(gradient.w, score.w, cell, 3u),
  );
}

// Hidden scores have a gradient of 0, and it stays 0 whatever the function makes of such a score.
fn one_score_mod_grad(gradient: f32, score: f32, cell: Cell, of_cell: u32) -> f32 {
  if gradient == 0.0 { return 0.0; }
  start_wgsl(SCORE_TURNS);
  // unroll BATCH in WGSL_BATCH, HEAD in WGSL_HEAD {
    let of_score = wgsl_score_score_mod_grad(gradient, score, BATCH, HEAD, wgsl_row(cell), wgsl_key(cell, of_cell));
  // }
  return unless_spent(of_score);
}
