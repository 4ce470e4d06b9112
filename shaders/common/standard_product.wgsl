// The product of rows with keys in standard attention: Q Kᵀ or dO Vᵀ. Both pass through workgroup memory, a chunk of
// dimensions at a time. LANES = TILE_KV / 4: an invocation owns four neighbouring keys. Rows are an odd number of
// quads apart, so neighbouring rows lie in different banks. Rows and dimensions outside the tensors are 0. Loads are
// never under a branch, so many are in flight at once. A load outside reads its neighbour inside, and the value is
// replaced.

const CHUNK_QUADS = K_CHUNK_QUADS;
const ROW_STRIDE = CHUNK_QUADS | 1u;

var<workgroup> row_tile: array<vec4<f32>, TILE_Q * ROW_STRIDE>;
var<workgroup> key_tile: array<vec4<f32>, TILE_KV * ROW_STRIDE>;

// unroll ROWS in ROWS, EXTENT in EXTENT_OF_TILE, ATQ in AT_Q {
  // The tile of rows, times `factor`: cheaper here than on every product.
  fn stage_rows(tile: QTile, chunk: u32, invocation: u32, factor: f32) {
    let first = params.ROWS_offset + tile.ATQ * params.ROWS_stride_batch + tile.head * params.ROWS_stride_head;
    for (var index = invocation; index < TILE_Q * CHUNK_QUADS; index += INVOCATIONS) {
      let row = index / CHUNK_QUADS;
      let quad = index % CHUNK_QUADS;
      let dim = (chunk * CHUNK_QUADS + quad) * 4u;
      let inside_row = min(tile.row + row, EXTENT.row_count - 1u);
      let inside_dim = min(dim, LAST_PRODUCT_QUAD);
      let value = load_ROWS(first + inside_row * params.ROWS_stride_row + inside_dim, PRODUCT_DIM - inside_dim);
      let inside = tile.row + row < EXTENT.row_count && dim < PRODUCT_DIM;
      row_tile[row * ROW_STRIDE + quad] = select(vec4<f32>(0.0), decode(value) * factor, inside);
    }
  }
// }

// The four neighbouring keys of an invocation lie LANES rows apart, so that the invocations of a row of the score
// tile read neighbouring rows.
fn place_keys(index: u32, value: vec4<f32>) {
  let key = index / CHUNK_QUADS;
  let row = key % 4u * LANES + key / 4u;
  if index < TILE_KV * CHUNK_QUADS { key_tile[row * ROW_STRIDE + index % CHUNK_QUADS] = value; }
}

// Of each of this invocation's rows, the products with its four keys.
fn products(tile: QTile, key_first: u32, invocation: u32, factor: f32) -> array<vec4<f32>, THREAD_ROWS> {
  let lane = invocation % LANES;
  let row_lane = invocation / LANES;
  // unroll N in THREAD_ROWS {
    var s_N = vec4<f32>(0.0);
  // }
  for (var chunk = 0u; chunk < K_CHUNKS; chunk++) {
    workgroupBarrier();
    stage_rows(tile, chunk, invocation, factor);
    // unroll L in K_FETCHES {
      place_keys(invocation + L * INVOCATIONS, fetch_keys(tile, key_first, chunk, invocation + L * INVOCATIONS));
    // }
    workgroupBarrier();
    for (var d = 0u; d < CHUNK_QUADS; d++) {
      let k_0 = key_tile[lane * ROW_STRIDE + d];
      let k_1 = key_tile[(lane + LANES) * ROW_STRIDE + d];
      let k_2 = key_tile[(lane + 2u * LANES) * ROW_STRIDE + d];
      let k_3 = key_tile[(lane + 3u * LANES) * ROW_STRIDE + d];
      // unroll N in THREAD_ROWS {
        let q_N = row_tile[(row_lane + N * ROW_LANES) * ROW_STRIDE + d];
        s_N = vec4<f32>(dot_add(q_N, k_0, s_N.x), dot_add(q_N, k_1, s_N.y), dot_add(q_N, k_2, s_N.z),
          dot_add(q_N, k_3, s_N.w));
      // }
    }
  }
  var result = array<vec4<f32>, THREAD_ROWS>();
  // unroll N in THREAD_ROWS {
    result[N] = s_N;
  // }
  return result;
}
