// FlashAttention, backward, third kernel: dQ.
//
// Reads Q[batch, seqlen_q, num_heads, head_dim], K[batch, seqlen_kv, num_heads_kv, head_dim],
// V[batch, seqlen_kv, num_heads_kv, head_dim_v], dO[batch, seqlen_q, num_heads, head_dim_v],
// LSE and D [batch, num_heads, seqlen_q, 2]. Writes dQ of the shape of Q.
//
//   for each Q tile i:                                   one workgroup
//     dQ_i = 0
//     for each KV tile j that some row of i sees:
//       for each key of j:
//         P    = exp(softmax_scale · Q_i K_jᵀ − LSE_i), masked
//         dP   = dropout(dO_i V_jᵀ)
//         dS   = P ∘ (dP − D_i)
//         dQ_i = dQ_i + dS K_j
//     dQ_i = softmax_scale · dQ_i
//
// S and LSE are in units of log2(e).
//
// Who owns what: as in flash_forward.wgsl, with Q, dO and dQ of the rows in registers.

// unroll EXTENT in EXTENT_OF_TILE, ATQ in AT_Q {
  // A quad of dO.
  fn fetch_d_o(tile: QTile, row: u32, quad: u32) -> vec4<f32> {
    let first = params.d_o_offset + tile.ATQ * params.d_o_stride_batch + tile.head * params.d_o_stride_head;
    let inside_row = min(tile.row + row, EXTENT.row_count - 1u);
    let inside_dim = min(quad * 4u, LAST_QUAD_V);
    let value = load_d_o(first + inside_row * params.d_o_stride_row + inside_dim, HEAD_DIM_V - inside_dim);
    let inside = quad * 4u < HEAD_DIM_V && tile.row + row < EXTENT.row_count;
    return select(vec4<f32>(0.0), decode(value), inside);
  }
// }

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
  if index >= q_tile_count() { return; }
  let tile = q_tile_at(index);
  // unroll PACKED in PACKED_SEQUENCES {
    if tile.row >= tile.sequence.row_count { return; }
  // }
  let lane = invocation % LANES;
  // unroll MODIFIED in MODIFIED_SCORES {
    enter_head(tile.batch, tile.head);
  // }
  // unroll ATQ in AT_Q {
    let head_at = tile.ATQ * params.lse_stride_batch + tile.head * params.lse_stride_head;
  // }

  // Q_i, dO_i, LSE_i, D_i; dQ_i = 0
  // unroll N in THREAD_ROWS, EXTENT in EXTENT_OF_TILE {
    let row_N = invocation / LANES + N * ROW_LANES;
    let stats_N = stats_of_row(head_at, tile.row + row_N, EXTENT.row_count);
    // unroll M in K_QUADS {
      let q_N_M = fetch_q(tile, row_N, lane + M * LANES);
      var dq_N_M = vec4<f32>(0.0);
    // }
    // unroll M in V_QUADS {
      let d_o_N_M = fetch_d_o(tile, row_N, lane + M * LANES);
    // }
  // }

  // for each KV tile j that some row of i sees:
  // Tiles that all rows see whole come first, so their loop needs no mask.
  let visits = visits_of(kv_tiles_of(tile));
  let first_key = tile_at(visits, 0u) * TILE_KV;
  // The next tile is fetched into registers while the one before is computed with.
  // unroll L in K_FETCHES {
    var k_next_L = Loaded();
    if visits.count > 0u { k_next_L = fetch_k(tile, first_key, invocation + L * INVOCATIONS); }
  // }
  // unroll L in V_FETCHES {
    var v_next_L = Loaded();
    if visits.count > 0u { v_next_L = fetch_v(tile, first_key, invocation + L * INVOCATIONS); }
  // }
  // unroll LONG in LONG_SUMS {
    // unroll N in THREAD_ROWS, M in K_QUADS {
      var dq_total_N_M = vec4<f32>(0.0);
    // }
    let tiles_at_once = tiles_of_a_sum(visits.count, TILE_KV);
    var tiles_left = tiles_at_once;
  // }
  var visit = 0u;
  // unroll SEEN in SEEN_LOOPS {
    for (; visit < until_SEEN(visits); visit++) {
      let j = tile_at(visits, visit);
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
      if HAS_DROPOUT {
        place_keep(params.batch_first + tile.batch, params.head_first + tile.head, tile.first_row, j * TILE_KV,
          invocation);
      }
      workgroupBarrier(); // the tile is in place

      for (var key = 0u; key < TILE_KV; key++) {
        // unroll M in K_QUADS {
          let k_M = k_tile[key * K_STRIDE + lane + M * LANES];
        // }
        // unroll M in V_QUADS {
          let v_M = v_tile[key * V_STRIDE + lane + M * LANES];
        // }

        // Q_i K_jᵀ and dO_i V_jᵀ
        // unroll N in THREAD_ROWS {
          var s_N = 0.0;
          // unroll M in K_QUADS {
            s_N = dot_add(q_N_M, k_M, s_N);
          // }
          var dp_N = 0.0;
          // unroll M in V_QUADS {
            dp_N = dot_add(d_o_N_M, v_M, dp_N);
          // }
          lane_share(N, invocation, Partial(s_N, dp_N));
        // }
        lane_barrier();

        // P = exp(S − LSE_i), dS = P ∘ (dropout(dP) − D_i)
        // unroll N in THREAD_ROWS {
          let sum_N = lane_sum(N, invocation, Partial(s_N, dp_N));
          var gradient_N = sum_N.y;
          if HAS_DROPOUT { gradient_N = select(0.0, gradient_N * params.dropout_scale, keeps(row_N, key)); }
          // unroll PLAIN in PLAIN_SCORES {
            let ds_N = exp2(sum_N.x - stats_N.x) * (gradient_N - stats_N.y);
          // }
          // unroll MODIFIED in MODIFIED_SCORES {
            let cell_N = cell_at(tile.batch, tile.head, tile.row + row_N, j * TILE_KV + key);
            let p_N = exp2(scored_one(sum_N.x, cell_N) - stats_N.x);
            let ds_N = score_gradient_one(p_N * (gradient_N - stats_N.y), sum_N.x, cell_N);
          // }
        // }

        // dQ_i = dQ_i + dS K_j, where a key outside the tensors is like one that the row does not see
        if masked {
          // unroll N in THREAD_ROWS {
            let masked_cell_N = cell_at(tile.batch, tile.head, tile.row + row_N, j * TILE_KV + key);
            let seen_N = sees(visible_keys(masked_cell_N.batch, tile.first_row + row_N), masked_cell_N).x;
            // unroll M in K_QUADS {
              dq_N_M = add_seen(seen_N, ds_N, k_M, dq_N_M);
            // }
          // }
        } else {
          // unroll N in THREAD_ROWS, M in K_QUADS {
            dq_N_M = fma(vec4<f32>(ds_N), k_M, dq_N_M);
          // }
        }
      }

      // unroll LONG in LONG_SUMS {
        tiles_left -= 1u;
        if tiles_left == 0u || visit + 1u == visits.count {
          tiles_left = tiles_at_once;
          // unroll N in THREAD_ROWS, M in K_QUADS {
            dq_total_N_M += dq_N_M;
            dq_N_M = vec4<f32>(0.0);
          // }
        }
      // }
    }
  // }
  // unroll LONG in LONG_SUMS, N in THREAD_ROWS, M in K_QUADS {
    dq_N_M = dq_total_N_M;
  // }

  // dQ_i = softmax_scale · dQ_i; 0 for a row that sees nothing, or only scores of −∞
  // unroll N in THREAD_ROWS, EXTENT in EXTENT_OF_TILE, ATQ in AT_Q {
    if tile.row + row_N < EXTENT.row_count {
      let first = params.dq_offset + tile.ATQ * params.dq_stride_batch + tile.head * params.dq_stride_head
        + (tile.row + row_N) * params.dq_stride_row;
      // unroll M in K_QUADS {
        let dim_M = (lane + M * LANES) * 4u;
        if dim_M < HEAD_DIM {
          let result = select(dq_N_M * (params.softmax_scale_log2 * LN_2), vec4<f32>(0.0), stats_N.x == -MASKED);
          store_dq(first + dim_M, HEAD_DIM - dim_M, result);
        }
      // }
    }
  // }
}
