// ALiBi (Press et al. 2022): S → S − slope · |i + mask_offset − j|. Its table holds first the distance from the slopes
// of one sequence to those of the next (0 if all sequences have the same), and then the slopes of the heads.

// The slope, and the diagonal of the sequence.
fn score_alibi_of_head(batch: u32, head: u32) -> vec2<f32> {
  let table = tables[TABLE_alibi];
  let slope = bitcast<f32>(tables[table + 1u + batch * tables[table] + head]);
  return vec2<f32>(slope, bitcast<f32>(mask_offset_of(batch)));
}

fn score_alibi(score: vec4<f32>, cell: Cell) -> vec4<f32> {
  let to_first_key = i32(cell.i) + bitcast<i32>(head_alibi.y) - i32(cell.key);
  let distance = abs(vec4<f32>(f32(to_first_key)) - vec4<f32>(0.0, 1.0, 2.0, 3.0));
  return fma(vec4<f32>(-head_alibi.x), distance, score);
}

fn score_alibi_gradient(gradient: vec4<f32>, score: vec4<f32>, cell: Cell) -> vec4<f32> { return gradient; }
