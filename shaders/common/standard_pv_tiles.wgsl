// P in workgroup memory, and V on its way there, a chunk of V_CHUNK_QUADS · 4 head dimensions at a time, in which an
// invocation owns the quads lane, lane + LANES, … As in stage_qk.wgsl, what lies outside V is 0.

const P_STRIDE = LANES | 1u;

var<workgroup> p_tile: array<vec4<f32>, TILE_Q * P_STRIDE>;

// The first dimension of the last quad of V.
const LAST_QUAD_V = (HEAD_DIM_V - 1u) / 4u * 4u;

fn fetch_v(tile: QTile, key_first: u32, chunk: u32, index: u32) -> vec4<f32> {
  let first = params.v_offset + tile.batch * params.v_stride_batch + tile.head_kv * params.v_stride_head;
  let key = key_first + index / V_CHUNK_QUADS;
  let dim = (chunk * V_CHUNK_QUADS + index % V_CHUNK_QUADS) * 4u;
  let inside_dim = min(dim, LAST_QUAD_V);
  let value = load_v(first + min(key, params.seqlen_kv - 1u) * params.v_stride_row + inside_dim, HEAD_DIM_V - inside_dim);
  return select(vec4<f32>(0.0), decode(value), key < params.seqlen_kv && dim < HEAD_DIM_V);
}

fn place_v(index: u32, value: vec4<f32>) {
  if index < TILE_KV * V_CHUNK_QUADS {
    kv_tile[index / V_CHUNK_QUADS * KV_STRIDE + index % V_CHUNK_QUADS] = value;
  }
}
