// ALiBi (Press et al. 2022): S → S − slope · |i + mask_offset − j|. Its table holds first the distance from the slopes
// of one sequence to those of the next (0 if all sequences have the same), and then the slopes of the heads.

fn score_alibi(score: vec4<f32>, cell: Cell) -> vec4<f32> {
  let table = tables[TABLE_alibi];
  let slope = bitcast<f32>(tables[table + 1u + cell.batch * tables[table] + cell.head]);
  let to_first_key = i32(cell.i) + mask_offset_of(cell.batch) - i32(cell.key);
  let distance = abs(vec4<i32>(to_first_key) - vec4<i32>(0, 1, 2, 3));
  return fma(vec4<f32>(-slope), vec4<f32>(distance), score);
}

fn score_alibi_gradient(gradient: vec4<f32>, score: vec4<f32>, cell: Cell) -> vec4<f32> { return gradient; }
