// Score modifiers: they change a score between softmax_scale · Q Kᵀ and the mask. They form a chain (slot score), in
// the order of the list SCORE_MODS. If the list is empty, this file is left out and costs nothing.

// What the modifiers need of a head: two numbers each. They are read once for many scores.
// unroll MOD in SCORE_MODS {
  var<private> head_MOD: vec2<f32> = vec2<f32>(0.0);
// }

// The scores that follow are of this sequence and head, counted from the first of this dispatch.
fn enter_head(batch: u32, head: u32) {
  // unroll MOD in SCORE_MODS {
    head_MOD = score_MOD_of_head(params.batch_first + batch, params.head_first + head);
  // }
}

// S as the softmax takes it, from softmax_scale · Q Kᵀ, both natural.
fn scored_natural(s: vec4<f32>, cell: Cell) -> vec4<f32> {
  var score = s;
  // unroll MOD in SCORE_MODS {
    score = score_MOD(score, cell);
  // }
  return score;
}

// The same in units of log2(e).
fn scored(s: vec4<f32>, cell: Cell) -> vec4<f32> { return scored_natural(s * LN_2, cell) * LOG2_E; }

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
