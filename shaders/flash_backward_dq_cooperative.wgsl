// FlashAttention, backward, dQ on cooperative matrices: the loop of flash_backward_dq.wgsl with its three products done by
// the matrix units, f16 in and f32 accumulated.
//
//   for each Q tile i:                                   one workgroup
//     dQ_i = 0
//     for each KV tile j that some row of i sees:
//       for each fragment of keys of j:
//         S    = Q_i K_jᵀ, dP = dO_i V_jᵀ                on matrices
//         P    = exp(softmax_scale · S − LSE_i), masked  through scratch memory
//         dS   = P ∘ (dropout(dP) − D_i)
//         dQ_i = dQ_i + dS K_j                           on matrices
//     dQ_i = softmax_scale · dQ_i
//
// Who owns what: as in flash_backward_dkdv_cooperative.wgsl, with Q, dO and dQ of THREAD_ROWS rows in the registers of a
// subgroup, and the K and V tiles in workgroup memory.

@compute @workgroup_size(INVOCATIONS)
fn main(
  @builtin(workgroup_id) workgroup_id: vec3<u32>,
  @builtin(subgroup_id) subgroup_id: u32,
  @builtin(subgroup_invocation_id) subgroup_invocation_id: u32,
) {
  let index = workgroup_id.y * params.grid_width + workgroup_id.x;
  if index >= q_tile_count() { return; }
  let tile = q_tile_at(index);
  let invocation = subgroup_id * LANES + subgroup_invocation_id;

  // The subgroup's scratch, and this invocation's two quads in it.
  let row_in_fragment = subgroup_invocation_id % MATRIX_SIDE;
  let first_quad = subgroup_invocation_id / MATRIX_SIDE * 2u;
  let s_scratch = subgroup_id * MATRIX_SIDE * S_STRIDE;
  let s_mine = s_scratch + row_in_fragment * S_STRIDE + first_quad;
  let p_scratch = subgroup_id * MATRIX_SIDE * P_STRIDE;
  let p_mine = p_scratch + row_in_fragment * P_STRIDE + first_quad;
  let s_stride = S_STRIDE;

  // Q_i, dO_i, LSE_i, D_i; dQ_i = 0
  let q_at = params.q_offset + tile.batch * params.q_stride_batch + tile.head * params.q_stride_head;
  let d_o_at = params.d_o_offset + tile.batch * params.d_o_stride_batch + tile.head * params.d_o_stride_head;
  let lse_at = tile.batch * params.lse_stride_batch + tile.head * params.lse_stride_head;
  // unroll E in OWNED_FRAGMENTS {
  let row_E = tile.row + subgroup_id * THREAD_ROWS + E * MATRIX_SIDE + row_in_fragment;
  let stats_E = row_stats(lse_at, row_E, params.row_count);
  let visible_E = visible_keys(params.row_first + row_E);
  // unroll M in K_FRAGMENTS {
  p_tile[p_mine] = fetch_q(q_at, row_E, params.row_count, M * MATRIX_QUADS + first_quad);
  p_tile[p_mine + 1u] = fetch_q(q_at, row_E, params.row_count, M * MATRIX_QUADS + first_quad + 1u);
  scratch_barrier();
  let q_E_M = coopLoadT<MatrixA>(&p_tile[p_scratch], P_STRIDE);
  scratch_barrier();
  var dq_E_M = MatrixC();
  // }
  // unroll M in V_FRAGMENTS {
  p_tile[p_mine] = fetch_d_o(d_o_at, row_E, params.row_count, M * MATRIX_QUADS + first_quad);
  p_tile[p_mine + 1u] = fetch_d_o(d_o_at, row_E, params.row_count, M * MATRIX_QUADS + first_quad + 1u);
  scratch_barrier();
  let d_o_E_M = coopLoadT<MatrixA>(&p_tile[p_scratch], P_STRIDE);
  scratch_barrier();
  // }
  // }
  var ds_gain = 1e38;
  for (var key = invocation; key < TILE_KV; key += INVOCATIONS) { atomicStore(&poisoned[key], 0u); }

  // for each KV tile j that some row of i sees:
  let range = block_range(tile.first_row, tile.last_row);
  let k_at = params.k_offset + tile.batch * params.k_stride_batch + tile.head_kv * params.k_stride_head;
  let v_at = params.v_offset + tile.batch * params.v_stride_batch + tile.head_kv * params.v_stride_head;
  // The next tile is fetched into registers while the one before is computed with.
  // unroll L in K_FETCHES {
  var k_next_L = Loaded();
  if range.first < range.end {
    k_next_L = fetch_k(k_at, range.first * TILE_KV, params.seqlen_kv, invocation + L * INVOCATIONS);
  }
  // }
  // unroll L in V_FETCHES {
  var v_next_L = Loaded();
  if range.first < range.end {
    v_next_L = fetch_v(v_at, range.first * TILE_KV, params.seqlen_kv, invocation + L * INVOCATIONS);
  }
  // }
  for (var j = range.first; j < range.end; j++) {
    let partial = !is_whole(range, j);
    workgroupBarrier(); // the last tile is read
    // unroll L in K_FETCHES {
    place_k(invocation + L * INVOCATIONS, k_next_L, HAS_WINDOW && partial, j + 1u);
    k_next_L = fetch_k(k_at, (j + 1u) * TILE_KV, params.seqlen_kv, invocation + L * INVOCATIONS);
    // }
    // unroll L in V_FETCHES {
    place_v(invocation + L * INVOCATIONS, v_next_L, HAS_WINDOW && partial, j + 1u);
    v_next_L = fetch_v(v_at, (j + 1u) * TILE_KV, params.seqlen_kv, invocation + L * INVOCATIONS);
    // }
    workgroupBarrier(); // the tile is in place

    for (var fragment = 0u; fragment < TILE_KV; fragment += MATRIX_SIDE) {
      // S = Q_i K_jᵀ, dP = dO_i V_jᵀ
      let k_fragment = fragment * K_STRIDE;
      let v_fragment = fragment * V_STRIDE;
      // unroll E in OWNED_FRAGMENTS {
      var s_E = MatrixC();
      var dp_E = MatrixC();
      // }
      // unroll M in K_FRAGMENTS {
      let k_M = coopLoad<MatrixB>(&k_tile[k_fragment + M * MATRIX_QUADS], K_STRIDE);
      // unroll E in OWNED_FRAGMENTS {
      s_E = coopMultiplyAdd(q_E_M, k_M, s_E);
      // }
      // }
      // unroll M in V_FRAGMENTS {
      let v_M = coopLoad<MatrixB>(&v_tile[v_fragment + M * MATRIX_QUADS], V_STRIDE);
      // unroll E in OWNED_FRAGMENTS {
      dp_E = coopMultiplyAdd(d_o_E_M, v_M, dp_E);
      // }
      // }

      // P = exp(softmax_scale · S − LSE_i), masked; dS = P ∘ (dropout(dP) − D_i)
      let key = j * TILE_KV + fragment + first_quad * 4u;
      var ds_largest = 0.0;
      // unroll E in OWNED_FRAGMENTS {
      coopStoreT(s_E, &s_tile[s_scratch], s_stride);
      scratch_barrier();
      var p_0_E = exp2(fma(s_tile[s_mine], vec4<f32>(params.softmax_scale_log2), vec4<f32>(-stats_E.x)));
      var p_1_E = exp2(fma(s_tile[s_mine + 1u], vec4<f32>(params.softmax_scale_log2), vec4<f32>(-stats_E.x)));
      scratch_barrier();
      coopStoreT(dp_E, &s_tile[s_scratch], s_stride);
      scratch_barrier();
      var ds_0_E = s_tile[s_mine];
      var ds_1_E = s_tile[s_mine + 1u];
      scratch_barrier();
      if HAS_DROPOUT {
        let batch = params.batch_first + tile.batch;
        let head = params.head_first + tile.head;
        let keep_0 = kept(batch, head, params.row_first + row_E, key);
        let keep_1 = kept(batch, head, params.row_first + row_E, key + 4u);
        ds_0_E = select(vec4<f32>(0.0), ds_0_E * params.dropout_scale, keep_0);
        ds_1_E = select(vec4<f32>(0.0), ds_1_E * params.dropout_scale, keep_1);
      }
      ds_0_E = p_0_E * (ds_0_E - vec4<f32>(stats_E.y));
      ds_1_E = p_1_E * (ds_1_E - vec4<f32>(stats_E.y));
      if partial {
        if HAS_WINDOW {
          ds_0_E = select(ds_0_E, vec4<f32>(not_a_number()), are_poisoned(fragment + first_quad * 4u, j + 1u));
          ds_1_E = select(ds_1_E, vec4<f32>(not_a_number()), are_poisoned(fragment + first_quad * 4u + 4u, j + 1u));
        }
        ds_0_E = select(vec4<f32>(0.0), ds_0_E, sees(visible_E, key));
        ds_1_E = select(vec4<f32>(0.0), ds_1_E, sees(visible_E, key + 4u));
      }
      ds_largest = max(ds_largest, max(largest_of(ds_0_E), largest_of(ds_1_E)));
      // }

      // The scale of dS follows its largest value, as in flash_backward_dkdv_cooperative.wgsl.
      loop {
        if !subgroupAny(ds_largest * ds_gain > DS_MOST) { break; }
        let gain = gain_for(subgroupMax(ds_largest));
        let ratio = gain / ds_gain;
        ds_gain = gain;
        // unroll E in OWNED_FRAGMENTS {
        // unroll M in K_FRAGMENTS {
        dq_E_M = dq_E_M * ratio;
        // }
        // }
        break;
      }

      // unroll E in OWNED_FRAGMENTS {
      p_tile[p_mine] = vec4<f16>(ds_0_E * ds_gain);
      p_tile[p_mine + 1u] = vec4<f16>(ds_1_E * ds_gain);
      scratch_barrier();
      let ds_E = coopLoadT<MatrixA>(&p_tile[p_scratch], P_STRIDE);
      scratch_barrier();
      // }

      // dQ_i = dQ_i + dS K_j
      // unroll M in K_FRAGMENTS {
      let k_rows_M = coopLoadT<MatrixB>(&k_tile[k_fragment + M * MATRIX_QUADS], K_STRIDE);
      // unroll E in OWNED_FRAGMENTS {
      dq_E_M = coopMultiplyAdd(ds_E, k_rows_M, dq_E_M);
      // }
      // }
    }
  }

  // dQ_i = softmax_scale · dQ_i
  let factor = params.softmax_scale_log2 * LN_2 / ds_gain;
  let dq_at = params.dq_offset + tile.batch * params.dq_stride_batch + tile.head * params.dq_stride_head;
  // unroll E in OWNED_FRAGMENTS {
  let inside_E = row_E < params.row_count;
  // unroll M in K_FRAGMENTS {
  let dim_E_M = (M * MATRIX_QUADS + first_quad) * 4u;
  scratch_barrier();
  coopStoreT(dq_E_M, &s_tile[s_scratch], s_stride);
  scratch_barrier();
  if inside_E && dim_E_M < HEAD_DIM {
    store_dq(dq_at + row_E * params.dq_stride_row + dim_E_M, HEAD_DIM - dim_E_M, s_tile[s_mine] * factor);
  }
  if inside_E && dim_E_M + 4u < HEAD_DIM {
    store_dq(dq_at + row_E * params.dq_stride_row + dim_E_M + 4u, HEAD_DIM - dim_E_M - 4u, s_tile[s_mine + 1u] * factor);
  }
  // }
  // }
}
