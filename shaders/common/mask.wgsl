// Four neighbouring scores of a row: sequence, query head, row and first key, all of the whole problem.
struct Cell {
  batch: u32,
  head: u32,
  i: u32,
  key: u32,
}

// The cell of sequence, head and row counted from the first of this dispatch.
fn cell_at(batch: u32, head: u32, row: u32, key: u32) -> Cell {
  return Cell(params.batch_first + batch, params.head_first + head, params.row_first + row, key);
}

// The keys that row i of a sequence (both of the whole problem) sees, as first and end; nothing is seen where
// end ≤ first.
fn visible_keys(batch: u32, i: u32) -> vec2<i32> {
  let diagonal = i32(i) + mask_offset_of(batch);
  let first = max(diagonal - params.window_left, 0);
  let end = min(diagonal + params.window_right + 1, i32(seqlen_kv_of(batch)));
  return select(vec2<i32>(0), vec2<i32>(first, end), has_row(batch, i));
}

// Which keys of a cell its row sees, where `visible` are its visible keys: also by every mask of the list KEY_MASKS
// (slot mask).
fn sees(visible: vec2<i32>, cell: Cell) -> vec4<bool> {
  let keys = vec4<i32>(i32(cell.key)) + vec4<i32>(0, 1, 2, 3);
  var seen = (keys >= vec4<i32>(visible.x)) & (keys < vec4<i32>(visible.y));
  // unroll MASK in KEY_MASKS {
    seen = seen & sees_MASK(cell);
  // }
  return seen;
}

// The rows of a sequence that see key j (all of the whole problem), as first and end; none where end ≤ first.
fn seeing_rows(batch: u32, j: u32) -> vec2<i32> {
  let diagonal = i32(j) - mask_offset_of(batch);
  let first = max(diagonal - params.window_right, 0);
  let end = min(diagonal + params.window_left + 1, i32(seqlen_q_of(batch)));
  return select(vec2<i32>(0), vec2<i32>(first, end), has_key(batch, j));
}
