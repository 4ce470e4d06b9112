// The tiles to visit are listed, for each tile that a workgroup owns. The table holds the distance from one sequence to
// the next and from one head to the next, in tiles (0 where they share lists), then for each tile where its list
// starts, how many of its tiles are whole, and how many it has; then the lists. Whole tiles come first.

fn list_of(batch: u32, head: u32, tile: u32) -> BlockRange {
  let table = tables[TABLE_lists];
  let at = table + 2u + 3u * (batch * tables[table] + head * tables[table + 1u] + tile);
  return BlockRange(0u, tables[at + 2u], 0u, tables[at + 1u], 0u, table + tables[at]);
}

fn kv_tiles(batch: u32, head: u32, first_row: u32, last_row: u32) -> BlockRange {
  return list_of(batch, head, first_row / TILE_Q);
}

fn q_tiles(batch: u32, head_kv: u32, first_key: u32, last_key: u32) -> BlockRange {
  return list_of(batch, head_kv, first_key / TILE_KV);
}

// Kernels fetch a few tiles ahead; behind the last list are words for that.
fn listed(range: BlockRange, place: u32) -> u32 { return tables[range.list + place]; }

// Row number n of the whole Q tiles.
fn row_of_whole(range: BlockRange, n: u32) -> u32 {
  return listed(range, range.whole_first + n / TILE_Q) * TILE_Q + n % TILE_Q;
}
