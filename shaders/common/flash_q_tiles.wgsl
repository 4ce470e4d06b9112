// The counterpart of flash_tiles.wgsl for a workgroup that owns keys: Q and dO tiles in workgroup memory with LSE and
// D of their rows, and loads of K and V into registers.

const Q_STRIDE = LANES * K_QUADS;
const D_O_STRIDE = LANES * V_QUADS;

var<workgroup> q_tile: array<vec4<f32>, TILE_Q * Q_STRIDE>;
var<workgroup> d_o_tile: array<vec4<f32>, TILE_Q * D_O_STRIDE>;
// LSE in units of log2(e), and D.
var<workgroup> stats_tile: array<vec2<f32>, TILE_Q>;

const LAST_QUAD = (HEAD_DIM - 1u) / 4u * 4u;
const LAST_QUAD_V = (HEAD_DIM_V - 1u) / 4u * 4u;

// unroll EXTENT in EXTENT_OF_TILE, ATQ in AT_Q, ATK in AT_K {
  // A quad of K, times softmax_scale · log2(e): cheaper here than on every score.
  fn fetch_k(tile: KvTile, row: u32, quad: u32) -> vec4<f32> {
    let first = params.k_offset + tile.ATK * params.k_stride_batch + tile.head_kv * params.k_stride_head;
    let inside_row = min(tile.key + row, EXTENT.key_count - 1u);
    let inside_dim = min(quad * 4u, LAST_QUAD);
    let value = load_k(first + inside_row * params.k_stride_row + inside_dim, HEAD_DIM - inside_dim);
    let inside = quad * 4u < HEAD_DIM && tile.key + row < EXTENT.key_count;
    return select(vec4<f32>(0.0), decode(value) * params.softmax_scale_log2, inside);
  }

  fn fetch_v(tile: KvTile, row: u32, quad: u32) -> vec4<f32> {
    let first = params.v_offset + tile.ATK * params.v_stride_batch + tile.head_kv * params.v_stride_head;
    let inside_row = min(tile.key + row, EXTENT.key_count - 1u);
    let inside_dim = min(quad * 4u, LAST_QUAD_V);
    let value = load_v(first + inside_row * params.v_stride_row + inside_dim, HEAD_DIM_V - inside_dim);
    let inside = quad * 4u < HEAD_DIM_V && tile.key + row < EXTENT.key_count;
    return select(vec4<f32>(0.0), decode(value), inside);
  }

  fn is_empty(tile: KvTile, head: u32, row: u32) -> bool {
    let head_at = tile.ATQ * params.lse_stride_batch + head * params.lse_stride_head;
    return is_empty_row(head_at, min(row, EXTENT.seqlen_q - 1u));
  }

  // Quad `index` of the Q tile of `head` that starts at `first_row`.
  fn fetch_q(tile: KvTile, head: u32, first_row: u32, index: u32) -> Loaded {
    let first = params.q_offset + tile.ATQ * params.q_stride_batch + head * params.q_stride_head;
    let row = first_row + index / Q_STRIDE;
    let dim = index % Q_STRIDE * 4u;
    let inside_dim = min(dim, LAST_QUAD);
    let value = load_q(first + min(row, EXTENT.seqlen_q - 1u) * params.q_stride_row + inside_dim,
      HEAD_DIM - inside_dim);
    return select(Loaded(), live_q(value, is_empty(tile, head, row)), row < EXTENT.seqlen_q && dim < HEAD_DIM);
  }

  fn place_q(index: u32, value: Loaded) {
    if index < TILE_Q * Q_STRIDE { q_tile[index] = decode(value); }
  }

  fn fetch_d_o(tile: KvTile, head: u32, first_row: u32, index: u32) -> Loaded {
    let first = params.d_o_offset + tile.ATQ * params.d_o_stride_batch + head * params.d_o_stride_head;
    let row = first_row + index / D_O_STRIDE;
    let dim = index % D_O_STRIDE * 4u;
    let inside_dim = min(dim, LAST_QUAD_V);
    let at = first + min(row, EXTENT.seqlen_q - 1u) * params.d_o_stride_row + inside_dim;
    let inside = row < EXTENT.seqlen_q && dim < HEAD_DIM_V;
    return select(Loaded(), load_d_o(at, HEAD_DIM_V - inside_dim), inside && !is_empty(tile, head, row));
  }

  fn place_d_o(index: u32, value: Loaded) {
    if index < TILE_Q * D_O_STRIDE { d_o_tile[index] = decode(value); }
  }

  fn fetch_stats(tile: KvTile, head: u32, first_row: u32, index: u32) -> vec2<f32> {
    let head_at = tile.ATQ * params.lse_stride_batch + head * params.lse_stride_head;
    return stats_of_row(head_at, first_row + index, EXTENT.seqlen_q);
  }
// }

fn place_stats(index: u32, value: vec2<f32>) {
  if index < TILE_Q { stats_tile[index] = value; }
}
