// The KV tiles that some row of a Q tile sees, as first and end. Between them are the tiles that every row sees whole;
// only the others need the mask. Rows are those of the whole problem. Tiles outside the range are never visited, so a
// causal mask halves the time.
struct BlockRange {
  first: u32,
  end: u32,
  whole_first: u32,
  whole_end: u32,
  // The tile that a flash kernel visits first of those, if it is one of them and NEAREST_FIRST.
  nearest: u32,
  // Where tiles are listed: where the list starts. The others are then places in it.
  list: u32,
}

fn block_range(batch: u32, first_row: u32, last_row: u32) -> BlockRange {
  let last = last_that_exists(first_row, last_row, seqlen_q_of(batch));
  var range = tiles_between(visible_keys(batch, first_row), visible_keys(batch, last), TILE_KV);
  if NEAREST_FIRST { range.nearest = u32(max(i32(last_row) + mask_offset_of(batch), 0)) / TILE_KV; }
  return not_whole_unless(range, last == last_row);
}

// The Q tiles with a row that sees some key of a KV tile, and those in between whose rows all see all of its keys.
fn row_range(batch: u32, first_key: u32, last_key: u32) -> BlockRange {
  let last = last_that_exists(first_key, last_key, seqlen_kv_of(batch));
  let range = tiles_between(seeing_rows(batch, first_key), seeing_rows(batch, last), TILE_Q);
  return not_whole_unless(range, last == last_key);
}

// The last of a tile's rows, or keys, that its sequence has; the first if it has none.
fn last_that_exists(first: u32, last: u32, length: u32) -> u32 {
  return select(last, max(min(last + 1u, length), first + 1u) - 1u, HAS_LENGTHS);
}

fn not_whole_unless(range: BlockRange, is_full: bool) -> BlockRange {
  var part = range;
  if HAS_LENGTHS && !is_full { part.whole_end = 0u; }
  return part;
}

// Tiles of a range whose first entry is seen from `top.x` to `top.y` and whose last entry from `bottom.x` to
// `bottom.y`.
fn tiles_between(top: vec2<i32>, bottom: vec2<i32>, side: u32) -> BlockRange {
  // From row to row, the range of keys never goes back: the first one starts and ends first.
  let end = max(bottom.y, 0);
  let first = min(top.x, end);
  let tile = i32(side);
  var range = BlockRange(0u, 0u, 0u, 0u, 0u, 0u);
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
