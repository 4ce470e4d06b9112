// Which Q tile of which head and sequence a workgroup owns.
struct QTile {
  // Sequence and head, counted from the first of this dispatch.
  batch: u32,
  head: u32,
  // The head of K and V, counted likewise.
  head_kv: u32,
  // The tile's first row, counted likewise, and its first and last row in the whole problem.
  row: u32,
  first_row: u32,
  last_row: u32,
}

// `index` counts Q tiles, heads and sequences, innermost first. Later rows go first: with a causal mask they see most,
// and a GPU that starts with its longest work finishes together.
fn q_tile_at(index: u32) -> QTile {
  let num_q_tiles = (params.row_count + TILE_Q - 1u) / TILE_Q;
  let head_and_batch = index / num_q_tiles;
  var tile = QTile(0u, 0u, 0u, 0u, 0u, 0u);
  tile.batch = head_and_batch / params.head_count;
  tile.head = head_and_batch % params.head_count;
  let heads_per_kv = params.heads_per_kv;
  tile.head_kv = (params.head_first + tile.head) / heads_per_kv - params.head_first / heads_per_kv;
  tile.row = (num_q_tiles - 1u - index % num_q_tiles) * TILE_Q;
  tile.first_row = params.row_first + tile.row;
  tile.last_row = params.row_first + min(tile.row + TILE_Q, params.row_count) - 1u;
  return tile;
}
