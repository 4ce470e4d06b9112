// Q and K on their way to workgroup memory, a chunk of K_CHUNK_QUADS · 4 head dimensions at a time. Rows are an odd
// number of quads apart, so that neighbouring rows lie in different banks. Rows and dimensions outside the tensors
// are 0. Loads are never under a branch, so that many are in flight at once: what lies outside loads its neighbour
// inside and is replaced.

const Q_STRIDE = K_CHUNK_QUADS | 1u;

var<workgroup> q_tile: array<vec4<f32>, TILE_Q * Q_STRIDE>;

// The Q tile, times softmax_scale · log2(e): cheaper here than on every score.
fn stage_q(tile: QTile, chunk: u32, invocation: u32) {
  let first = params.q_offset + tile.batch * params.q_stride_batch + tile.head * params.q_stride_head;
  for (var index = invocation; index < TILE_Q * K_CHUNK_QUADS; index += INVOCATIONS) {
    let row = index / K_CHUNK_QUADS;
    let quad = index % K_CHUNK_QUADS;
    let dim = (chunk * K_CHUNK_QUADS + quad) * 4u;
    let inside_row = min(tile.row + row, params.row_count - 1u);
    let inside_dim = min(dim, LAST_QUAD);
    let value = load_q(first + inside_row * params.q_stride_row + inside_dim, HEAD_DIM - inside_dim);
    let inside = tile.row + row < params.row_count && dim < HEAD_DIM;
    q_tile[row * Q_STRIDE + quad] = select(vec4<f32>(0.0), decode(value) * params.softmax_scale_log2, inside);
  }
}

// The first dimension of the last quad of Q and K.
const LAST_QUAD = (HEAD_DIM - 1u) / 4u * 4u;

// A K tile passes through registers, so that it can be fetched long before it is needed: quad `index` of the chunk of
// the tile from `key_first` on.
fn fetch_k(tile: QTile, key_first: u32, chunk: u32, index: u32) -> vec4<f32> {
  let first = params.k_offset + tile.batch * params.k_stride_batch + tile.head_kv * params.k_stride_head;
  let key = key_first + index / K_CHUNK_QUADS;
  let dim = (chunk * K_CHUNK_QUADS + index % K_CHUNK_QUADS) * 4u;
  let inside_dim = min(dim, LAST_QUAD);
  let value = load_k(first + min(key, params.seqlen_kv - 1u) * params.k_stride_row + inside_dim, HEAD_DIM - inside_dim);
  return select(vec4<f32>(0.0), decode(value), key < params.seqlen_kv && dim < HEAD_DIM);
}

// The four neighbouring keys of an invocation lie LANES rows apart, so that the invocations of a row of the score
// tile read neighbouring rows.
fn place_k(index: u32, value: vec4<f32>) {
  let key = index / K_CHUNK_QUADS;
  let row = key % 4u * LANES + key / 4u;
  if index < TILE_KV * K_CHUNK_QUADS { kv_tile[row * KV_STRIDE + index % K_CHUNK_QUADS] = value; }
}
