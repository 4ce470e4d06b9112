// FlashAttention, backward, dK and dV on cooperative matrices: the loop of flash_backward_dkdv.wgsl with its four
// products done by the matrix units, f16 in and f32 accumulated.
//
// Reads Q[batch, seqlen_q, num_heads, head_dim], K[batch, seqlen_kv, num_heads_kv, head_dim],
// V[batch, seqlen_kv, num_heads_kv, head_dim_v], dO[batch, seqlen_q, num_heads, head_dim_v],
// LSE and D [batch, num_heads, seqlen_q, 2]. Writes dK of the shape of K, dV of the shape of V.
//
//   for each KV tile j of a KV head:                     one workgroup
//     dK_j = 0, dV_j = 0
//     for each query head that shares it, for each Q tile i with a row that sees some key of j:
//       for each fragment of rows of i (two at a time, where registers allow it):
//         Sᵀ   = K_j Q_iᵀ, dPᵀ = V_j dO_iᵀ               on matrices
//         P    = exp(softmax_scale · S − LSE_i), masked  through scratch memory: a matrix's elements cannot be reached
//         dS   = P ∘ (dropout(dP) − D_i)
//         dV_j = dV_j + dropout(P)ᵀ dO_i                 on matrices
//         dK_j = dK_j + dSᵀ Q_i                          on matrices
//     dK_j = softmax_scale · dK_j
//
// f32 and bf16 have units, and f32 has two parts, as in flash_forward_cooperative.wgsl.
//
// Who owns what: a workgroup owns one KV tile of one KV head. A subgroup owns THREAD_ROWS of its keys, as fragments of
// K, V, dK and dV in its registers. Between products, an invocation owns 8 neighbouring keys of one row. Workgroup
// memory holds the Q and dO tiles in f16. It also holds a scratch for each subgroup, where S, dP, P and dS change
// between fragments and plain values.
//
// Names of lists: OWNED_W are k and v, WALKED_W q and d_o, for the widths W = K and W = V. SCORE_W are the products s
// and dp, GRADIENT_W the sums dk and dv, FACTOR_W their left factors ds and p.

// S and dP are stored column by column. At this distance, and with neighbouring quads, there are no bank conflicts.
const HIGH = 4u;
const S_STRIDE = MATRIX_QUADS + 1u;
fn scale_of_row(largest: f32) -> f32 { return row_scale(largest, MATRIX_SIDE, LANES); }

// Whether the fetch with this index loads from an empty row. The LSE of the head starts at `head_at`; `lanes` fetches
// share a row.
fn is_empty(head_at: u32, first_row: u32, index: u32, lanes: u32) -> bool {
  return is_empty_row(head_at, min(first_row + index / lanes, params.seqlen_q - 1u));
}

// S or dP, on their way out of fragments.
fn store_by_columns(mine: Mine, sum: MatrixC) {
  let at = mine.s_scratch;
  let stride = S_STRIDE;
  coopStore(sum, &s_tile[at], stride);
}

// A quad of dO of a row that may be empty.
fn live_d_o(value: Loaded, is_empty: bool) -> Loaded { return select(value, Loaded(), is_empty); }

// LSE in units of log2(e), and D · LARGEST_OF_ROW: dO is in units of its rows times LARGEST_OF_ROW, so dP, dS and
// dropout(P) · dO are that much larger. In units alone P and dS would be 0 where their products with Q and dO are not.
var<workgroup> stats_tile: array<vec2<f32>, TILE_Q>;

@compute @workgroup_size(INVOCATIONS)
fn main(
  @builtin(workgroup_id) workgroup_id: vec3<u32>,
  @builtin(subgroup_id) subgroup_id: u32,
  @builtin(subgroup_invocation_id) subgroup_invocation_id: u32,
) {
  let index = workgroup_id.y * params.grid_width + workgroup_id.x;
  if index >= kv_tile_count() { return; }
  let tile = kv_tile_at(index);
  let invocation = subgroup_id * LANES + subgroup_invocation_id;

  // A row of the scratch is a row of the fragment; when K, V, dK and dV pass through, it is a key. Neighbouring lanes
  // take neighbouring rows: the other order has bank conflicts.
  let mine = mine_at(subgroup_id, subgroup_invocation_id % MATRIX_SIDE, subgroup_invocation_id / MATRIX_SIDE * 2u);

  // K_j, V_j; dK_j = 0, dV_j = 0
  let subgroup_key = tile.key + subgroup_id * THREAD_ROWS;
  // unroll W in WIDTHS, TENSOR in OWNED_W {
    let TENSOR_at = TENSOR_head(tile.batch, tile.head_kv);
    var TENSOR = W_Owned();
  // }
  // unroll E in OWNED_FRAGMENTS {
    let owned_E = subgroup_key + E * MATRIX_SIDE + mine.row;
    let key_E = params.key_first + subgroup_key + E * MATRIX_SIDE + mine.quad * 4u;
    var keep_E = every(true);
    // unroll W in WIDTHS, TENSOR in OWNED_W, GRADIENT in GRADIENT_W {
      TENSOR[E] = TENSOR_rows(mine, TENSOR_at, owned_E, params.key_count, 0.0, false);
      let TENSOR_unit_E = inverse(TENSOR[E].scale);
      let TENSOR_low_E = units_of_rows(TENSOR_unit_E, mine.quad * 4u);
      let TENSOR_units_E = Eight(TENSOR_low_E, units_of_rows(TENSOR_unit_E, mine.quad * 4u + HIGH));
      // unroll M in W_CHUNKS {
        var GRADIENT_E_M = MatrixC();
      // }
    // }
  // }
  var p_gain = FIRST_P_GAIN;
  var ds_gain = FIRST_GAIN;
  for (var row = invocation; row < TILE_Q; row += INVOCATIONS) { atomicStore(&poisoned[row], 0u); }

  // for each query head that shares it, for each Q tile i with a row that sees some key of j:
  // The tiles whose rows all see all keys come first, so their loop needs no mask. There are none where the KV tile is
  // not full of keys, or where the scores of some row are all −∞.
  var visits = visits_of(row_range(tile.first_key, tile.last_key));
  if invocation == 0u { stats_tile[0] = vec2<f32>(0.0); }
  workgroupBarrier();
  if has_empty_row(visits, tile, invocation) { stats_tile[0] = vec2<f32>(1.0); }
  let has_empty_row = workgroupUniformLoad(&stats_tile[0]).x != 0.0;
  visits.num_whole = select(0u, visits.num_whole, tile.key + TILE_KV <= params.key_count && !has_empty_row);
  let steps = visits.count * params.heads_per_kv;
  let lse_batch_at = tile.batch * params.lse_stride_batch;
  // The next tile is fetched into registers while the one before is computed with.
  // unroll W in WIDTHS, TENSOR in WALKED_W, L in W_FETCHES, P in W_FETCH_PARTS {
    var TENSOR_next_L_P = Loaded();
  // }
  // unroll L in STATS_FETCHES {
    var stats_next_L = vec2<f32>(0.0);
  // }
  if steps > 0u {
    let next_row = step_at(visits, 0u).row_tile * TILE_Q;
    let lse_at = lse_batch_at + tile.head * params.lse_stride_head;
    // unroll W in WIDTHS, TENSOR in WALKED_W {
      let TENSOR_at = TENSOR_head(tile.batch, tile.head);
      // unroll L in W_FETCHES, P in W_FETCH_PARTS {
        TENSOR_next_L_P = fetch_TENSOR(TENSOR_at, next_row, params.seqlen_q, invocation + L * INVOCATIONS, P);
      // }
    // }
    // unroll L in STATS_FETCHES {
      stats_next_L = stats_of_row(lse_at, next_row + invocation + L * INVOCATIONS, params.seqlen_q);
    // }
  }
  var step = 0u;
  // unroll SEEN in SEEN_LOOPS {
    for (; step < until_SEEN(visits) * params.heads_per_kv; step++) {
      let now = step_at(visits, step);
      let head = tile.head + now.head;
      let i = now.row_tile;
      let masked = IS_MASKED_SEEN && now.visit >= visits.num_whole;
      let next = step_at(visits, min(step + 1u, steps - 1u));
      let next_head = tile.head + next.head;
      let next_row = next.row_tile * TILE_Q;
      let lse_now = lse_batch_at + head * params.lse_stride_head;
      let lse_at = lse_batch_at + next_head * params.lse_stride_head;
      workgroupBarrier(); // the last tile is read
      // unroll W in WIDTHS, TENSOR in WALKED_W {
        let TENSOR_at = TENSOR_head(tile.batch, next_head);
        // unroll L in W_FETCHES {
          let TENSOR_index_L = invocation + L * INVOCATIONS;
          var TENSOR_largest_L = 0.0;
          // unroll P in W_FETCH_PARTS {
            let TENSOR_is_empty_L_P = masked && is_empty(lse_now, i * TILE_Q, TENSOR_index_L, W_FETCH_LANES);
            TENSOR_next_L_P = live_TENSOR(operand_W(TENSOR_next_L_P), TENSOR_is_empty_L_P);
            TENSOR_largest_L = max(TENSOR_largest_L, largest_of_loaded(TENSOR_next_L_P));
          // }
          let TENSOR_scale_L = row_scale(TENSOR_largest_L, 1u, W_FETCH_LANES);
          // unroll P in W_FETCH_PARTS {
            place_TENSOR(TENSOR_index_L, P, TENSOR_next_L_P, TENSOR_scale_L, HAS_WINDOW && masked, step + 1u);
            TENSOR_next_L_P = fetch_TENSOR(TENSOR_at, next_row, params.seqlen_q, TENSOR_index_L, P);
          // }
        // }
      // }
      // unroll L in STATS_FETCHES {
        if invocation + L * INVOCATIONS < TILE_Q {
          stats_tile[invocation + L * INVOCATIONS] = stats_next_L * vec2<f32>(1.0, LARGEST_OF_ROW);
        }
        stats_next_L = stats_of_row(lse_at, next_row + invocation + L * INVOCATIONS, params.seqlen_q);
      // }
      workgroupBarrier(); // the tile is in place

      // A turn of the inner loop takes PASSING_FRAGMENTS fragments of rows. It ends early where some dS outgrows its
      // scale, which is rare. Then the outer loop changes the scale, and the turn is taken again. So only products
      // change dK in the inner loop. naga does not take the conditions of `if` for uniform, even by subgroupAny; hence
      // the loops.
      var fragment = 0u;
      var p_largest = 0.0;
      var ds_largest = 0.0;
      loop {
        if fragment >= TILE_Q { break; }
        loop {
          // Sᵀ = K_j Q_iᵀ, dPᵀ = V_j dO_iᵀ
          let s = s_of(k, fragment);
          let dp = dp_of(v, fragment);

          p_largest = 0.0;
          ds_largest = 0.0;
          // unroll R in PASSING_FRAGMENTS {
            let row_R = fragment + R * MATRIX_SIDE + mine.row;
            let i_row_R = i * TILE_Q + row_R;
            var stats_R = stats_tile[row_R];
            if HAS_WINDOW && masked && atomicLoad(&poisoned[row_R]) == step + 1u { stats_R.x = not_a_number(); }
            let visible_R = visible_keys_unless_empty(i_row_R, stats_tile[row_R]);
            let q_unit_R = q_unit(row_R);
            let d_o_unit_R = d_o_unit(row_R) * LARGEST_OF_ROW;
            let s_factor_R = q_unit_R * params.softmax_scale_log2;
            // unroll E in OWNED_FRAGMENTS {
              // P = exp(softmax_scale · S − LSE_i), masked
              store_by_columns(mine, total(s[R][E]));
              scratch_barrier();
              let at_R_E = cells_at(tile.batch, head, i_row_R, key_E);
              let s_R_E = times(stored(mine), k_units_E);
              var p_R_E = p_of(s_R_E, s_factor_R, stats_R.x, at_R_E);
              scratch_barrier();
              store_by_columns(mine, total(dp[R][E]));
              if masked { p_R_E = only(seen(visible_R, at_R_E), p_R_E, 0.0); }
              // dropout(P)ᵀ, in units of the rows of dO for their product
              var dropped_R_E = scaled(p_R_E, d_o_unit_R);
              if HAS_DROPOUT {
                keep_E = kept_of(at_R_E);
                dropped_R_E = only(keep_E, dropped_R_E, 0.0);
              }
              if HAS_UNITS { p_largest = max(p_largest, largest_size(dropped_R_E)); }
              place(mine, scaled(dropped_R_E, p_gain));
              scratch_barrier();
              let p_left_R_E = left_by_columns(mine.p_scratch);
              // dS = P ∘ (dropout(dP) − D_i)
              var ds_R_E = times(stored(mine), v_units_E);
              scratch_barrier();
              if HAS_DROPOUT { ds_R_E = only(keep_E, scaled(ds_R_E, params.dropout_scale), 0.0); }
              ds_R_E = unmodified(ds_of(p_R_E, ds_R_E, d_o_unit_R, stats_R.y), s_R_E, s_factor_R, at_R_E);
              // Not by P = 0: what is not seen may be infinite.
              if masked { ds_R_E = only(seen(visible_R, at_R_E), ds_R_E, 0.0); }
              // in units of the rows of Q, for their product
              ds_R_E = scaled(ds_R_E, q_unit_R);
              ds_largest = max(ds_largest, largest_size(ds_R_E));
            // }
          // }
          if subgroupAny((ds_largest * ds_gain > GAIN_MOST) | (p_largest * p_gain > GAIN_MOST)) { break; }

          // dSᵀ
          // unroll R in PASSING_FRAGMENTS, E in OWNED_FRAGMENTS {
            place(mine, scaled(ds_R_E, ds_gain));
            scratch_barrier();
            let ds_left_R_E = left_by_columns(mine.p_scratch);
            scratch_barrier();
          // }

          // dV_j = dV_j + dropout(P)ᵀ dO_i, dK_j = dK_j + dSᵀ Q_i
          // unroll R in PASSING_FRAGMENTS, W in V_THEN_K, TENSOR in WALKED_W, FACTOR in FACTOR_W, SUM in GRADIENT_W {
            // unroll M in W_CHUNKS {
              let TENSOR_columns_R_M = TENSOR_by_columns((fragment + R * MATRIX_SIDE) * W_STRIDE + M * MATRIX_QUADS);
              // unroll E in OWNED_FRAGMENTS {
                SUM_E_M = accumulate(FACTOR_left_R_E, TENSOR_columns_R_M, SUM_E_M);
              // }
            // }
          // }
          fragment += PASSING_FRAGMENTS * MATRIX_SIDE;
          if fragment >= TILE_Q { break; }
        }
        loop {
          if fragment >= TILE_Q { break; }
          let new_ds_gain = gain_for(subgroupMax(ds_largest), ds_gain);
          let ds_ratio = new_ds_gain / ds_gain;
          ds_gain = new_ds_gain;
          // unroll E in OWNED_FRAGMENTS, M in K_CHUNKS {
            dk_E_M = dk_E_M * ds_ratio;
          // }
          if HAS_UNITS {
            let new_p_gain = gain_for(subgroupMax(p_largest), p_gain);
            let p_ratio = new_p_gain / p_gain;
            p_gain = new_p_gain;
            // unroll E in OWNED_FRAGMENTS, M in V_CHUNKS {
              dv_E_M = dv_E_M * p_ratio;
            // }
          }
          break;
        }
      }
    }
  // }

  // dK_j = softmax_scale · dK_j; the kept probabilities' factor on dV_j
  let dk_factor = params.softmax_scale_log2 * LN_2 / LARGEST_OF_ROW;
  let dk_per_gain = 1.0 / ds_gain;
  let dv_factor = params.dropout_scale / LARGEST_OF_ROW;
  let dv_per_gain = 1.0 / p_gain;
  // unroll E in OWNED_FRAGMENTS, W in WIDTHS, TENSOR in GRADIENT_W {
    let TENSOR_row_E = params.TENSOR_offset + tile.batch * params.TENSOR_stride_batch
      + tile.head_kv * params.TENSOR_stride_head + owned_E * params.TENSOR_stride_row;
    // unroll M in W_CHUNKS {
      let TENSOR_result_E_M = scaled(scaled(plain(mine, Sums(TENSOR_E_M)), TENSOR_per_gain), TENSOR_factor);
      if owned_E < params.key_count { write_TENSOR(TENSOR_row_E, first_of(mine, M), TENSOR_result_E_M); }
    // }
  // }
}
