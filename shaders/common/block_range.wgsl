// The KV tiles that some row of a Q tile sees, as first and end, and the tiles in between that every row sees whole:
// only the others need the mask. Rows are those of the whole problem. Tiles outside the range are never visited, which
// is why a causal mask halves the time.
struct BlockRange {
  first: u32,
  end: u32,
  whole_first: u32,
  whole_end: u32,
}

fn block_range(first_row: u32, last_row: u32) -> BlockRange {
  // The first row's window starts and ends first.
  let top = visible_keys(first_row);
  let bottom = visible_keys(last_row);
  let end = max(bottom.y, 0);
  let first = min(top.x, end);
  let tile = i32(TILE_KV);
  var range = BlockRange(0u, 0u, 0u, 0u);
  range.first = u32(first / tile);
  range.end = u32((end + tile - 1) / tile);
  range.whole_first = u32((bottom.x + tile - 1) / tile);
  range.whole_end = u32(max(top.y, 0) / tile);
  return range;
}

fn is_whole(range: BlockRange, tile: u32) -> bool {
  return tile >= range.whole_first && tile < range.whole_end;
}
