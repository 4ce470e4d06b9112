// FlashAttention, forward (Dao et al. 2022; loop order of FlashAttention-2).
//
//   for each Q tile i:                                   one workgroup
//     O_i = 0, l_i = 0, m_i = −∞
//     for each KV tile j that some row of i sees:
//       S     = softmax_scale · Q_i K_jᵀ, masked
//       m_new = max(m_i, rowmax(S))
//       P     = exp(S − m_new)
//       α     = exp(m_i − m_new)
//       l_i   = α · l_i + rowsum(P)
//       O_i   = α · O_i + dropout(P) V_j
//       m_i   = m_new
//     O_i = O_i / l_i,   LSE_i = m_i + ln l_i
//
// S, m and the exponents are in units of log2(e): exp(x) = exp2(log2(e) · x), and the factor rides on softmax_scale.
//
// Who owns what: a workgroup one Q tile of one head; an invocation THREAD_ROWS of its rows and, of S and P, 4
// neighbouring keys in each, of O every KEY_LANES-th quad of head dimensions. Workgroup memory holds the Q tile, the K
// or V tile and P; registers hold S, m, l and O.

@group(0) @binding(BINDING_lse) var<storage, read_write> lse: array<f32>;

@compute @workgroup_size(INVOCATIONS)
fn main(@builtin(workgroup_id) workgroup_id: vec3<u32>, invocation_input: Invocation) {
  let invocation = invocation_index(invocation_input);
  let tile = q_tile_at(workgroup_id.y * params.grid_width + workgroup_id.x);
  if tile.batch >= params.batch_count { return; }
  let lane = invocation % KEY_LANES;
  let row_lane = invocation / KEY_LANES;

  // O_i = 0, l_i = 0, m_i = −∞
  // unroll N in THREAD_ROWS {
  let row_N = row_lane + N * ROW_LANES;
  var l_N = 0.0;
  var m_N = MASKED;
  // unroll C in V_CHUNKS {
  // unroll M in THREAD_QUADS {
  var o_N_C_M = vec4<f32>(0.0);
  // }
  // }
  // }
  if K_CHUNKS == 1u { stage_q(tile, 0u, invocation); }

  // for each KV tile j that some row of i sees:
  let range = block_range(tile.first_row, tile.last_row);
  // The next tile of K and of V, fetched while the one before is computed with.
  // unroll L in K_FETCHES {
  var k_next_L = vec4<f32>(0.0);
  if range.first < range.end { k_next_L = fetch_k(tile, range.first * TILE_KV, 0u, invocation + L * INVOCATIONS); }
  // }
  // unroll L in V_FETCHES {
  var v_next_L = vec4<f32>(0.0);
  // }
  for (var j = range.first; j < range.end; j++) {
    let key_first = j * TILE_KV;
    let key = key_first + lane * 4u;

    // S = softmax_scale · Q_i K_jᵀ
    // unroll N in THREAD_ROWS {
    var s_N = vec4<f32>(0.0);
    // }
    for (var chunk = 0u; chunk < K_CHUNKS; chunk++) {
      workgroupBarrier(); // the last tile is read
      if K_CHUNKS > 1u { stage_q(tile, chunk, invocation); }
      // unroll L in K_FETCHES {
      place_k(invocation + L * INVOCATIONS, k_next_L);
      // }
      workgroupBarrier();
      if chunk + 1u < K_CHUNKS {
        // unroll L in K_FETCHES {
        k_next_L = fetch_k(tile, key_first, chunk + 1u, invocation + L * INVOCATIONS);
        // }
      } else {
        // unroll L in V_FETCHES {
        v_next_L = fetch_v(tile, key_first, 0u, invocation + L * INVOCATIONS);
        // }
      }
      for (var d = 0u; d < K_CHUNK_QUADS; d++) {
        let k_0 = kv_tile[lane * KV_STRIDE + d];
        let k_1 = kv_tile[(lane + KEY_LANES) * KV_STRIDE + d];
        let k_2 = kv_tile[(lane + 2u * KEY_LANES) * KV_STRIDE + d];
        let k_3 = kv_tile[(lane + 3u * KEY_LANES) * KV_STRIDE + d];
        // unroll N in THREAD_ROWS {
        let q_N = q_tile[row_N * Q_STRIDE + d];
        s_N = vec4<f32>(dot_add(q_N, k_0, s_N.x), dot_add(q_N, k_1, s_N.y), dot_add(q_N, k_2, s_N.z), dot_add(q_N, k_3, s_N.w));
        // }
      }
    }

    // masked
    let whole = is_whole(range, j);
    if !whole {
      // unroll N in THREAD_ROWS {
      s_N = select(vec4<f32>(MASKED), s_N, sees(visible_keys(params.row_first + tile.row + row_N), key));
      // }
    }

    // m_new = max(m_i, rowmax(S))
    // unroll N in THREAD_ROWS {
    let s_max_N = max(max(s_N.x, s_N.y), max(s_N.z, s_N.w));
    row_share(row_N, lane, s_max_N);
    // }
    workgroupBarrier(); // the maxima are shared, and K is read
    // unroll L in V_FETCHES {
    place_v(invocation + L * INVOCATIONS, v_next_L);
    // }
    // unroll N in THREAD_ROWS {
    let m_new_N = max(m_N, row_max(row_N, s_max_N));

    // P = exp(S − m_new); where a row has seen nothing yet, m_new is MASKED too and P must still be 0
    var p_N = exp2(s_N - vec4<f32>(m_new_N));
    if !whole { p_N = select(p_N, vec4<f32>(0.0), s_N == vec4<f32>(MASKED)); }

    // α = exp(m_i − m_new), l_i = α · l_i + rowsum(P) (this invocation's part of it), O_i = α · O_i
    let alpha_N = exp2(m_N - m_new_N);
    m_N = m_new_N;
    l_N = fma(alpha_N, l_N, (p_N.x + p_N.y) + (p_N.z + p_N.w));
    // unroll C in V_CHUNKS {
    // unroll M in THREAD_QUADS {
    o_N_C_M *= alpha_N;
    // }
    // }

    // dropout(P)
    if HAS_DROPOUT {
      let i = params.row_first + tile.row + row_N;
      p_N = dropout(p_N, params.batch_first + tile.batch, params.head_first + tile.head, i, key);
    }
    p_tile[row_N * P_STRIDE + lane] = p_N;
    // }

    // O_i += dropout(P) V_j
    // unroll C in V_CHUNKS {
    if C > 0u {
      workgroupBarrier(); // the last chunk of V is read
      // unroll L in V_FETCHES {
      place_v(invocation + L * INVOCATIONS, v_next_L);
      // }
    }
    workgroupBarrier(); // P and V are in place
    if C + 1u < V_CHUNKS {
      // unroll L in V_FETCHES {
      v_next_L = fetch_v(tile, key_first, C + 1u, invocation + L * INVOCATIONS);
      // }
    } else {
      // unroll L in K_FETCHES {
      k_next_L = fetch_k(tile, key_first + TILE_KV, 0u, invocation + L * INVOCATIONS);
      // }
    }
    if HAS_WINDOW && !whole {
      for (var quad = 0u; quad < KEY_LANES; quad++) {
        // unroll N in THREAD_ROWS {
        let p_N = p_tile[row_N * P_STRIDE + quad];
        // }
        // unroll M in THREAD_QUADS {
        let v_0_M = kv_tile[quad * 4u * KV_STRIDE + lane + M * KEY_LANES];
        let v_1_M = kv_tile[(quad * 4u + 1u) * KV_STRIDE + lane + M * KEY_LANES];
        let v_2_M = kv_tile[(quad * 4u + 2u) * KV_STRIDE + lane + M * KEY_LANES];
        let v_3_M = kv_tile[(quad * 4u + 3u) * KV_STRIDE + lane + M * KEY_LANES];
        // unroll N in THREAD_ROWS {
        o_N_C_M = add_visible(p_N.x, v_0_M, o_N_C_M);
        o_N_C_M = add_visible(p_N.y, v_1_M, o_N_C_M);
        o_N_C_M = add_visible(p_N.z, v_2_M, o_N_C_M);
        o_N_C_M = add_visible(p_N.w, v_3_M, o_N_C_M);
        // }
        // }
      }
    } else {
      for (var quad = 0u; quad < KEY_LANES; quad++) {
        // unroll N in THREAD_ROWS {
        let p_N = p_tile[row_N * P_STRIDE + quad];
        // }
        // unroll M in THREAD_QUADS {
        let v_0_M = kv_tile[quad * 4u * KV_STRIDE + lane + M * KEY_LANES];
        let v_1_M = kv_tile[(quad * 4u + 1u) * KV_STRIDE + lane + M * KEY_LANES];
        let v_2_M = kv_tile[(quad * 4u + 2u) * KV_STRIDE + lane + M * KEY_LANES];
        let v_3_M = kv_tile[(quad * 4u + 3u) * KV_STRIDE + lane + M * KEY_LANES];
        // unroll N in THREAD_ROWS {
        o_N_C_M = fma(vec4<f32>(p_N.x), v_0_M, o_N_C_M);
        o_N_C_M = fma(vec4<f32>(p_N.y), v_1_M, o_N_C_M);
        o_N_C_M = fma(vec4<f32>(p_N.z), v_2_M, o_N_C_M);
        o_N_C_M = fma(vec4<f32>(p_N.w), v_3_M, o_N_C_M);
        // }
        // }
      }
    }
    // }
  }

  // O_i = O_i / l_i, LSE_i = m_i + ln l_i; a row that sees nothing gives 0 and −∞
  workgroupBarrier();
  // unroll N in THREAD_ROWS {
  row_share(row_N, lane, l_N);
  // }
  workgroupBarrier();
  // unroll N in THREAD_ROWS {
  let sum_N = row_sum(row_N, l_N);
  let visible_N = visible_keys(params.row_first + tile.row + row_N);
  let empty_N = visible_N.x >= visible_N.y;
  if tile.row + row_N < params.row_count {
    let factor = select(params.dropout_scale / sum_N, 0.0, empty_N);
    let first = params.o_offset + tile.batch * params.o_stride_batch + tile.head * params.o_stride_head
      + (tile.row + row_N) * params.o_stride_row;
    // unroll C in V_CHUNKS {
    // unroll M in THREAD_QUADS {
    let dim_C_M = (C * V_CHUNK_QUADS + lane + M * KEY_LANES) * 4u;
    if dim_C_M < HEAD_DIM_V { store_o(first + dim_C_M, HEAD_DIM_V - dim_C_M, o_N_C_M * factor); }
    // }
    // }
    if lane == 0u {
      let index = params.lse_offset + tile.batch * params.lse_stride_batch + tile.head * params.lse_stride_head
        + tile.row + row_N;
      lse[index] = select((m_N + log2(sum_N)) * LN_2, params.negative_infinity, empty_N);
    }
  }
  // }
}
