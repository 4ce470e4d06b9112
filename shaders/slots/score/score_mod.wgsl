// S → score_mod(S, …), a function in the caller's own WGSL. Its names begin with wgsl_score_ here.

fn score_score_mod_of_head(batch: u32, head: u32) -> vec2<f32> { return vec2<f32>(0.0); }

fn score_score_mod(score: vec4<f32>, cell: Cell) -> vec4<f32> {
  return vec4<f32>(
    one_score_mod(score.x, cell, 0u),
    one_score_mod(score.y, cell, 1u),
    one_score_mod(score.z, cell, 2u),
    one_score_mod(score.w, cell, 3u),
  );
}

fn one_score_mod(score: f32, cell: Cell, of_cell: u32) -> f32 {
  start_wgsl(SCORE_TURNS);
  // unroll BATCH in WGSL_BATCH, HEAD in WGSL_HEAD {
    let modified = wgsl_score_score_mod(score, BATCH, HEAD, wgsl_row(cell), wgsl_key(cell, of_cell));
  // }
  return unless_spent(modified);
}
