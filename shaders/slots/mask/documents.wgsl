// Equal ids at p and j. The table holds the distance from one sequence to the next, 0 if all have the same ids, then an
// id for each key.
fn sees_documents(cell: Cell) -> vec4<bool> {
  let table = tables[TABLE_documents];
  let ids = table + 1u + cell.batch * tables[table];
  // Positions before the first key have no id. Keys outside the tensors are hidden anyway.
  let p = position_of(cell.batch, cell.i);
  let last = vec4<i32>(i32(params.seqlen_kv) - 1);
  let j = vec4<u32>(clamp(keys_of_cell(cell), vec4<i32>(0), last));
  let id = tables[ids + u32(clamp(p, 0, last.x))];
  let of_keys = vec4<u32>(tables[ids + j.x], tables[ids + j.y], tables[ids + j.z], tables[ids + j.w]);
  return (of_keys == vec4<u32>(id)) & vec4<bool>(p >= 0 && p <= last.x);
}
