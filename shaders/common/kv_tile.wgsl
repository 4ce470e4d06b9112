// Which KV tile of which KV head and sequence a workgroup owns.
struct KvTile {
  // Sequence, KV head and first query head of its group, counted from the first of this dispatch.
  batch: u32,
  head_kv: u32,
  head: u32,
  // The tile's first key, counted in the same way, and its first and last key in the whole problem.
  key: u32,
  first_key: u32,
  last_key: u32,
  // unroll PACKED in PACKED_SEQUENCES {
    sequence: Sequence,
  // }
}

fn num_kv_tiles() -> u32 { return (params.key_count + TILE_KV - 1u) / TILE_KV; }

// KV tiles of all KV heads and sequences of this dispatch. The folded grid may be larger.
fn kv_tile_count() -> u32 { return num_kv_tiles() * (params.head_count / params.heads_per_kv) * params.batch_count; }

// Neighbouring workgroups share a head, as in q_tile.wgsl. Under a mask they share the tile's place instead, the first
// keys first: under a causal mask those are seen most.
fn kv_tile_at(index: u32) -> KvTile {
  let kv_heads = params.head_count / params.heads_per_kv;
  var place = index % num_kv_tiles();
  var head_and_batch = index / num_kv_tiles();
  if HAS_WINDOW {
    place = index / (kv_heads * params.batch_count);
    head_and_batch = index % (kv_heads * params.batch_count);
  }
  // unroll DENSE in DENSE_SEQUENCES {
    var tile = KvTile(0u, 0u, 0u, 0u, 0u, 0u);
  // }
  // unroll PACKED in PACKED_SEQUENCES {
    var tile = KvTile();
    tile.sequence = sequence_of(head_and_batch / kv_heads);
  // }
  tile.batch = head_and_batch / kv_heads;
  tile.head_kv = head_and_batch % kv_heads;
  tile.head = tile.head_kv * params.heads_per_kv;
  tile.key = place * TILE_KV;
  tile.first_key = params.key_first + tile.key;
  // unroll EXTENT in EXTENT_OF_TILE {
    tile.last_key = params.key_first + min(tile.key + TILE_KV, EXTENT.key_count) - 1u;
  // }
  return tile;
}
