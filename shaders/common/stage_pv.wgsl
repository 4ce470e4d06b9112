// P and V in workgroup memory; V a chunk of V_CHUNK_QUADS · 4 head dimensions at a time, in which an invocation owns
// the quads lane, lane + KEY_LANES, … Rows and dimensions outside V are 0.

const P_STRIDE = KEY_LANES | 1u;

var<workgroup> p_tile: array<vec4<f32>, TILE_Q * P_STRIDE>;

fn stage_v(tile: QTile, key_first: u32, chunk: u32, invocation: u32) {
  let first = params.v_offset + tile.batch * params.v_stride_batch + tile.head_kv * params.v_stride_head;
  for (var index = invocation; index < TILE_KV * V_CHUNK_QUADS; index += INVOCATIONS) {
    let key = index / V_CHUNK_QUADS;
    let quad = index % V_CHUNK_QUADS;
    let dim = (chunk * V_CHUNK_QUADS + quad) * 4u;
    var value = vec4<f32>(0.0);
    if key_first + key < params.seqlen_kv && dim < HEAD_DIM_V {
      value = load_v(first + (key_first + key) * params.v_stride_row + dim, HEAD_DIM_V - dim);
    }
    kv_tile[key * KV_STRIDE + quad] = value;
  }
}

// o + p · v, where a key that the row does not see (p = 0) leaves o alone even if its v is infinite or not a number.
fn add_visible(p: f32, v: vec4<f32>, o: vec4<f32>) -> vec4<f32> {
  return select(o, fma(vec4<f32>(p), v, o), vec4<bool>(p != 0.0));
}
