// FlashAttention, backward, dQ on cooperative matrices: the loop of flash_backward_dq.wgsl with its three products done
// by the matrix units, f16 in and f32 accumulated.
//
// Reads Q[batch, seqlen_q, num_heads, head_dim], K[batch, seqlen_kv, num_heads_kv, head_dim],
// V[batch, seqlen_kv, num_heads_kv, head_dim_v], dO[batch, seqlen_q, num_heads, head_dim_v],
// LSE and D [batch, num_heads, seqlen_q, 2]. Writes dQ of the shape of Q.
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
// f32 and bf16 have units, and f32 has two parts, as in flash_forward_cooperative.wgsl.
//
// Who owns what: a workgroup owns one Q tile of one head. A subgroup owns THREAD_ROWS of its rows, as fragments of Q,
// dO and dQ in its registers. Workgroup memory holds the K and V tiles, and the scratch of
// flash_backward_dkdv_cooperative.wgsl, whose lists of names are here too: OWNED_W are q and d_o, WALKED_W k and v.

// Rows of the scratch of S and dP, in quads: stored row by row, matrices meet no bank conflicts at this distance.
const S_STRIDE = MATRIX_QUADS + 2u;

// dS is in units of its row of dO, and all rows of a subgroup share one scale. Where D is far larger than dO, the row
// would outgrow all others (dO is 0, and LSE has a gradient). So D counts too.
const D_SHARE = 0.000244140625; // 2⁻¹²
fn largest_of_q(largest: f32, delta: f32) -> f32 { return largest; }
fn largest_of_d_o(largest: f32, delta: f32) -> f32 { return max(largest, abs(delta) * D_SHARE); }

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
  // unroll W in WIDTHS, TENSOR in OWNED_W {
    let TENSOR_at =
      params.TENSOR_offset + tile.batch * params.TENSOR_stride_batch + tile.head * params.TENSOR_stride_head;
  // }
  let lse_at = tile.batch * params.lse_stride_batch + tile.head * params.lse_stride_head;
  // unroll E in OWNED_FRAGMENTS {
    let row_E = tile.row + subgroup_id * THREAD_ROWS + E * MATRIX_SIDE + row_in_fragment;
    let stats_E = stats_of_row(lse_at, row_E, params.row_count);
    let visible_E = visible_keys(params.row_first + row_E);
    // unroll W in WIDTHS, TENSOR in OWNED_W {
      var TENSOR_largest_E = 0.0;
      // unroll M in W_FRAGMENTS {
        let TENSOR_quad_E_M = M * MATRIX_QUADS + quad;
        let TENSOR_0_E_M = operand_W(fetch_TENSOR(TENSOR_at, row_E, params.row_count, TENSOR_quad_E_M));
        let TENSOR_1_E_M = operand_W(fetch_TENSOR(TENSOR_at, row_E, params.row_count, TENSOR_quad_E_M + HIGH));
        TENSOR_largest_E = max(TENSOR_largest_E, max(largest_of_loaded(TENSOR_0_E_M), largest_of_loaded(TENSOR_1_E_M)));
      // }
      let TENSOR_scale_E = row_scale(largest_of_TENSOR(TENSOR_largest_E, stats_E.y), 1u, HIGH);
      let TENSOR_unit_E = inverse(TENSOR_scale_E);
      // unroll M in W_FRAGMENTS {
        // unroll PART in PARTS {
          p_tile_PART[p_low] = to_PART(TENSOR_0_E_M, TENSOR_scale_E);
          p_tile_PART[p_high] = to_PART(TENSOR_1_E_M, TENSOR_scale_E);
        // }
        scratch_barrier();
        // unroll PART in PARTS {
          let TENSOR_PART_E_M = coopLoadT<MatrixA>(&p_tile_PART[p_scratch], P_STRIDE);
        // }
        scratch_barrier();
      // }
    // }
    // unroll M in K_FRAGMENTS {
      var dq_E_M = MatrixC();
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
  // unroll W in WIDTHS, TENSOR in WALKED_W {
    let TENSOR_at =
      params.TENSOR_offset + tile.batch * params.TENSOR_stride_batch + tile.head_kv * params.TENSOR_stride_head;
  // }
  // The next tile is fetched into registers while the one before is computed with.
  // unroll W in WIDTHS, TENSOR in WALKED_W, L in W_FETCHES, P in W_FETCH_PARTS {
    var TENSOR_next_L_P = Loaded();
    if visits.count > 0u {
      let first_key = tile_at(visits, 0u) * TILE_KV;
      TENSOR_next_L_P = fetch_TENSOR(TENSOR_at, first_key, params.seqlen_kv, invocation + L * INVOCATIONS, P);
    }
  // }
  var visit = 0u;
  // unroll SEEN in SEEN_LOOPS {
    for (; visit < until_SEEN(visits); visit++) {
      let j = tile_at(visits, visit);
      let next_key = tile_at(visits, visit + 1u) * TILE_KV;
      let masked = IS_MASKED_SEEN && visit >= visits.num_whole;
      workgroupBarrier(); // the last tile is read
      // unroll W in WIDTHS, TENSOR in WALKED_W, L in W_FETCHES {
        let TENSOR_index_L = invocation + L * INVOCATIONS;
        var TENSOR_largest_L = 0.0;
        // unroll P in W_FETCH_PARTS {
          TENSOR_next_L_P = operand_W(TENSOR_next_L_P);
          TENSOR_largest_L = max(TENSOR_largest_L, largest_of_loaded(TENSOR_next_L_P));
        // }
        let TENSOR_scale_L = row_scale(TENSOR_largest_L, 1u, W_FETCH_LANES);
        // unroll P in W_FETCH_PARTS {
          place_TENSOR(TENSOR_index_L, P, TENSOR_next_L_P, TENSOR_scale_L, HAS_WINDOW && masked, visit + 1u);
          TENSOR_next_L_P = fetch_TENSOR(TENSOR_at, next_key, params.seqlen_kv, TENSOR_index_L, P);
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
          // unroll R in PASSING_FRAGMENTS, W in WIDTHS, TENSOR in WALKED_W, SCORE in SCORE_W {
            let TENSOR_fragment_R = (fragment + R * MATRIX_SIDE) * W_STRIDE;
            // unroll E in OWNED_FRAGMENTS, PART in PARTS {
              var SCORE_PART_R_E = MatrixC();
            // }
          // }
          // unroll W in WIDTHS, MINE in OWNED_W, TENSOR in WALKED_W, SCORE in SCORE_W {
            // unroll M in W_FRAGMENTS, R in PASSING_FRAGMENTS {
              let TENSOR_at_R_M = TENSOR_fragment_R + M * MATRIX_QUADS;
              let TENSOR_half_R_M = coopLoad<MatrixB>(&TENSOR_tile_half[TENSOR_at_R_M], W_STRIDE);
              // unroll E in OWNED_FRAGMENTS {
                SCORE_half_R_E = coopMultiplyAdd(MINE_half_E_M, TENSOR_half_R_M, SCORE_half_R_E);
              // }
              // unroll REST in REST_PARTS {
                let TENSOR_REST_R_M = coopLoad<MatrixB>(&TENSOR_tile_REST[TENSOR_at_R_M], W_STRIDE);
                // unroll E in OWNED_FRAGMENTS {
                  SCORE_REST_R_E = coopMultiplyAdd(MINE_REST_E_M, TENSOR_half_R_M, SCORE_REST_R_E);
                  SCORE_REST_R_E = coopMultiplyAdd(MINE_half_E_M, TENSOR_REST_R_M, SCORE_REST_R_E);
                // }
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
                s_half_R_E = s_half_R_E + s_REST_R_E;
                dp_half_R_E = dp_half_R_E + dp_REST_R_E;
              // }
              // P = exp(softmax_scale · S − LSE_i)
              coopStoreT(s_half_R_E, &s_tile[s_scratch], s_stride);
              scratch_barrier();
              // unroll PLAIN in PLAIN_SCORES {
                let p_low_R_E = exp2(fma(s_tile[s_low] * k_units_low_R, vec4<f32>(s_factor_E), vec4<f32>(-stats_E.x)));
                let p_high_R_E = exp2(fma(s_tile[s_high] * k_units_high_R, vec4<f32>(s_factor_E),
                  vec4<f32>(-stats_E.x)));
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
              coopStoreT(dp_half_R_E, &s_tile[s_scratch], s_stride);
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
            // unroll PART in PARTS {
              p_tile_PART[p_low] = as_PART(ds_low_R_E * ds_gain);
              p_tile_PART[p_high] = as_PART(ds_high_R_E * ds_gain);
            // }
            scratch_barrier();
            // unroll PART in PARTS {
              let ds_PART_R_E = coopLoadT<MatrixA>(&p_tile_PART[p_scratch], P_STRIDE);
            // }
            scratch_barrier();
          // }

          // dQ_i = dQ_i + dS K_j
          // unroll R in PASSING_FRAGMENTS, M in K_FRAGMENTS {
            let k_rows_at_R_M = k_fragment_R + M * MATRIX_QUADS;
            let k_rows_R_M = coopLoadT<MatrixB>(&k_tile_half[k_rows_at_R_M], K_STRIDE);
            // unroll ONLY in ONLY_PARTS, E in OWNED_FRAGMENTS {
              dq_E_M = coopMultiplyAdd(ds_half_R_E, k_rows_R_M, dq_E_M);
            // }
            // unroll REST in REST_PARTS {
              let k_rows_REST_R_M = coopLoadT<MatrixB>(&k_tile_REST[k_rows_at_R_M], K_STRIDE);
              // unroll E in OWNED_FRAGMENTS {
                var dq_REST_R_E_M = coopMultiplyAdd(ds_REST_R_E, k_rows_R_M, MatrixC());
                dq_REST_R_E_M = coopMultiplyAdd(ds_half_R_E, k_rows_REST_R_M, dq_REST_R_E_M);
                dq_E_M = dq_E_M + coopMultiplyAdd(ds_half_R_E, k_rows_R_M, dq_REST_R_E_M);
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
  let per_gain = 1.0 / ds_gain;
  let dq_at = params.dq_offset + tile.batch * params.dq_stride_batch + tile.head * params.dq_stride_head;
  // unroll E in OWNED_FRAGMENTS {
    let inside_E = row_E < params.row_count;
    let is_empty_E = stats_E.x == -MASKED;
    let factor_E = params.softmax_scale_log2 * LN_2 * d_o_unit_E;
    // unroll M in K_FRAGMENTS {
      let low_E_M = (M * MATRIX_QUADS + quad) * 4u;
      let high_E_M = low_E_M + HIGH * 4u;
      scratch_barrier();
      coopStoreT(dq_E_M, &s_tile[s_scratch], s_stride);
      scratch_barrier();
      if inside_E && low_E_M < HEAD_DIM {
        let result = select(s_tile[s_low] * per_gain * factor_E, vec4<f32>(0.0), is_empty_E);
        store_dq(dq_at + row_E * params.dq_stride_row + low_E_M, HEAD_DIM - low_E_M, result);
      }
      if inside_E && high_E_M < HEAD_DIM {
        let result = select(s_tile[s_high] * per_gain * factor_E, vec4<f32>(0.0), is_empty_E);
        store_dq(dq_at + row_E * params.dq_stride_row + high_E_M, HEAD_DIM - high_E_M, result);
      }
    // }
  // }
}
