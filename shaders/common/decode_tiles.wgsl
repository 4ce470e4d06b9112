// Loads of Q, K and V into registers, where they stay. Only one group of lanes uses an element of K and V, so workgroup
// memory would not save a load. Loads are never under a branch, as in flash_tiles.wgsl.

const V_STRIDE = LANES * V_QUADS;

// m and l of each group, and O of one row of each.
var<workgroup> group_stats: array<vec2<f32>, KEY_LANES>;
var<workgroup> group_o: array<vec4<f32>, KEY_LANES * V_STRIDE>;

const LAST_QUAD = (HEAD_DIM - 1u) / 4u * 4u;
const LAST_QUAD_V = (HEAD_DIM_V - 1u) / 4u * 4u;

// Whether the lanes hold whole rows, so that no dimension lies outside.
const K_IS_WHOLE = HEAD_DIM % (LANES * 4u) == 0u;
const V_IS_WHOLE = HEAD_DIM_V % (LANES * 4u) == 0u;

// unroll EXTENT in EXTENT_OF_TILE, GROUPROWS in ROWS_OF_GROUP, ATQ in AT_Q, ATK in AT_K {
  // A quad of Q, times softmax_scale · log2(e): cheaper here than on every score.
  fn fetch_q(tile: QTile, row: u32, quad: u32) -> vec4<f32> {
    let inside_row = min(row, GROUPROWS - 1u - tile.row);
    let packed = tile.row + inside_row;
    let first = params.q_offset + tile.ATQ * params.q_stride_batch + head_of(tile, packed) * params.q_stride_head
      + row_of(tile, packed) * params.q_stride_row;
    let inside_dim = min(quad * 4u, LAST_QUAD);
    let value = load_q(first + inside_dim, HEAD_DIM - inside_dim);
    let inside = quad * 4u < HEAD_DIM && row == inside_row;
    // unroll DECODE in DECODE_ROW {
      return select(vec4<f32>(0.0), DECODE(value) * params.softmax_scale_log2, inside);
    // }
  }

  // A quad of K. Behind the last key it is that of the last key, or of another, whose score the mask then hides.
  fn fetch_k(tile: QTile, key: u32, quad: u32) -> Loaded {
    // unroll PLACE in PLACES_OF_KEYS {
      let PLACE = place_of_key(tile.batch, key);
    // }
    // unroll PAGE in PAGE_OF_KEY, KEYROW in ROW_OF_KEY {
      let first = params.k_offset + PAGE * params.k_stride_batch + tile.head_kv * params.k_stride_head
        + KEYROW * params.k_stride_row;
    // }
    let dim = quad * 4u;
    let inside_dim = select(min(dim, LAST_QUAD), dim, K_IS_WHOLE);
    return select(Loaded(), load_k(first + inside_dim, HEAD_DIM - inside_dim), K_IS_WHOLE || dim < HEAD_DIM);
  }

  fn fetch_v(tile: QTile, key: u32, quad: u32) -> Loaded {
    // unroll PLACE in PLACES_OF_KEYS {
      // Behind the last key it is some other in the tensor.
      let PLACE = place_of_key(tile.batch, key);
    // }
    // unroll PAGE in PAGE_OF_KEY, KEYROW in ROW_OF_KEY {
      let first = params.v_offset + PAGE * params.v_stride_batch + tile.head_kv * params.v_stride_head
        + KEYROW * params.v_stride_row;
    // }
    let dim = quad * 4u;
    let inside_dim = select(min(dim, LAST_QUAD_V), dim, V_IS_WHOLE);
    return select(Loaded(), load_v(first + inside_dim, HEAD_DIM_V - inside_dim), V_IS_WHOLE || dim < HEAD_DIM_V);
  }
// }
