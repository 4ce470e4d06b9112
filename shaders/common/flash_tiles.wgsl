// The K and V tiles of flash attention in workgroup memory, and loads of Q, K and V into registers. Loads are never
// under a branch, so many are in flight at once. A load outside a tensor reads its neighbour inside, and 0 replaces
// the value.

// Rows of the tiles, in quads: whole numbers of quads for each lane.
const K_STRIDE = LANES * K_QUADS;
const V_STRIDE = LANES * V_QUADS;

var<workgroup> k_tile: array<vec4<f32>, TILE_KV * K_STRIDE>;
var<workgroup> v_tile: array<vec4<f32>, TILE_KV * V_STRIDE>;

// The first dimension of the last quad of Q and K, and of V.
const LAST_QUAD = (HEAD_DIM - 1u) / 4u * 4u;
const LAST_QUAD_V = (HEAD_DIM_V - 1u) / 4u * 4u;

// unroll EXTENT in EXTENT_OF_TILE, ATQ in AT_Q, ATK in AT_K {
  // A quad of Q, times softmax_scale · log2(e): cheaper here than on every score.
  fn fetch_q(tile: QTile, row: u32, quad: u32) -> vec4<f32> {
    let first = params.q_offset + tile.ATQ * params.q_stride_batch + tile.head * params.q_stride_head;
    let inside_row = min(tile.row + row, EXTENT.row_count - 1u);
    let inside_dim = min(quad * 4u, LAST_QUAD);
    let value = load_q(first + inside_row * params.q_stride_row + inside_dim, HEAD_DIM - inside_dim);
    let inside = quad * 4u < HEAD_DIM && tile.row + row < EXTENT.row_count;
    // unroll DECODE in DECODE_ROW {
      return select(vec4<f32>(0.0), DECODE(value) * params.softmax_scale_log2, inside);
    // }
  }

  // Quad `index` of the K tile that starts at `key_first`.
  fn fetch_k(tile: QTile, key_first: u32, index: u32) -> Loaded {
    // unroll PLACE in PLACES_OF_KEYS {
      let PLACE = place_of_key(tile.batch, min(key_first + index / K_STRIDE, EXTENT.seqlen_kv - 1u));
    // }
    // unroll PAGE in PAGE_OF_KEY {
      let first = params.k_offset + PAGE * params.k_stride_batch + tile.head_kv * params.k_stride_head;
    // }
    let key = key_first + index / K_STRIDE;
    let dim = index % K_STRIDE * 4u;
    let inside_dim = min(dim, LAST_QUAD);
    // unroll KEYROW in ROW_OF_KEY {
      let value = load_k(first + KEYROW * params.k_stride_row + inside_dim, HEAD_DIM - inside_dim);
    // }
    return select(Loaded(), value, key < EXTENT.seqlen_kv && dim < HEAD_DIM);
  }

  fn place_k(index: u32, value: Loaded) {
    if index < TILE_KV * K_STRIDE { k_tile[index] = decode(value); }
  }

  fn fetch_v(tile: QTile, key_first: u32, index: u32) -> Loaded {
    // unroll PLACE in PLACES_OF_KEYS {
      let PLACE = place_of_key(tile.batch, min(key_first + index / V_STRIDE, EXTENT.seqlen_kv - 1u));
    // }
    // unroll PAGE in PAGE_OF_KEY {
      let first = params.v_offset + PAGE * params.v_stride_batch + tile.head_kv * params.v_stride_head;
    // }
    let key = key_first + index / V_STRIDE;
    let dim = index % V_STRIDE * 4u;
    let inside_dim = min(dim, LAST_QUAD_V);
    // unroll KEYROW in ROW_OF_KEY {
      let value = load_v(first + KEYROW * params.v_stride_row + inside_dim, HEAD_DIM_V - inside_dim);
    // }
    return select(Loaded(), value, key < EXTENT.seqlen_kv && dim < HEAD_DIM_V);
  }

  fn place_v(index: u32, value: Loaded) {
    if index < TILE_KV * V_STRIDE { v_tile[index] = decode(value); }
  }
// }
