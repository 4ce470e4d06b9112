// Q and K in workgroup memory, a chunk of K_CHUNK_QUADS · 4 head dimensions at a time. Rows are an odd number of quads
// apart, so that neighbouring rows lie in different banks. Rows and dimensions outside the tensors are 0.

const Q_STRIDE = K_CHUNK_QUADS | 1u;

var<workgroup> q_tile: array<vec4<f32>, TILE_Q * Q_STRIDE>;

// The Q tile, times softmax_scale · log2(e): cheaper here than on every score.
fn stage_q(tile: QTile, chunk: u32, invocation: u32) {
  let first = params.q_offset + tile.batch * params.q_stride_batch + tile.head * params.q_stride_head;
  for (var index = invocation; index < TILE_Q * K_CHUNK_QUADS; index += INVOCATIONS) {
    let row = index / K_CHUNK_QUADS;
    let quad = index % K_CHUNK_QUADS;
    let dim = (chunk * K_CHUNK_QUADS + quad) * 4u;
    var value = vec4<f32>(0.0);
    if tile.row + row < params.row_count && dim < HEAD_DIM {
      value = load_q(first + (tile.row + row) * params.q_stride_row + dim, HEAD_DIM - dim) * params.softmax_scale_log2;
    }
    q_tile[row * Q_STRIDE + quad] = value;
  }
}

// The K tile from `key_first` on. The four neighbouring keys of an invocation lie KEY_LANES rows apart, so that the
// invocations of a row of the score tile read neighbouring rows.
fn stage_k(tile: QTile, key_first: u32, chunk: u32, invocation: u32) {
  let first = params.k_offset + tile.batch * params.k_stride_batch + tile.head_kv * params.k_stride_head;
  for (var index = invocation; index < TILE_KV * K_CHUNK_QUADS; index += INVOCATIONS) {
    let key = index / K_CHUNK_QUADS;
    let quad = index % K_CHUNK_QUADS;
    let dim = (chunk * K_CHUNK_QUADS + quad) * 4u;
    var value = vec4<f32>(0.0);
    if key_first + key < params.seqlen_kv && dim < HEAD_DIM {
      value = load_k(first + (key_first + key) * params.k_stride_row + dim, HEAD_DIM - dim);
    }
    kv_tile[(key % 4u * KEY_LANES + key / 4u) * KV_STRIDE + quad] = value;
  }
}

// a · b + c, in the order that compiles to four fused multiply-adds.
fn dot_add(a: vec4<f32>, b: vec4<f32>, c: f32) -> f32 {
  return fma(a.w, b.w, fma(a.z, b.z, fma(a.y, b.y, fma(a.x, b.x, c))));
}
