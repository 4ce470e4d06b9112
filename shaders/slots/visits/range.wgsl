// The tiles to visit are a range.

fn kv_tiles(batch: u32, head: u32, first_row: u32, last_row: u32) -> BlockRange {
  return block_range(batch, first_row, last_row);
}

fn q_tiles(batch: u32, head_kv: u32, first_key: u32, last_key: u32) -> BlockRange {
  return row_range(batch, first_key, last_key);
}

fn listed(range: BlockRange, place: u32) -> u32 { return place; }

// Row number n of the whole Q tiles.
fn row_of_whole(range: BlockRange, n: u32) -> u32 { return range.whole_first * TILE_Q + n; }
