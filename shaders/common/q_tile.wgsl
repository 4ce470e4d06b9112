// Which Q tile of which head and sequence a workgroup owns.
struct QTile {
  // Sequence and head, counted from the first of this dispatch.
  batch: u32,
  head: u32,
  // The head of K and V, counted in the same way.
  head_kv: u32,
  // The tile's first row, counted in the same way, and its first and last row in the whole problem.
  row: u32,
  first_row: u32,
  last_row: u32,
  // unroll PACKED in PACKED_SEQUENCES {
    sequence: Sequence,
  // }
}

fn num_q_tiles() -> u32 { return (params.row_count + TILE_Q - 1u) / TILE_Q; }

// Q tiles of all heads and sequences of this dispatch. The folded grid may be larger.
fn q_tile_count() -> u32 { return num_q_tiles() * params.head_count * params.batch_count; }

// Neighbouring workgroups share a head, whose K and V then stay in the cache. Under a mask they share the tile's place
// instead, the last rows first: with a causal mask those see most, and a GPU that starts with its longest work
// finishes together.
fn q_tile_at(index: u32) -> QTile {
  let heads = params.head_count * params.batch_count;
  var place = index % num_q_tiles();
  var head_and_batch = index / num_q_tiles();
  if HAS_WINDOW {
    place = num_q_tiles() - 1u - index / heads;
    head_and_batch = index % heads;
  }
  let heads_per_kv = params.heads_per_kv;
  // unroll DENSE in DENSE_SEQUENCES {
    var tile = QTile(0u, 0u, 0u, 0u, 0u, 0u);
  // }
  // unroll PACKED in PACKED_SEQUENCES {
    var tile = QTile();
    tile.sequence = sequence_of(head_and_batch / params.head_count);
  // }
  tile.batch = head_and_batch / params.head_count;
  tile.head = head_and_batch % params.head_count;
  tile.head_kv = (params.head_first + tile.head) / heads_per_kv - params.head_first / heads_per_kv;
  tile.row = place * TILE_Q;
  tile.first_row = params.row_first + tile.row;
  // unroll EXTENT in EXTENT_OF_TILE {
    tile.last_row = params.row_first + min(tile.row + TILE_Q, EXTENT.row_count) - 1u;
  // }
  return tile;
}
