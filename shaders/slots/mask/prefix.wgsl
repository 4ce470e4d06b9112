// j < len or j ≤ p; the table holds len.
fn sees_prefix(cell: Cell) -> vec4<bool> {
  let len = vec4<i32>(i32(tables[tables[TABLE_prefix]]));
  let j = keys_of_cell(cell);
  return (j < len) | (j <= vec4<i32>(position_of(cell.batch, cell.i)));
}
