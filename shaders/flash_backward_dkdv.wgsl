// FlashAttention, backward, second kernel: dK and dV.
//
// Reads Q[batch, seqlen_q, num_heads, head_dim], K[batch, seqlen_kv, num_heads_kv, head_dim],
// V[batch, seqlen_kv, num_heads_kv, head_dim_v], dO[batch, seqlen_q, num_heads, head_dim_v],
// LSE and D [batch, num_heads, seqlen_q, 2]. Writes dK of the shape of K, dV of the shape of V.
//
//   for each KV tile j of a KV head:                     one workgroup
//     dK_j = 0, dV_j = 0
//     for each query head that shares it, for each Q tile i with a row that sees some key of j:
//       for each row of i:
//         P    = exp(softmax_scale · Q_i K_jᵀ − LSE_i), masked
//         dP   = dropout(dO_i V_jᵀ)
//         dS   = P ∘ (dP − D_i)
//         dV_j = dV_j + dropout(P)ᵀ dO_i
//         dK_j = dK_j + dSᵀ Q_i
//     dK_j = softmax_scale · dK_j
//
// S and LSE are in units of log2(e). The sums go over heads and rows in order, so the bits never change.
//
// Who owns what: a workgroup owns one KV tile of one KV head. LANES neighbouring invocations share THREAD_ROWS
// neighbouring keys of it. Each has every LANES-th quad of the head dimensions of K, V, dK and dV in its registers. P
// and dS of their keys are in the registers of all of them. Workgroup memory holds the Q and dO tiles. An invocation
// reads a row of them once and uses it for all four products.

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
  if index >= kv_tile_count() { return; }
  let tile = kv_tile_at(index);
  // unroll PACKED in PACKED_SEQUENCES {
    if tile.key >= tile.sequence.key_count { return; }
  // }
  let lane = invocation % LANES;
  let key = invocation / LANES * THREAD_ROWS;

  // K_j, V_j; dK_j = 0, dV_j = 0
  // unroll N in THREAD_ROWS {
    // unroll M in K_QUADS {
      let k_N_M = fetch_k(tile, key + N, lane + M * LANES);
      var dk_N_M = vec4<f32>(0.0);
    // }
    // unroll M in V_QUADS {
      let v_N_M = fetch_v(tile, key + N, lane + M * LANES);
      var dv_N_M = vec4<f32>(0.0);
    // }
  // }

  // for each query head that shares it, for each Q tile i with a row that sees some key of j:
  // Tiles whose rows all see all keys come first, so their loop needs no mask.
  let visits = visits_of(q_tiles_of(tile));
  let steps = visits.count * params.heads_per_kv;
  let first_row = step_at(visits, 0u).row_tile * TILE_Q;
  // The next tile is fetched into registers while the one before is computed with.
  // unroll L in K_FETCHES {
    var q_next_L = Loaded();
    if steps > 0u { q_next_L = fetch_q(tile, tile.head, first_row, invocation + L * INVOCATIONS); }
  // }
  // unroll L in V_FETCHES {
    var d_o_next_L = Loaded();
    if steps > 0u { d_o_next_L = fetch_d_o(tile, tile.head, first_row, invocation + L * INVOCATIONS); }
  // }
  // unroll L in STATS_FETCHES {
    var stats_next_L = vec2<f32>(0.0);
    if steps > 0u { stats_next_L = fetch_stats(tile, tile.head, first_row, invocation + L * INVOCATIONS); }
  // }
  // unroll LONG in LONG_SUMS {
    // unroll N in THREAD_ROWS {
      // unroll M in K_QUADS {
        var dk_total_N_M = vec4<f32>(0.0);
      // }
      // unroll M in V_QUADS {
        var dv_total_N_M = vec4<f32>(0.0);
      // }
    // }
    let steps_at_once = tiles_of_a_sum(steps, TILE_Q);
    var steps_left = steps_at_once;
  // }
  var step = 0u;
  // unroll SEEN in SEEN_LOOPS {
    for (; step < until_SEEN(visits) * params.heads_per_kv; step++) {
      let now = step_at(visits, step);
      let head = tile.head + now.head;
      // unroll MODIFIED in MODIFIED_SCORES {
        enter_head(tile.batch, head);
      // }
      let i = now.row_tile;
      let masked = HAS_WINDOW && IS_MASKED_SEEN && now.visit >= visits.num_whole;
      let next = step_at(visits, min(step + 1u, steps - 1u));
      let next_head = tile.head + next.head;
      let next_row = next.row_tile * TILE_Q;
      workgroupBarrier(); // the last tile is read
      // unroll L in K_FETCHES {
        place_q(invocation + L * INVOCATIONS, q_next_L);
        q_next_L = fetch_q(tile, next_head, next_row, invocation + L * INVOCATIONS);
      // }
      // unroll L in V_FETCHES {
        place_d_o(invocation + L * INVOCATIONS, d_o_next_L);
        d_o_next_L = fetch_d_o(tile, next_head, next_row, invocation + L * INVOCATIONS);
      // }
      // unroll L in STATS_FETCHES {
        place_stats(invocation + L * INVOCATIONS, stats_next_L);
        stats_next_L = fetch_stats(tile, next_head, next_row, invocation + L * INVOCATIONS);
      // }
      if HAS_DROPOUT {
        place_keep(params.batch_first + tile.batch, params.head_first + head, i * TILE_Q, tile.first_key, invocation);
      }
      workgroupBarrier(); // the tile is in place

      for (var row = 0u; row < TILE_Q; row++) {
        // unroll M in K_QUADS {
          let q_M = q_tile[row * Q_STRIDE + lane + M * LANES];
        // }
        // unroll M in V_QUADS {
          let d_o_M = d_o_tile[row * D_O_STRIDE + lane + M * LANES];
        // }

        // Q_i K_jᵀ and dO_i V_jᵀ
        // unroll N in THREAD_ROWS {
          var s_N = 0.0;
          // unroll M in K_QUADS {
            s_N = dot_add(q_M, k_N_M, s_N);
          // }
          var dp_N = 0.0;
          // unroll M in V_QUADS {
            dp_N = dot_add(d_o_M, v_N_M, dp_N);
          // }
          lane_share(N, invocation, Partial(s_N, dp_N));
        // }
        lane_barrier();

        // P = exp(S − LSE_i), dS = P ∘ (dropout(dP) − D_i), dropout(P)
        let stats = stats_tile[row];
        // unroll N in THREAD_ROWS {
          let sum_N = lane_sum(N, invocation, Partial(s_N, dp_N));
          // unroll PLAIN in PLAIN_SCORES {
            let score_N = sum_N.x;
          // }
          // unroll MODIFIED in MODIFIED_SCORES {
            let cell_N = cell_at(tile.batch, head, i * TILE_Q + row, tile.first_key + key + N);
            let score_N = scored_one(sum_N.x, cell_N);
          // }
          var p_N = exp2(score_N - stats.x);
          var gradient_N = sum_N.y;
          if HAS_DROPOUT { gradient_N = select(0.0, gradient_N * params.dropout_scale, keeps(row, key + N)); }
          var ds_N = p_N * (gradient_N - stats.y);
          // unroll MODIFIED in MODIFIED_SCORES {
            ds_N = score_gradient_one(ds_N, sum_N.x, cell_N);
          // }
          if HAS_DROPOUT { p_N = select(0.0, p_N, keeps(row, key + N)); }
          // rows outside the tensors, and empty ones, give nothing, whatever the keys hold
          if IS_MASKED_SEEN {
            p_N = select(p_N, 0.0, stats.x == -MASKED);
            ds_N = select(ds_N, 0.0, stats.x == -MASKED);
          }
        // }

        // dV_j = dV_j + dropout(P)ᵀ dO_i, dK_j = dK_j + dSᵀ Q_i
        if masked {
          let visible = visible_keys(params.batch_first + tile.batch, i * TILE_Q + row);
          // unroll N in THREAD_ROWS {
            let seen_N = sees(visible, cell_at(tile.batch, head, i * TILE_Q + row, tile.first_key + key + N)).x;
            p_N = select(0.0, p_N, seen_N);
            ds_N = select(0.0, ds_N, seen_N);
            // unroll M in V_QUADS {
              dv_N_M = add_seen(seen_N, p_N, d_o_M, dv_N_M);
            // }
            // unroll M in K_QUADS {
              dk_N_M = add_seen(seen_N, ds_N, q_M, dk_N_M);
            // }
          // }
        } else {
          // unroll N in THREAD_ROWS {
            // unroll M in V_QUADS {
              dv_N_M = fma(vec4<f32>(p_N), d_o_M, dv_N_M);
            // }
            // unroll M in K_QUADS {
              dk_N_M = fma(vec4<f32>(ds_N), q_M, dk_N_M);
            // }
          // }
        }
      }

      // unroll LONG in LONG_SUMS {
        steps_left -= 1u;
        if steps_left == 0u || step + 1u == steps {
          steps_left = steps_at_once;
          // unroll N in THREAD_ROWS {
            // unroll M in K_QUADS {
              dk_total_N_M += dk_N_M;
              dk_N_M = vec4<f32>(0.0);
            // }
            // unroll M in V_QUADS {
              dv_total_N_M += dv_N_M;
              dv_N_M = vec4<f32>(0.0);
            // }
          // }
        }
      // }
    }
  // }
  // unroll LONG in LONG_SUMS, N in THREAD_ROWS {
    // unroll M in K_QUADS {
      dk_N_M = dk_total_N_M;
    // }
    // unroll M in V_QUADS {
      dv_N_M = dv_total_N_M;
    // }
  // }

  // dK_j = softmax_scale · dK_j; the kept probabilities' factor on dV_j
  // unroll N in THREAD_ROWS, EXTENT in EXTENT_OF_TILE, ATK in AT_K {
    if tile.key + key + N < EXTENT.key_count {
      let dk_first = params.dk_offset + tile.ATK * params.dk_stride_batch + tile.head_kv * params.dk_stride_head
        + (tile.key + key + N) * params.dk_stride_row;
      let dv_first = params.dv_offset + tile.ATK * params.dv_stride_batch + tile.head_kv * params.dv_stride_head
        + (tile.key + key + N) * params.dv_stride_row;
      // unroll M in K_QUADS {
        let k_dim_M = (lane + M * LANES) * 4u;
        if k_dim_M < HEAD_DIM {
          store_dk(dk_first + k_dim_M, HEAD_DIM - k_dim_M, dk_N_M * (params.softmax_scale_log2 * LN_2));
        }
      // }
      // unroll M in V_QUADS {
        let v_dim_M = (lane + M * LANES) * 4u;
        if v_dim_M < HEAD_DIM_V { store_dv(dv_first + v_dim_M, HEAD_DIM_V - v_dim_M, dv_N_M * params.dropout_scale); }
      // }
    }
  // }
}
