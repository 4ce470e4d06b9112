// |p − j| ≤ window, or j < global, or p < global: the table holds window and global. With no global tokens, rows
// before the first key (p < 0) have none either.
fn sees_longformer(cell: Cell) -> vec4<bool> {
  let table = tables[TABLE_longformer];
  let window = vec4<i32>(i32(tables[table]));
  let global = vec4<i32>(i32(tables[table + 1u]));
  let p = vec4<i32>(position_of(cell.batch, cell.i));
  let j = keys_of_cell(cell);
  return (abs(p - j) <= window) | ((min(p, j) < global) & (global > vec4<i32>(0)));
}
