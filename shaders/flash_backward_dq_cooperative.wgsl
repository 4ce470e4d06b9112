// FlashAttention, backward, dQ on cooperative matrices: flash_backward_dq.wgsl, which says what is read and written,
// with its three products done by the matrix units, f16 in and f32 accumulated.
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
// A workgroup owns one Q tile of one head, a subgroup THREAD_ROWS of its rows, as fragments of Q, dO and dQ. Workgroup
// memory holds the K and V tiles, and the scratch. Names of lists: OWNED_W are q and d_o, WALKED_W k and v, for the
// widths W = K and W = V.

// As in the forward kernel.
const HIGH = CHUNK_LANES * 4u;
const S_STRIDE = P_STRIDE;
fn scale_of_row(largest: f32) -> f32 { return row_scale(largest, 1u, CHUNK_LANES); }

// dS is in units of its row of dO, and all rows of a subgroup share one scale. Where D is far larger than dO (dO is 0,
// and LSE has a gradient), the row would outgrow all others. So D counts too.
const D_SHARE = 0.000244140625; // 2⁻¹²

@compute @workgroup_size(INVOCATIONS)
fn main(
  @builtin(workgroup_id) workgroup_id: vec3<u32>,
  @builtin(subgroup_id) subgroup_id: u32,
  @builtin(subgroup_invocation_id) subgroup_invocation_id: u32,
) {
  let index = workgroup_id.y * params.grid_width + workgroup_id.x;
  if index >= q_tile_count() { return; }
  // unroll PACKED in PACKED_SEQUENCES {
    // Past the end of its sequence: as q_tile_at says, in expressions that naga takes for uniform.
    {
      let number = index;
      let num_heads = params.head_count * params.batch_count;
      let place = select(number % num_q_tiles(), num_q_tiles() - 1u - number / num_heads, HAS_WINDOW);
      let head = select(number / num_q_tiles(), number % num_heads, HAS_WINDOW);
      let seqlen_q = tables[first_seqlen_q() + params.batch_first + head / params.head_count];
      if params.row_first + place * TILE_Q >= min(seqlen_q, params.seqlen_q) { return; }
    }
  // }
  let tile = q_tile_at(index);
  let invocation = subgroup_id * LANES + subgroup_invocation_id;
  let mine = mine_at(subgroup_id, subgroup_invocation_id / CHUNK_LANES, subgroup_invocation_id % CHUNK_LANES);

  // Q_i, dO_i, LSE_i, D_i; dQ_i = 0
  // unroll MODIFIED in MODIFIED_SCORES {
    enter_head(tile.batch, tile.head);
  // }
  // unroll ATQ in AT_Q {
    let lse_at = tile.ATQ * params.lse_stride_batch + tile.head * params.lse_stride_head;
  // }
  // unroll E in OWNED_FRAGMENTS, EXTENT in EXTENT_OF_TILE, ATQ in AT_Q {
    let row_E = tile.row + subgroup_id * THREAD_ROWS + E * MATRIX_SIDE + mine.row;
    let stats_E = stats_of_row(lse_at, row_E, EXTENT.row_count);
    let visible_E = visible_keys(params.batch_first + tile.batch, params.row_first + row_E);
    let q_E = q_rows(mine, q_head(tile.ATQ, tile.head), row_E, EXTENT.row_count, 0.0, false);
    let least_E = abs(stats_E.y) * D_SHARE;
    let d_o_E = d_o_rows(mine, d_o_head(tile.ATQ, tile.head), row_E, EXTENT.row_count, least_E, false);
    // unroll M in K_CHUNKS {
      var dq_E_M = MatrixC();
    // }
    let s_factor_E = inverse(q_E.scale) * params.softmax_scale_log2;
    let delta_E = stats_E.y * d_o_E.scale;
  // }
  var ds_gain = FIRST_GAIN;
  for (var key = invocation; key < TILE_KV; key += INVOCATIONS) { atomicStore(&poisoned[key], 0u); }

  // for each KV tile j that some row of i sees:
  // Those that all rows see whole come first, so that their loop needs no mask.
  let visits = visits_of(kv_tiles_of(tile));
  // unroll ATK in AT_K {
    let k_at = k_head(tile.ATK, tile.head_kv);
    let v_at = v_head(tile.ATK, tile.head_kv);
  // }
  // The next tile is fetched into registers while the one before is computed with.
  let first_key = tile_at(visits, 0u) * TILE_KV;
  // unroll W in WIDTHS, TENSOR in WALKED_W, L in W_FETCHES, EXTENT in EXTENT_OF_TILE {
    let TENSOR_index_L = invocation + L * INVOCATIONS;
    var TENSOR_next_L = W_Fetched();
    if visits.count > 0u { TENSOR_next_L = fetch_TENSOR(TENSOR_at, first_key, EXTENT.seqlen_kv, TENSOR_index_L); }
  // }
  var visit = 0u;
  // unroll SEEN in SEEN_LOOPS {
    for (; visit < until_SEEN(visits); visit++) {
      let j = tile_at(visits, visit);
      let next_key = tile_at(visits, visit + 1u) * TILE_KV;
      let masked = IS_MASKED_SEEN && visit >= visits.num_whole;
      workgroupBarrier(); // the last tile is read
      // unroll W in WIDTHS, TENSOR in WALKED_W, L in W_FETCHES, EXTENT in EXTENT_OF_TILE {
        place_TENSOR(TENSOR_index_L, TENSOR_next_L, false, HAS_WINDOW && masked, visit + 1u);
        TENSOR_next_L = fetch_TENSOR(TENSOR_at, next_key, EXTENT.seqlen_kv, TENSOR_index_L);
      // }
      workgroupBarrier(); // the tile is in place

      // The two loops are those of flash_backward_dkdv_cooperative.wgsl.
      var fragment = 0u;
      var ds_largest = 0.0;
      loop {
        if fragment >= TILE_KV { break; }
        loop {
          // S = Q_i K_jᵀ, dP = dO_i V_jᵀ
          // unroll W in WIDTHS, MINE in OWNED_W, TENSOR in WALKED_W, SCORE in SCORE_W {
            // unroll R in PASSING_FRAGMENTS, E in OWNED_FRAGMENTS, PART in PARTS {
              var SCORE_PART_R_E = MatrixC();
            // }
            // unroll M in W_CHUNKS, R in PASSING_FRAGMENTS {
              let TENSOR_half_M_R = TENSOR_half_by_rows((fragment + R * MATRIX_SIDE) * W_STRIDE + M * MATRIX_QUADS);
              // unroll E in OWNED_FRAGMENTS {
                SCORE_half_R_E = coopMultiplyAdd(left_half(MINE_E.chunks[M][0]), TENSOR_half_M_R, SCORE_half_R_E);
              // }
              // unroll REST in REST_PARTS {
                let TENSOR_REST_M_R = TENSOR_REST_by_rows((fragment + R * MATRIX_SIDE) * W_STRIDE + M * MATRIX_QUADS);
                // unroll E in OWNED_FRAGMENTS {
                  SCORE_REST_R_E = coopMultiplyAdd(left_rest(MINE_E.chunks[M][0]), TENSOR_half_M_R, SCORE_REST_R_E);
                  SCORE_REST_R_E = coopMultiplyAdd(left_half(MINE_E.chunks[M][0]), TENSOR_REST_M_R, SCORE_REST_R_E);
                // }
              // }
            // }
            // unroll R in PASSING_FRAGMENTS, E in OWNED_FRAGMENTS, REST in REST_PARTS {
              SCORE_half_R_E = SCORE_half_R_E + SCORE_REST_R_E;
            // }
          // }

          ds_largest = 0.0;
          // unroll R in PASSING_FRAGMENTS {
            let key_R = fragment + R * MATRIX_SIDE + mine.quad * 4u;
            let k_units_R = k_units_of(key_R);
            // unroll E in OWNED_FRAGMENTS {
              let at_R_E = cell_at(tile.batch, tile.head, row_E, j * TILE_KV + key_R);
              // P = exp(softmax_scale · S − LSE_i)
              let s_R_E = times(plain(mine, Sums(s_half_R_E)), k_units_R);
              let p_R_E = p_of(s_R_E, s_factor_E, stats_E.x, at_R_E);
              // dS = P ∘ (dropout(dP) − D_i), masked
              var ds_R_E = times(plain(mine, Sums(dp_half_R_E)), v_units_of(key_R));
              if HAS_DROPOUT { ds_R_E = only(kept_of(at_R_E), scaled(ds_R_E, params.dropout_scale), 0.0); }
              // in units of the row of dO
              ds_R_E = unmodified(times(p_R_E, less(ds_R_E, delta_E)), s_R_E, s_factor_E, at_R_E);
              if masked {
                if HAS_WINDOW {
                  let sound_R_E = Which(are_sound(key_R, visit + 1u), are_sound(key_R + HIGH, visit + 1u));
                  ds_R_E = only(sound_R_E, ds_R_E, not_a_number());
                }
                ds_R_E = only(seen(visible_E, at_R_E), ds_R_E, 0.0);
              }
              // and of the rows of K, for their product
              ds_R_E = times(ds_R_E, k_units_R);
              ds_largest = max(ds_largest, largest_size(ds_R_E));
            // }
          // }
          if subgroupAny(ds_largest * ds_gain > GAIN_MOST) { break; }

          // unroll R in PASSING_FRAGMENTS, E in OWNED_FRAGMENTS {
            let ds_left_R_E = lefts_of(mine, scaled(ds_R_E, ds_gain))[0];
          // }

          // dQ_i = dQ_i + dS K_j
          // unroll R in PASSING_FRAGMENTS, M in K_CHUNKS {
            let k_columns_R_M = k_by_columns((fragment + R * MATRIX_SIDE) * K_STRIDE + M * MATRIX_QUADS);
            // unroll E in OWNED_FRAGMENTS {
              dq_E_M = accumulate(ds_left_R_E, k_columns_R_M, dq_E_M);
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
          // unroll E in OWNED_FRAGMENTS, M in K_CHUNKS {
            dq_E_M = dq_E_M * ratio;
          // }
          break;
        }
      }
    }
  // }

  // dQ_i = softmax_scale · dQ_i; 0 for a row that sees nothing, or only scores of −∞
  let per_gain = 1.0 / ds_gain;
  // unroll E in OWNED_FRAGMENTS, EXTENT in EXTENT_OF_TILE, ATQ in AT_Q {
    let is_live_E = every(!(stats_E.x == -MASKED));
    let factor_E = params.softmax_scale_log2 * LN_2 * inverse(d_o_E.scale);
    // unroll M in K_CHUNKS {
      let result_E_M = only(is_live_E, scaled(scaled(plain(mine, Sums(dq_E_M)), per_gain), factor_E), 0.0);
      if row_E < EXTENT.row_count { write_dq(tile.ATQ, tile.head, row_E, first_of(mine, M), result_E_M); }
    // }
  // }
}
