// FlashAttention, backward, dQ on cooperative matrices: the loop of flash_backward_dq.wgsl with its three products done
// by the matrix units, f16 in and f32 accumulated.
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
// f32 and bf16 pass in units of their rows, f32 in two parts, as in flash_forward_cooperative.wgsl.
//
// Who owns what: as in flash_backward_dkdv_cooperative.wgsl, with Q, dO and dQ of THREAD_ROWS rows in the registers of
// a subgroup, and the K and V tiles in workgroup memory.

// Rows of the scratch of S and dP, in quads: stored row by row, matrices meet no bank conflicts at this distance.
const S_STRIDE = MATRIX_QUADS + 2u;

// dS is in units of the row of dO, and all rows of a subgroup share one scale. So D counts where it is far larger than
// dO, as where dO is 0 and LSE has a gradient: the row would outgrow all others.
const D_SHARE = 0.000244140625; // 2⁻¹²

// How far apart the two quads of an invocation are, and how many invocations share a row.
const HIGH = MATRIX_QUADS / 2u;

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

  // The subgroup's scratch, and this invocation's two quads in it: HIGH apart, so that the lanes of a subgroup read and
  // write without bank conflicts.
  let row_in_fragment = subgroup_invocation_id / HIGH;
  let quad = subgroup_invocation_id % HIGH;
  let s_scratch = subgroup_id * MATRIX_SIDE * S_STRIDE;
  let s_low = s_scratch + row_in_fragment * S_STRIDE + quad;
  let s_high = s_low + HIGH;
  let p_scratch = subgroup_id * MATRIX_SIDE * P_STRIDE;
  let p_low = p_scratch + row_in_fragment * P_STRIDE + quad;
  let p_high = p_low + HIGH;
  let s_stride = S_STRIDE;

  // Q_i, dO_i, LSE_i, D_i; dQ_i = 0
  let q_at = params.q_offset + tile.batch * params.q_stride_batch + tile.head * params.q_stride_head;
  let d_o_at = params.d_o_offset + tile.batch * params.d_o_stride_batch + tile.head * params.d_o_stride_head;
  let lse_at = tile.batch * params.lse_stride_batch + tile.head * params.lse_stride_head;
  // unroll E in OWNED_FRAGMENTS {
    let row_E = tile.row + subgroup_id * THREAD_ROWS + E * MATRIX_SIDE + row_in_fragment;
    let stats_E = row_stats(lse_at, row_E, params.row_count);
    let visible_E = visible_keys(params.row_first + row_E);
    var q_largest_E = 0.0;
    // unroll M in K_FRAGMENTS {
      let q_0_E_M = score_operand(fetch_q(q_at, row_E, params.row_count, M * MATRIX_QUADS + quad));
      let q_1_E_M = score_operand(fetch_q(q_at, row_E, params.row_count, M * MATRIX_QUADS + quad + HIGH));
      q_largest_E = max(q_largest_E, max(largest_of_loaded(q_0_E_M), largest_of_loaded(q_1_E_M)));
    // }
    let q_scale_E = row_scale(q_largest_E, 1u, HIGH);
    let q_unit_E = inverse(q_scale_E);
    // unroll M in K_FRAGMENTS {
      p_tile[p_low] = to_half(q_0_E_M, q_scale_E);
      p_tile[p_high] = to_half(q_1_E_M, q_scale_E);
      // unroll REST in REST_PARTS {
        p_tile_REST[p_low] = to_rest(q_0_E_M, q_scale_E);
        p_tile_REST[p_high] = to_rest(q_1_E_M, q_scale_E);
      // }
      scratch_barrier();
      let q_E_M = coopLoadT<MatrixA>(&p_tile[p_scratch], P_STRIDE);
      // unroll REST in REST_PARTS {
        let q_REST_E_M = coopLoadT<MatrixA>(&p_tile_REST[p_scratch], P_STRIDE);
      // }
      scratch_barrier();
      var dq_E_M = MatrixC();
    // }
    var d_o_largest_E = 0.0;
    // unroll M in V_FRAGMENTS {
      let d_o_0_E_M = fetch_d_o(d_o_at, row_E, params.row_count, M * MATRIX_QUADS + quad);
      let d_o_1_E_M = fetch_d_o(d_o_at, row_E, params.row_count, M * MATRIX_QUADS + quad + HIGH);
      d_o_largest_E = max(d_o_largest_E, max(largest_of_loaded(d_o_0_E_M), largest_of_loaded(d_o_1_E_M)));
    // }
    let d_o_scale_E = row_scale(max(d_o_largest_E, abs(stats_E.y) * D_SHARE), 1u, HIGH);
    let d_o_unit_E = inverse(d_o_scale_E);
    // unroll M in V_FRAGMENTS {
      p_tile[p_low] = to_half(d_o_0_E_M, d_o_scale_E);
      p_tile[p_high] = to_half(d_o_1_E_M, d_o_scale_E);
      // unroll REST in REST_PARTS {
        p_tile_REST[p_low] = to_rest(d_o_0_E_M, d_o_scale_E);
        p_tile_REST[p_high] = to_rest(d_o_1_E_M, d_o_scale_E);
      // }
      scratch_barrier();
      let d_o_E_M = coopLoadT<MatrixA>(&p_tile[p_scratch], P_STRIDE);
      // unroll REST in REST_PARTS {
        let d_o_REST_E_M = coopLoadT<MatrixA>(&p_tile_REST[p_scratch], P_STRIDE);
      // }
      scratch_barrier();
    // }
  // }
  // unroll E in OWNED_FRAGMENTS {
    let s_factor_E = q_unit_E * params.softmax_scale_log2;
    let delta_E = stats_E.y * d_o_scale_E;
  // }
  var ds_gain = FIRST_GAIN;
  for (var key = invocation; key < TILE_KV; key += INVOCATIONS) { atomicStore(&poisoned[key], 0u); }

  // for each KV tile j that some row of i sees:
  // Those that all rows see whole come first, so that their loop needs no mask.
  let visits = visits_of(block_range(tile.first_row, tile.last_row));
  let k_at = params.k_offset + tile.batch * params.k_stride_batch + tile.head_kv * params.k_stride_head;
  let v_at = params.v_offset + tile.batch * params.v_stride_batch + tile.head_kv * params.v_stride_head;
  // The next tile is fetched into registers while the one before is computed with.
  // unroll L in K_FETCHES, P in K_FETCH_PARTS {
    var k_next_L_P = Loaded();
    if visits.count > 0u {
      k_next_L_P = fetch_k(k_at, tile_at(visits, 0u) * TILE_KV, params.seqlen_kv, invocation + L * INVOCATIONS, P);
    }
  // }
  // unroll L in V_FETCHES, P in V_FETCH_PARTS {
    var v_next_L_P = Loaded();
    if visits.count > 0u {
      v_next_L_P = fetch_v(v_at, tile_at(visits, 0u) * TILE_KV, params.seqlen_kv, invocation + L * INVOCATIONS, P);
    }
  // }
  var visit = 0u;
  // unroll SEEN in SEEN_LOOPS {
    for (; visit < until_SEEN(visits); visit++) {
      let j = tile_at(visits, visit);
      let next_key = tile_at(visits, visit + 1u) * TILE_KV;
      let masked = IS_MASKED_SEEN && visit >= visits.num_whole;
      workgroupBarrier(); // the last tile is read
      // unroll L in K_FETCHES {
        var k_largest_L = 0.0;
        // unroll P in K_FETCH_PARTS {
          k_next_L_P = score_operand(k_next_L_P);
          k_largest_L = max(k_largest_L, largest_of_loaded(k_next_L_P));
        // }
        let k_scale_L = row_scale(k_largest_L, 1u, K_FETCH_LANES);
        // unroll P in K_FETCH_PARTS {
          place_k(invocation + L * INVOCATIONS, P, k_next_L_P, k_scale_L, HAS_WINDOW && masked, visit + 1u);
          k_next_L_P = fetch_k(k_at, next_key, params.seqlen_kv, invocation + L * INVOCATIONS, P);
        // }
      // }
      // unroll L in V_FETCHES {
        var v_largest_L = 0.0;
        // unroll P in V_FETCH_PARTS {
          v_largest_L = max(v_largest_L, largest_of_loaded(v_next_L_P));
        // }
        let v_scale_L = row_scale(v_largest_L, 1u, V_FETCH_LANES);
        // unroll P in V_FETCH_PARTS {
          place_v(invocation + L * INVOCATIONS, P, v_next_L_P, v_scale_L, HAS_WINDOW && masked, visit + 1u);
          v_next_L_P = fetch_v(v_at, next_key, params.seqlen_kv, invocation + L * INVOCATIONS, P);
        // }
      // }
      workgroupBarrier(); // the tile is in place

      // The two loops are those of flash_backward_dkdv_cooperative.wgsl.
      var fragment = 0u;
      var ds_largest = 0.0;
      loop {
        if fragment >= TILE_KV { break; }
        loop {
          // S = Q_i K_jᵀ, dP = dO_i V_jᵀ
          // unroll R in PASSING_FRAGMENTS {
            let k_fragment_R = (fragment + R * MATRIX_SIDE) * K_STRIDE;
            let v_fragment_R = (fragment + R * MATRIX_SIDE) * V_STRIDE;
            // unroll E in OWNED_FRAGMENTS {
              var s_R_E = MatrixC();
              var dp_R_E = MatrixC();
              // unroll REST in REST_PARTS {
                var s_REST_R_E = MatrixC();
                var dp_REST_R_E = MatrixC();
              // }
            // }
          // }
          // unroll M in K_FRAGMENTS, R in PASSING_FRAGMENTS {
            let k_R_M = coopLoad<MatrixB>(&k_tile[k_fragment_R + M * MATRIX_QUADS], K_STRIDE);
            // unroll E in OWNED_FRAGMENTS {
              s_R_E = coopMultiplyAdd(q_E_M, k_R_M, s_R_E);
            // }
            // unroll REST in REST_PARTS {
              let k_REST_R_M = coopLoad<MatrixB>(&k_tile_REST[k_fragment_R + M * MATRIX_QUADS], K_STRIDE);
              // unroll E in OWNED_FRAGMENTS {
                s_REST_R_E = coopMultiplyAdd(q_REST_E_M, k_R_M, s_REST_R_E);
                s_REST_R_E = coopMultiplyAdd(q_E_M, k_REST_R_M, s_REST_R_E);
              // }
            // }
          // }
          // unroll M in V_FRAGMENTS, R in PASSING_FRAGMENTS {
            let v_R_M = coopLoad<MatrixB>(&v_tile[v_fragment_R + M * MATRIX_QUADS], V_STRIDE);
            // unroll E in OWNED_FRAGMENTS {
              dp_R_E = coopMultiplyAdd(d_o_E_M, v_R_M, dp_R_E);
            // }
            // unroll REST in REST_PARTS {
              let v_REST_R_M = coopLoad<MatrixB>(&v_tile_REST[v_fragment_R + M * MATRIX_QUADS], V_STRIDE);
              // unroll E in OWNED_FRAGMENTS {
                dp_REST_R_E = coopMultiplyAdd(d_o_REST_E_M, v_R_M, dp_REST_R_E);
                dp_REST_R_E = coopMultiplyAdd(d_o_E_M, v_REST_R_M, dp_REST_R_E);
              // }
            // }
          // }

          ds_largest = 0.0;
          // unroll R in PASSING_FRAGMENTS {
            let in_tile_R = fragment + R * MATRIX_SIDE + quad * 4u;
            let key_R = j * TILE_KV + in_tile_R;
            let k_units_low_R = k_units(in_tile_R);
            let k_units_high_R = k_units(in_tile_R + HIGH * 4u);
            // unroll E in OWNED_FRAGMENTS {
              // unroll REST in REST_PARTS {
                s_R_E = s_R_E + s_REST_R_E;
                dp_R_E = dp_R_E + dp_REST_R_E;
              // }
              // P = exp(softmax_scale · S − LSE_i)
              coopStoreT(s_R_E, &s_tile[s_scratch], s_stride);
              scratch_barrier();
              // unroll PLAIN in PLAIN_SCORES {
                let p_low_R_E = exp2(fma(s_tile[s_low] * k_units_low_R, vec4<f32>(s_factor_E), vec4<f32>(-stats_E.x)));
                let p_high_R_E = exp2(fma(s_tile[s_high] * k_units_high_R, vec4<f32>(s_factor_E), vec4<f32>(-stats_E.x)));
              // }
              // unroll MODIFIED in MODIFIED_SCORES {
                let cell_low_R_E = cell_at(tile.batch, tile.head, row_E, key_R);
                let cell_high_R_E = cell_at(tile.batch, tile.head, row_E, key_R + HIGH * 4u);
                let raw_low_R_E = s_tile[s_low] * k_units_low_R * s_factor_E;
                let raw_high_R_E = s_tile[s_high] * k_units_high_R * s_factor_E;
                let p_low_R_E = exp2(scored(raw_low_R_E, cell_low_R_E) - vec4<f32>(stats_E.x));
                let p_high_R_E = exp2(scored(raw_high_R_E, cell_high_R_E) - vec4<f32>(stats_E.x));
              // }
              scratch_barrier();
              // dS = P ∘ (dropout(dP) − D_i), masked
              coopStoreT(dp_R_E, &s_tile[s_scratch], s_stride);
              scratch_barrier();
              var ds_low_R_E = s_tile[s_low] * v_units(in_tile_R);
              var ds_high_R_E = s_tile[s_high] * v_units(in_tile_R + HIGH * 4u);
              scratch_barrier();
              if HAS_DROPOUT {
                let batch = params.batch_first + tile.batch;
                let head = params.head_first + tile.head;
                let keep_low = kept(batch, head, params.row_first + row_E, key_R);
                let keep_high = kept(batch, head, params.row_first + row_E, key_R + HIGH * 4u);
                ds_low_R_E = select(vec4<f32>(0.0), ds_low_R_E * params.dropout_scale, keep_low);
                ds_high_R_E = select(vec4<f32>(0.0), ds_high_R_E * params.dropout_scale, keep_high);
              }
              // in units of the row of dO
              ds_low_R_E = p_low_R_E * (ds_low_R_E - vec4<f32>(delta_E));
              ds_high_R_E = p_high_R_E * (ds_high_R_E - vec4<f32>(delta_E));
              // unroll MODIFIED in MODIFIED_SCORES {
                ds_low_R_E = score_gradient(ds_low_R_E, raw_low_R_E, cell_low_R_E);
                ds_high_R_E = score_gradient(ds_high_R_E, raw_high_R_E, cell_high_R_E);
              // }
              if masked {
                if HAS_WINDOW {
                  let nan = vec4<f32>(not_a_number());
                  ds_low_R_E = select(ds_low_R_E, nan, are_poisoned(in_tile_R, visit + 1u));
                  ds_high_R_E = select(ds_high_R_E, nan, are_poisoned(in_tile_R + HIGH * 4u, visit + 1u));
                }
                ds_low_R_E = select(vec4<f32>(0.0), ds_low_R_E, sees(visible_E, key_R));
                ds_high_R_E = select(vec4<f32>(0.0), ds_high_R_E, sees(visible_E, key_R + HIGH * 4u));
              }
              // and of the rows of K, for their product
              ds_low_R_E *= k_units_low_R;
              ds_high_R_E *= k_units_high_R;
              ds_largest = max(ds_largest, max(largest_of(ds_low_R_E), largest_of(ds_high_R_E)));
            // }
          // }
          if subgroupAny(ds_largest * ds_gain > GAIN_MOST) { break; }

          // unroll R in PASSING_FRAGMENTS, E in OWNED_FRAGMENTS {
            p_tile[p_low] = as_half(ds_low_R_E * ds_gain);
            p_tile[p_high] = as_half(ds_high_R_E * ds_gain);
            // unroll REST in REST_PARTS {
              p_tile_REST[p_low] = rest_of(ds_low_R_E * ds_gain);
              p_tile_REST[p_high] = rest_of(ds_high_R_E * ds_gain);
            // }
            scratch_barrier();
            let ds_R_E = coopLoadT<MatrixA>(&p_tile[p_scratch], P_STRIDE);
            // unroll REST in REST_PARTS {
              let ds_REST_R_E = coopLoadT<MatrixA>(&p_tile_REST[p_scratch], P_STRIDE);
            // }
            scratch_barrier();
          // }

          // dQ_i = dQ_i + dS K_j
          // unroll R in PASSING_FRAGMENTS, M in K_FRAGMENTS {
            let k_rows_R_M = coopLoadT<MatrixB>(&k_tile[k_fragment_R + M * MATRIX_QUADS], K_STRIDE);
            // unroll ONLY in ONLY_PARTS, E in OWNED_FRAGMENTS {
              dq_E_M = coopMultiplyAdd(ds_R_E, k_rows_R_M, dq_E_M);
            // }
            // unroll REST in REST_PARTS {
              let k_rows_REST_R_M = coopLoadT<MatrixB>(&k_tile_REST[k_fragment_R + M * MATRIX_QUADS], K_STRIDE);
              // unroll E in OWNED_FRAGMENTS {
                var dq_rest_R_E_M = coopMultiplyAdd(ds_REST_R_E, k_rows_R_M, MatrixC());
                dq_rest_R_E_M = coopMultiplyAdd(ds_R_E, k_rows_REST_R_M, dq_rest_R_E_M);
                dq_E_M = dq_E_M + coopMultiplyAdd(ds_R_E, k_rows_R_M, dq_rest_R_E_M);
              // }
            // }
          // }
          fragment += PASSING_FRAGMENTS * MATRIX_SIDE;
          if fragment >= TILE_KV { break; }
        }
        loop {
          if fragment >= TILE_KV { break; }
          let gain = gain_for(subgroupMax(ds_largest), ds_gain);
          let ratio = gain / ds_gain;
          ds_gain = gain;
          // unroll E in OWNED_FRAGMENTS, M in K_FRAGMENTS {
            dq_E_M = dq_E_M * ratio;
          // }
          break;
        }
      }
    }
  // }

  // dQ_i = softmax_scale · dQ_i; 0 for a row that sees nothing, or only scores of −∞
  let dq_at = params.dq_offset + tile.batch * params.dq_stride_batch + tile.head * params.dq_stride_head;
  // unroll E in OWNED_FRAGMENTS {
    let inside_E = row_E < params.row_count;
    let is_empty_E = stats_E.x == -MASKED;
    let factor_E = params.softmax_scale_log2 * LN_2 / ds_gain * d_o_unit_E;
    // unroll M in K_FRAGMENTS {
      let low_E_M = (M * MATRIX_QUADS + quad) * 4u;
      let high_E_M = low_E_M + HIGH * 4u;
      scratch_barrier();
      coopStoreT(dq_E_M, &s_tile[s_scratch], s_stride);
      scratch_barrier();
      if inside_E && low_E_M < HEAD_DIM {
        let result = select(s_tile[s_low] * factor_E, vec4<f32>(0.0), is_empty_E);
        store_dq(dq_at + row_E * params.dq_stride_row + low_E_M, HEAD_DIM - low_E_M, result);
      }
      if inside_E && high_E_M < HEAD_DIM {
        let result = select(s_tile[s_high] * factor_E, vec4<f32>(0.0), is_empty_E);
        store_dq(dq_at + row_E * params.dq_stride_row + high_E_M, HEAD_DIM - high_E_M, result);
      }
    // }
  // }
}
