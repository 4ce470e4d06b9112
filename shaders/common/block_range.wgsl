// The KV tiles that some row of a Q tile sees, as first and end. Between them are the tiles that every row sees whole;
// only the others need the mask. Rows are those of the whole problem. Tiles outside the range are never visited, so a
// causal mask halves the time.
struct BlockRange {
  first: u32,
  end: u32,
  whole_first: u32,
  whole_end: u32,
}

fn block_range(first_row: u32, last_row: u32) -> BlockRange {
  return tiles_between(visible_keys(first_row), visible_keys(last_row), TILE_KV);
}

// The Q tiles with a row that sees some key of a KV tile, and those in between whose rows all see all of its keys.
fn row_range(first_key: u32, last_key: u32) -> BlockRange {
  return tiles_between(seeing_rows(first_key), seeing_rows(last_key), TILE_Q);
}

// Tiles of a range whose first entry is seen from `top.x` to `top.y` and whose last entry from `bottom.x` to
// `bottom.y`.
fn tiles_between(top: vec2<i32>, bottom: vec2<i32>, side: u32) -> BlockRange {
  // From row to row, the range of keys never goes back: the first one starts and ends first.
  let end = max(bottom.y, 0);
  let first = min(top.x, end);
  let tile = i32(side);
  var range = BlockRange(0u, 0u, 0u, 0u);
  range.first = u32(first / tile);
  range.end = u32((end + tile - 1) / tile);
  range.whole_first = u32((bottom.x + tile - 1) / tile);
  range.whole_end = u32(max(top.y, 0) / tile);
  // Masks by entries may hide a key anywhere.
  if HAS_KEY_MASKS { range.whole_end = 0u; }
  return range;
}

fn is_whole(range: BlockRange, tile: u32) -> bool {
  return tile >= range.whole_first && tile < range.whole_end;
}
