// Which rows of which KV head and sequence a workgroup owns, if the query heads that share a KV head share the
// workgroup. Their rows are packed, row 0 of all heads first. So K and V are loaded once for all of them.
struct QTile {
  // Sequence, KV head and first query head of the group, counted from the first of this dispatch.
  batch: u32,
  head_kv: u32,
  head: u32,
  // The tile's first packed row.
  row: u32,
  // Its first and last row in the whole problem.
  first_row: u32,
  last_row: u32,
  // unroll PACKED in PACKED_SEQUENCES {
    sequence: Sequence,
  // }
}

fn packed_rows() -> u32 { return params.row_count * params.heads_per_kv; }

fn num_q_tiles() -> u32 { return (packed_rows() + TILE_Q - 1u) / TILE_Q; }

// unroll PACKED in PACKED_SEQUENCES {
  // Those of the tile's sequence alone.
  fn packed_rows_of(tile: QTile) -> u32 { return tile.sequence.row_count * params.heads_per_kv; }

// }
// Tiles of all KV heads and sequences of this dispatch. The folded grid may be larger.
fn q_tile_count() -> u32 {
  return num_q_tiles() * (params.head_count / params.heads_per_kv) * params.batch_count;
}

fn q_tile_at(index: u32) -> QTile {
  let kv_heads = params.head_count / params.heads_per_kv;
  let head_and_batch = index / num_q_tiles();
  // unroll DENSE in DENSE_SEQUENCES {
    var tile = QTile(0u, 0u, 0u, 0u, 0u, 0u);
  // }
  // unroll PACKED in PACKED_SEQUENCES {
    var tile = QTile();
    tile.sequence = sequence_of(head_and_batch / kv_heads);
  // }
  tile.batch = head_and_batch / kv_heads;
  tile.head_kv = head_and_batch % kv_heads;
  tile.head = tile.head_kv * params.heads_per_kv;
  tile.row = index % num_q_tiles() * TILE_Q;
  tile.first_row = params.row_first + tile.row / params.heads_per_kv;
  // unroll GROUPROWS in ROWS_OF_GROUP {
    tile.last_row = params.row_first + (min(tile.row + TILE_Q, GROUPROWS) - 1u) / params.heads_per_kv;
  // }
  return tile;
}

// Head and row of a packed row, counted from the first of this dispatch.
fn head_of(tile: QTile, row: u32) -> u32 { return tile.head + row % params.heads_per_kv; }

fn row_of(tile: QTile, row: u32) -> u32 { return row / params.heads_per_kv; }
