// Which rows of which KV head and sequence a workgroup owns, if the query heads that share a KV head share the
// workgroup. Their rows are packed, row 0 of all heads first. So K and V are loaded once for all of them.
struct GroupTile {
  // Sequence, KV head and first query head of the group, counted from the first of this dispatch.
  batch: u32,
  head_kv: u32,
  head: u32,
  // The tile's first packed row.
  packed: u32,
  // Its first and last row in the whole problem.
  first_row: u32,
  last_row: u32,
  // unroll PACKED in PACKED_SEQUENCES {
    sequence: Sequence,
  // }
}

fn packed_rows() -> u32 { return params.row_count * params.heads_per_kv; }

fn num_group_tiles() -> u32 { return (packed_rows() + TILE_Q - 1u) / TILE_Q; }

// unroll PACKED in PACKED_SEQUENCES {
  // Those of the tile's sequence alone.
  fn packed_rows_of(tile: GroupTile) -> u32 { return tile.sequence.row_count * params.heads_per_kv; }

// }
// Tiles of all KV heads and sequences of this dispatch. The folded grid may be larger.
fn group_tile_count() -> u32 {
  return num_group_tiles() * (params.head_count / params.heads_per_kv) * params.batch_count;
}

fn group_tile_at(index: u32) -> GroupTile {
  let kv_heads = params.head_count / params.heads_per_kv;
  let head_and_batch = index / num_group_tiles();
  // unroll DENSE in DENSE_SEQUENCES {
    var tile = GroupTile(0u, 0u, 0u, 0u, 0u, 0u);
  // }
  // unroll PACKED in PACKED_SEQUENCES {
    var tile = GroupTile();
    tile.sequence = sequence_of(head_and_batch / kv_heads);
  // }
  tile.batch = head_and_batch / kv_heads;
  tile.head_kv = head_and_batch % kv_heads;
  tile.head = tile.head_kv * params.heads_per_kv;
  tile.packed = index % num_group_tiles() * TILE_Q;
  tile.first_row = params.row_first + tile.packed / params.heads_per_kv;
  // unroll GROUPROWS in ROWS_OF_GROUP {
    tile.last_row = params.row_first + (min(tile.packed + TILE_Q, GROUPROWS) - 1u) / params.heads_per_kv;
  // }
  return tile;
}

// Head and row of a packed row of the tile, counted from the first of this dispatch.
fn head_of(tile: GroupTile, row: u32) -> u32 { return tile.head + (tile.packed + row) % params.heads_per_kv; }

fn row_of(tile: GroupTile, row: u32) -> u32 { return (tile.packed + row) / params.heads_per_kv; }
