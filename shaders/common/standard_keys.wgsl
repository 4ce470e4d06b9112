// How K and V arrive in standard attention: a chunk of head dimensions of a tile at a time. Keys and dimensions
// outside the tensors are 0.

// The first dimension of the last quad.
const LAST_PRODUCT_QUAD = (PRODUCT_DIM - 1u) / 4u * 4u;

// unroll KEYS in KEY_TENSOR, EXTENT in EXTENT_OF_TILE, ATK in AT_K {
  // A tile of keys passes through registers: quad `index` of the chunk of the tile from `key_first` on.
  fn fetch_keys(tile: QTile, key_first: u32, chunk: u32, index: u32) -> vec4<f32> {
    let first = params.KEYS_offset + tile.ATK * params.KEYS_stride_batch + tile.head_kv * params.KEYS_stride_head;
    let key = key_first + index / CHUNK_QUADS;
    let dim = (chunk * CHUNK_QUADS + index % CHUNK_QUADS) * 4u;
    let inside_dim = min(dim, LAST_PRODUCT_QUAD);
    let at = first + min(key, EXTENT.seqlen_kv - 1u) * params.KEYS_stride_row + inside_dim;
    let value = load_KEYS(at, PRODUCT_DIM - inside_dim);
    return select(vec4<f32>(0.0), decode(value), key < EXTENT.seqlen_kv && dim < PRODUCT_DIM);
  }
// }
