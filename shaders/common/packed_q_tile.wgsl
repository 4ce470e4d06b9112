// Which Q tile of which KV head and sequence a workgroup owns, if the query heads that share a KV head share the
// workgroup. Their rows are packed, row 0 of all heads first. So K and V are loaded once for all of them, and few rows
// fill a tile.
struct QTile {
  // Sequence, first query head of the group and KV head, counted from the first of this dispatch.
  batch: u32,
  head: u32,
  head_kv: u32,
  // The tile's first packed row.
  row: u32,
  // Its first and last row in the whole problem.
  first_row: u32,
  last_row: u32,
}

fn packed_rows() -> u32 { return params.row_count * params.heads_per_kv; }

fn num_q_tiles() -> u32 { return (packed_rows() + TILE_Q - 1u) / TILE_Q; }

// Tiles of all KV heads and sequences of this dispatch. The folded grid may be larger.
fn q_tile_count() -> u32 { return num_q_tiles() * (params.head_count / params.heads_per_kv) * params.batch_count; }

fn q_tile_at(index: u32) -> QTile {
  let heads_per_kv = params.heads_per_kv;
  let kv_heads = params.head_count / heads_per_kv;
  let head_and_batch = index / num_q_tiles();
  let head_kv = head_and_batch % kv_heads;
  let row = index % num_q_tiles() * TILE_Q;
  let first_row = params.row_first + row / heads_per_kv;
  let last_row = params.row_first + (min(row + TILE_Q, packed_rows()) - 1u) / heads_per_kv;
  return QTile(head_and_batch / kv_heads, head_kv * heads_per_kv, head_kv, row, first_row, last_row);
}

// Head and row of a packed row, counted from the first of this dispatch.
fn head_of(tile: QTile, row: u32) -> u32 { return tile.head + row % params.heads_per_kv; }
fn row_of(tile: QTile, row: u32) -> u32 { return row / params.heads_per_kv; }
