// FlashAttention, forward (Dao et al. 2022; loop order of FlashAttention-2).
//
// Reads Q[batch, seqlen_q, num_heads, head_dim], K[batch, seqlen_kv, num_heads_kv, head_dim],
// V[batch, seqlen_kv, num_heads_kv, head_dim_v]. Writes O[batch, seqlen_q, num_heads, head_dim_v],
// LSE[batch, num_heads, seqlen_q]. With splits of the keys, O and LSE have one more index, the split, in front.
//
//   for each Q tile i, for each split of the keys:       one workgroup
//     O_i = 0, l_i = 0, m_i = −∞
//     for each KV tile j of the split that some row of i sees:
//       S     = softmax_scale · Q_i K_jᵀ, masked
//       m_new = max(m_i, rowmax(S)) if that grew by more than 2⁸, else m_i
//       P     = exp(S − m_new)
//       α     = exp(m_i − m_new)
//       l_i   = α · l_i + rowsum(P)
//       O_i   = α · O_i + dropout(P) V_j
//       m_i   = m_new
//     O_i = O_i / l_i,   LSE_i = m_i + ln l_i
//
// S, m and the exponents are in units of log2(e): exp(x) = exp2(log2(e) · x). softmax_scale contains the factor.
//
// Score modifiers, if there are any, change S before the mask (common/scores.wgsl).
//
// The keys are split if there are too few Q tiles to keep the device busy, or if a sum or a loop would be too long.
// combine.wgsl then merges the parts.
//
// Who owns what: a workgroup owns one Q tile of one head, and one split of the keys. LANES neighbouring invocations
// share THREAD_ROWS rows of it. Each has every LANES-th quad of the head dimensions of Q and O in its registers. S, P,
// m and l of their rows are in the registers of all of them. Workgroup memory holds the K and V tiles.

@compute @workgroup_size(INVOCATIONS)
fn main(
  @builtin(workgroup_id) workgroup_id: vec3<u32>,
  // unroll BUILTIN in INVOCATION_BUILTINS {
    @builtin(BUILTIN) BUILTIN: u32,
  // }
) {
  let invocation = invocation_index(
    // unroll BUILTIN in INVOCATION_BUILTINS {
      BUILTIN,
    // }
  );
  let index = workgroup_id.y * params.grid_width + workgroup_id.x;
  if index >= q_tile_count() * num_splits() { return; }
  let tile = q_tile_at(index / num_splits());
  // unroll PACKED in PACKED_SEQUENCES {
    if tile.row >= tile.sequence.row_count { return; }
  // }
  let split = index % num_splits();
  let lane = invocation % LANES;

  // unroll MODIFIED in MODIFIED_SCORES {
    enter_head(tile.batch, tile.head);
  // }
  // Q_i; O_i = 0, l_i = 0, m_i = −∞
  // unroll N in THREAD_ROWS {
    let row_N = invocation / LANES + N * ROW_LANES;
    var l_N = 0.0;
    var m_N = MASKED;
    // unroll M in K_LOADS, B in BROADCAST {
      let q_N_M_B = fetch_q(tile, row_N, quad_of(invocation, M, B));
    // }
    // unroll M in V_LOADS, B in BROADCAST {
      var o_N_M_B = vec4<f32>(0.0);
    // }
  // }

  // for each KV tile j of the split that some row of i sees:
  let range = keys_of(kv_tiles_of(tile), split);
  let visits = visits_of(range);
  // The next tile is fetched into registers while the one before is computed with.
  // unroll L in K_FETCHES {
    var k_next_L = Loaded();
    if visits.count > 0u { k_next_L = fetch_k(tile, tile_at(visits, 0u) * TILE_KV, invocation + L * INVOCATIONS); }
  // }
  // unroll L in V_FETCHES {
    var v_next_L = Loaded();
    if visits.count > 0u { v_next_L = fetch_v(tile, tile_at(visits, 0u) * TILE_KV, invocation + L * INVOCATIONS); }
  // }
  var visit = 0u;
  // unroll SEEN in SEEN_LOOPS {
    for (; visit < until_SEEN(visits); visit++) {
      let first_key = tile_at(visits, visit) * TILE_KV;
      let next_key = tile_at(visits, visit + 1u) * TILE_KV;
      let masked = IS_MASKED_SEEN && visit >= visits.num_whole;
      workgroupBarrier(); // the last tile is read
      // unroll L in K_FETCHES {
        place_k(invocation + L * INVOCATIONS, k_next_L);
        k_next_L = fetch_k(tile, next_key, invocation + L * INVOCATIONS);
      // }
      // unroll L in V_FETCHES {
        place_v(invocation + L * INVOCATIONS, v_next_L);
        v_next_L = fetch_v(tile, next_key, invocation + L * INVOCATIONS);
      // }
      workgroupBarrier(); // the tile is in place

      // a few quads of keys at a time
      for (var key = 0u; key < TILE_KV; key += 4u * GROUP_QUADS) {
        // S = softmax_scale · Q_i K_jᵀ
        // unroll N in THREAD_ROWS, G in GROUP_QUADS, E in KEYS {
          var s_N_G_E = 0.0;
        // }
        // unroll M in K_LOADS, G in GROUP_QUADS, E in KEYS {
          let k_G_E_M = k_tile[(key + G * 4u + E) * K_STRIDE + place_of(invocation, M)];
          // unroll B in BROADCAST {
            let k_G_E_M_B = part_B(k_G_E_M);
            // unroll N in THREAD_ROWS {
              s_N_G_E = dot_add(q_N_M_B, k_G_E_M_B, s_N_G_E);
            // }
          // }
        // }
        // unroll N in THREAD_ROWS, G in GROUP_QUADS {
          lane_share(N * GROUP_QUADS + G, invocation, vec4<f32>(s_N_G_0, s_N_G_1, s_N_G_2, s_N_G_3));
        // }
        lane_barrier();
        // unroll N in THREAD_ROWS, G in GROUP_QUADS {
          var s_N_G = lane_sum(N * GROUP_QUADS + G, invocation, vec4<f32>(s_N_G_0, s_N_G_1, s_N_G_2, s_N_G_3));
        // }

        // unroll MODIFIED in MODIFIED_SCORES, N in THREAD_ROWS, G in GROUP_QUADS {
          s_N_G = scored(s_N_G, cell_at(tile.batch, tile.head, tile.row + row_N, first_key + key + G * 4u));
        // }

        // masked
        if masked {
          // unroll N in THREAD_ROWS {
            let visible_N = visible_keys(params.batch_first + tile.batch, params.row_first + tile.row + row_N);
            // unroll G in GROUP_QUADS {
              let cell_N_G = cell_at(tile.batch, tile.head, tile.row + row_N, first_key + key + G * 4u);
              s_N_G = select(vec4<f32>(MASKED), s_N_G, sees(visible_N, cell_N_G));
            // }
          // }
        }

        // m_new = max(m_i, rowmax(S)) if that grew by more than 2⁸, α = exp(m_i − m_new); l_i = α · l_i, O_i = α · O_i
        var grew = false;
        // unroll N in THREAD_ROWS {
          var s_max_N = MASKED;
          // unroll G in GROUP_QUADS {
            s_max_N = max(s_max_N, largest_of_four(s_N_G));
          // }
          grew = grew || s_max_N > m_N + MAX_GROWTH;
        // }
        if grew {
          // unroll N in THREAD_ROWS {
            let m_new_N = max(m_N, s_max_N);
            let alpha_N = exp2(m_N - m_new_N);
            m_N = m_new_N;
            l_N *= alpha_N;
            // unroll M in V_LOADS, B in BROADCAST {
              o_N_M_B *= alpha_N;
            // }
          // }
        }

        // unroll N in THREAD_ROWS, G in GROUP_QUADS {
          // P = exp(S − m_new); where a row has seen nothing yet, m_new is MASKED too and P must still be 0
          var p_N_G = exp2(s_N_G - vec4<f32>(m_N));
          if masked { p_N_G = select(p_N_G, vec4<f32>(0.0), s_N_G == vec4<f32>(MASKED)); }
          // l_i = l_i + rowsum(P)
          l_N += (p_N_G.x + p_N_G.y) + (p_N_G.z + p_N_G.w);
          // dropout(P)
          if HAS_DROPOUT {
            let i = params.row_first + tile.row + row_N;
            let dropped_key = first_key + key + G * 4u;
            p_N_G = dropout(p_N_G, params.batch_first + tile.batch, params.head_first + tile.head, i, dropped_key);
          }
        // }

        // O_i = O_i + dropout(P) V_j
        if HAS_WINDOW && masked {
          // unroll G in GROUP_QUADS, E in KEYS, M in V_LOADS {
            let v_G_E_M = v_tile[(key + G * 4u + E) * V_STRIDE + place_of(invocation, M)];
            // unroll B in BROADCAST {
              let v_G_E_M_B = part_B(v_G_E_M);
              // unroll N in THREAD_ROWS {
                o_N_M_B = add_seen(!(s_N_G[E] == MASKED), p_N_G[E], v_G_E_M_B, o_N_M_B);
              // }
            // }
          // }
        } else {
          // unroll G in GROUP_QUADS, E in KEYS, M in V_LOADS {
            let v_G_E_M = v_tile[(key + G * 4u + E) * V_STRIDE + place_of(invocation, M)];
            // unroll B in BROADCAST {
              let v_G_E_M_B = part_B(v_G_E_M);
              // unroll N in THREAD_ROWS {
                o_N_M_B = fma(vec4<f32>(p_N_G[E]), v_G_E_M_B, o_N_M_B);
              // }
            // }
          // }
        }
      }
    }
  // }

  // O_i = O_i / l_i, LSE_i = m_i + ln l_i; a row that sees nothing, or only scores of −∞, gives 0 and −∞
  // unroll N in THREAD_ROWS, EXTENT in EXTENT_OF_TILE, ATO in AT_O {
    let empty_N = l_N == 0.0;
    if tile.row + row_N < EXTENT.row_count {
      let end = row_end(cell_at(tile.batch, tile.head, tile.row + row_N, 0u), m_N, l_N);
      let factor = params.dropout_scale * end.share;
      let first = o_row(split, tile.ATO, tile.head, tile.row + row_N);
      // unroll M in V_LOADS, B in BROADCAST {
        let dim_M_B = quad_of(invocation, M, B) * 4u;
        let result_M_B = select(o_N_M_B * factor, vec4<f32>(0.0), empty_N);
        if dim_M_B < HEAD_DIM_V { write_o(first, dim_M_B, result_M_B); }
      // }
      if lane == 0u { write_lse(split, tile.ATO, tile.head, tile.row + row_N, end.lse); }
    }
  // }
}
