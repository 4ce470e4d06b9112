// Score modifiers: they change a score between softmax_scale · Q Kᵀ and the mask. They form a chain (slot score), in
// the order of the list SCORE_MODS. If the list is empty, this file is left out and costs nothing.

// S as the softmax takes it, from softmax_scale · Q Kᵀ. Both are in units of log2(e); modifiers see natural scores.
fn scored(s: vec4<f32>, cell: Cell) -> vec4<f32> {
  var score = s * LN_2;
  // unroll MOD in SCORE_MODS {
    score = score_MOD(score, cell);
  // }
  return score * LOG2_E;
}

// The same, where what the mask hides is in memory as MASKED.
fn scored_if_seen(s: vec4<f32>, cell: Cell) -> vec4<f32> {
  return select(scored(s, cell), vec4<f32>(MASKED), s == vec4<f32>(MASKED));
}

// The gradient of softmax_scale · Q Kᵀ, which is s, from that of S: back through the chain, past the score that each
// modifier was given.
fn score_gradient(ds: vec4<f32>, s: vec4<f32>, cell: Cell) -> vec4<f32> {
  var score = s * LN_2;
  // unroll MOD in SCORE_MODS {
    let given_MOD = score;
    score = score_MOD(score, cell);
  // }
  var gradient = ds;
  // unroll MOD in SCORE_MODS_BACK {
    gradient = score_MOD_gradient(gradient, given_MOD, cell);
  // }
  return gradient;
}

// The same for one score, the first of the cell.
fn scored_one(s: f32, cell: Cell) -> f32 { return scored(vec4<f32>(s), cell).x; }

fn score_gradient_one(ds: f32, s: f32, cell: Cell) -> f32 {
  return score_gradient(vec4<f32>(ds), vec4<f32>(s), cell).x;
}
