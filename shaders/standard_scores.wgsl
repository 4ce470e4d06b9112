// Standard attention, first kernel: S = softmax_scale · Q Kᵀ, masked, written to memory.
//
//   for each Q tile i, for each KV tile j that some row of i sees:      one workgroup
//     S_ij = softmax_scale · Q_i K_jᵀ, masked
//
// S is in units of log2(e) and rows are whole numbers of tiles; tiles that no row sees are not written. Ownership is
// that of flash_forward.wgsl.

@group(0) @binding(BINDING_s) var<storage, read_write> s: array<vec4<f32>>;

@compute @workgroup_size(INVOCATIONS)
fn main(
  @builtin(workgroup_id) workgroup_id: vec3<u32>,
  @builtin(local_invocation_index) invocation: u32,
) {
  let num_kv_tiles = params.s_stride_row / TILE_KV;
  let index = workgroup_id.y * params.grid_width + workgroup_id.x;
  let j = index % num_kv_tiles;
  if index / num_kv_tiles >= q_tile_count() { return; }
  let tile = q_tile_at(index / num_kv_tiles);
  let range = block_range(tile.first_row, tile.last_row);
  if j < range.first || j >= range.end { return; }
  let lane = invocation % LANES;
  let row_lane = invocation / LANES;
  let key_first = j * TILE_KV;
  let key = key_first + lane * 4u;

  // S_ij = softmax_scale · Q_i K_jᵀ
  // unroll N in THREAD_ROWS {
  let row_N = row_lane + N * ROW_LANES;
  var s_N = vec4<f32>(0.0);
  // }
  for (var chunk = 0u; chunk < K_CHUNKS; chunk++) {
    workgroupBarrier();
    stage_q(tile, chunk, invocation);
    // unroll L in K_FETCHES {
    place_k(invocation + L * INVOCATIONS, fetch_k(tile, key_first, chunk, invocation + L * INVOCATIONS));
    // }
    workgroupBarrier();
    for (var d = 0u; d < K_CHUNK_QUADS; d++) {
      let k_0 = kv_tile[lane * KV_STRIDE + d];
      let k_1 = kv_tile[(lane + LANES) * KV_STRIDE + d];
      let k_2 = kv_tile[(lane + 2u * LANES) * KV_STRIDE + d];
      let k_3 = kv_tile[(lane + 3u * LANES) * KV_STRIDE + d];
      // unroll N in THREAD_ROWS {
      let q_N = q_tile[row_N * Q_STRIDE + d];
      s_N = vec4<f32>(dot_add(q_N, k_0, s_N.x), dot_add(q_N, k_1, s_N.y), dot_add(q_N, k_2, s_N.z), dot_add(q_N, k_3, s_N.w));
      // }
    }
  }

  // masked
  let whole = is_whole(range, j);
  // unroll N in THREAD_ROWS {
  if !whole { s_N = select(vec4<f32>(MASKED), s_N, sees(visible_keys(params.row_first + tile.row + row_N), key)); }
  if tile.row + row_N < params.row_count {
    let row = (tile.batch * params.head_count + tile.head) * params.row_count + tile.row + row_N;
    s[(row * params.s_stride_row + key) / 4u] = s_N;
  }
  // }
}
