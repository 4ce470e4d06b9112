// Standard attention, third kernel: O = P V, with P read from memory.
//
//   for each Q tile i:                                   one workgroup
//     O_i = Σ_j P_ij V_j over the KV tiles j that some row of i sees
//
// An invocation owns THREAD_ROWS rows and, of S, four
// neighbouring keys in each, of O every LANES-th quad of head dimensions.

@group(0) @binding(BINDING_s) var<storage, read> s: array<vec4<f32>>;

@compute @workgroup_size(INVOCATIONS)
fn main(
  @builtin(workgroup_id) workgroup_id: vec3<u32>,
  @builtin(local_invocation_index) invocation: u32,
) {
  let index = workgroup_id.y * params.grid_width + workgroup_id.x;
  if index >= q_tile_count() { return; }
  let tile = q_tile_at(index);
  let lane = invocation % LANES;
  let row_lane = invocation / LANES;
  // unroll N in THREAD_ROWS {
  let row_N = row_lane + N * ROW_LANES;
  // unroll C in V_CHUNKS {
  // unroll M in THREAD_QUADS {
  var o_N_C_M = vec4<f32>(0.0);
  // }
  // }
  // }
  let s_row = (tile.batch * params.head_count + tile.head) * params.row_count + tile.row;

  let range = block_range(tile.first_row, tile.last_row);
  for (var j = range.first; j < range.end; j++) {
    let key_first = j * TILE_KV;
    let whole = is_whole(range, j);
    // unroll C in V_CHUNKS {
    workgroupBarrier(); // the last tile is read
    if C == 0u {
      for (var index = invocation; index < TILE_Q * LANES; index += INVOCATIONS) {
        let row = index / LANES;
        let quad = index % LANES;
        var p = vec4<f32>(0.0);
        if tile.row + row < params.row_count { p = s[((s_row + row) * params.s_stride_row + key_first) / 4u + quad]; }
        p_tile[row * P_STRIDE + quad] = p;
      }
    }
    // unroll L in V_FETCHES {
    place_v(invocation + L * INVOCATIONS, fetch_v(tile, key_first, C, invocation + L * INVOCATIONS));
    // }
    workgroupBarrier();

    // O_i += P_ij V_j
    for (var quad = 0u; quad < LANES; quad++) {
      // unroll N in THREAD_ROWS {
      let p_N = p_tile[row_N * P_STRIDE + quad];
      // }
      // unroll M in THREAD_QUADS {
      let v_0_M = kv_tile[quad * 4u * KV_STRIDE + lane + M * LANES];
      let v_1_M = kv_tile[(quad * 4u + 1u) * KV_STRIDE + lane + M * LANES];
      let v_2_M = kv_tile[(quad * 4u + 2u) * KV_STRIDE + lane + M * LANES];
      let v_3_M = kv_tile[(quad * 4u + 3u) * KV_STRIDE + lane + M * LANES];
      // unroll N in THREAD_ROWS {
      if HAS_WINDOW && !whole {
        o_N_C_M = add_visible(p_N.x, v_0_M, o_N_C_M);
        o_N_C_M = add_visible(p_N.y, v_1_M, o_N_C_M);
        o_N_C_M = add_visible(p_N.z, v_2_M, o_N_C_M);
        o_N_C_M = add_visible(p_N.w, v_3_M, o_N_C_M);
      } else {
        o_N_C_M = fma(vec4<f32>(p_N.x), v_0_M, o_N_C_M);
        o_N_C_M = fma(vec4<f32>(p_N.y), v_1_M, o_N_C_M);
        o_N_C_M = fma(vec4<f32>(p_N.z), v_2_M, o_N_C_M);
        o_N_C_M = fma(vec4<f32>(p_N.w), v_3_M, o_N_C_M);
      }
      // }
      // }
    }
    // }
  }

  // unroll N in THREAD_ROWS {
  if tile.row + row_N < params.row_count {
    let first = params.o_offset + tile.batch * params.o_stride_batch + tile.head * params.o_stride_head
      + (tile.row + row_N) * params.o_stride_row;
    // unroll C in V_CHUNKS {
    // unroll M in THREAD_QUADS {
    let dim_C_M = (C * V_CHUNK_QUADS + lane + M * LANES) * 4u;
    if dim_C_M < HEAD_DIM_V { store_o(first + dim_C_M, HEAD_DIM_V - dim_C_M, o_N_C_M); }
    // }
    // }
  }
  // }
}
