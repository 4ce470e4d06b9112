// |p − j| < step, or p − j is a multiple of step, which the table holds.
fn sees_strided(cell: Cell) -> vec4<bool> {
  let step = vec4<i32>(i32(tables[tables[TABLE_strided]]));
  let distance = abs(vec4<i32>(position_of(cell.batch, cell.i)) - keys_of_cell(cell));
  return (distance < step) | (distance % step == vec4<i32>(0));
}
