// FlashAttention, backward, dK and dV on cooperative matrices: flash_backward_dkdv.wgsl, which says what is read and
// written, with its four products done by the matrix units, f16 in and f32 accumulated.
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
// A workgroup owns one KV tile of one KV head, a subgroup THREAD_ROWS of its keys, as fragments of K, V, dK and dV. An
// invocation has 8 neighbouring keys of one row. Workgroup memory holds the Q and dO tiles, and the scratch.
//
// Names of lists: OWNED_W are k and v, WALKED_W q and d_o, for the widths W = K and W = V. SCORE_W are the products s
// and dp, GRADIENT_W the sums dk and dv, FACTOR_W their left factors ds and p.

// S and dP are stored column by column. At this distance, and with neighbouring quads, there are no bank conflicts.
const HIGH = 4u;
const S_STRIDE = MATRIX_QUADS + 1u;
fn scale_of_row(largest: f32) -> f32 { return row_scale(largest, MATRIX_SIDE, LANES); }

fn store_by_columns(mine: Mine, sum: MatrixC) {
  let at = mine.s_scratch;
  let stride = S_STRIDE;
  coopStore(sum, &s_tile[at], stride);
}

// P ∘ (unit · dP − D)
fn ds_of(p: Eight, dp: Eight, unit: f32, delta: f32) -> Eight {
  let u = vec4<f32>(unit);
  return Eight(p.low * fma(dp.low, u, vec4<f32>(-delta)), p.high * fma(dp.high, u, vec4<f32>(-delta)));
}

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
  // unroll PACKED in PACKED_SEQUENCES {
    // Past the end of its sequence: as kv_tile_at says, in expressions that naga takes for uniform.
    {
      let number = index;
      let kv_heads = params.head_count / params.heads_per_kv;
      let num_heads = kv_heads * params.batch_count;
      let place = select(number % num_kv_tiles(), number / num_heads, HAS_WINDOW);
      let head = select(number / num_kv_tiles(), number % num_heads, HAS_WINDOW);
      let seqlen_kv = tables[first_seqlen_kv() + params.batch_first + head / kv_heads];
      let num_keys = select(min(seqlen_kv, params.seqlen_kv), params.seqlen_kv, HAS_LENGTHS);
      if params.key_first + place * TILE_KV >= num_keys { return; }
    }
  // }
  let tile = kv_tile_at(index);
  let invocation = subgroup_id * LANES + subgroup_invocation_id;

  // A row of the scratch is a row of the fragment; when K, V, dK and dV pass through, it is a key. Neighbouring lanes
  // take neighbouring rows: the other order has bank conflicts.
  let mine = mine_at(subgroup_id, subgroup_invocation_id % MATRIX_SIDE, subgroup_invocation_id / MATRIX_SIDE * 2u);

  // K_j, V_j; dK_j = 0, dV_j = 0
  let subgroup_key = tile.key + subgroup_id * THREAD_ROWS;
  // unroll E in OWNED_FRAGMENTS {
    let owned_E = subgroup_key + E * MATRIX_SIDE + mine.row;
    let key_E = params.key_first + subgroup_key + E * MATRIX_SIDE + mine.quad * 4u;
    // unroll W in WIDTHS, TENSOR in OWNED_W, GRADIENT in GRADIENT_W, EXTENT in EXTENT_OF_TILE, ATK in AT_K {
      let TENSOR_E = TENSOR_rows(mine, TENSOR_head(tile.ATK, tile.head_kv), owned_E, EXTENT.key_count, 0.0, false);
      let TENSOR_unit_E = inverse(TENSOR_E.scale);
      let TENSOR_units_E = Eight(units_of_rows(TENSOR_unit_E, first_of(mine, 0u)),
        units_of_rows(TENSOR_unit_E, first_of(mine, 0u) + HIGH));
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
  var visits = visits_of(q_tiles_of(tile));
  if invocation == 0u { stats_tile[0] = vec2<f32>(0.0); }
  workgroupBarrier();
  if has_empty_row(visits, tile, invocation) { stats_tile[0] = vec2<f32>(1.0); }
  let has_empty_row = workgroupUniformLoad(&stats_tile[0]).x != 0.0;
  // unroll EXTENT in EXTENT_OF_TILE {
    visits.num_whole = select(0u, visits.num_whole, tile.key + TILE_KV <= EXTENT.key_count && !has_empty_row);
  // }
  let steps = visits.count * params.heads_per_kv;
  // unroll ATQ in AT_Q {
    let lse_batch_at = tile.ATQ * params.lse_stride_batch;
  // }
  // The next tile is fetched into registers while the one before is computed with.
  let first_row = step_at(visits, 0u).row_tile * TILE_Q;
  // unroll W in WIDTHS, TENSOR in WALKED_W, L in W_FETCHES, EXTENT in EXTENT_OF_TILE, ATQ in AT_Q {
    let TENSOR_index_L = invocation + L * INVOCATIONS;
    var TENSOR_next_L = W_Fetched();
    if steps > 0u {
      TENSOR_next_L = fetch_TENSOR(TENSOR_head(tile.ATQ, tile.head), first_row, EXTENT.seqlen_q, TENSOR_index_L);
    }
  // }
  // unroll L in STATS_FETCHES, EXTENT in EXTENT_OF_TILE {
    var stats_next_L = vec2<f32>(0.0);
    if steps > 0u {
      let lse_at = lse_batch_at + tile.head * params.lse_stride_head;
      stats_next_L = stats_of_row(lse_at, first_row + invocation + L * INVOCATIONS, EXTENT.seqlen_q);
    }
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
      let masked = IS_MASKED_SEEN && now.visit >= visits.num_whole;
      let next = step_at(visits, min(step + 1u, steps - 1u));
      let next_head = tile.head + next.head;
      let next_row = next.row_tile * TILE_Q;
      let lse_now = lse_batch_at + head * params.lse_stride_head;
      let lse_at = lse_batch_at + next_head * params.lse_stride_head;
      workgroupBarrier(); // the last tile is read
      // unroll W in WIDTHS, TENSOR in WALKED_W, L in W_FETCHES, EXTENT in EXTENT_OF_TILE, ATQ in AT_Q {
        let TENSOR_row_L = min(i * TILE_Q + TENSOR_index_L / W_FETCH_LANES, EXTENT.seqlen_q - 1u);
        let TENSOR_is_empty_L = masked && is_empty_row(lse_now, TENSOR_row_L);
        place_TENSOR(TENSOR_index_L, TENSOR_next_L, TENSOR_is_empty_L, HAS_WINDOW && masked, step + 1u);
        TENSOR_next_L = fetch_TENSOR(TENSOR_head(tile.ATQ, next_head), next_row, EXTENT.seqlen_q, TENSOR_index_L);
      // }
      // unroll L in STATS_FETCHES, EXTENT in EXTENT_OF_TILE {
        if invocation + L * INVOCATIONS < TILE_Q {
          stats_tile[invocation + L * INVOCATIONS] = stats_next_L * vec2<f32>(1.0, LARGEST_OF_ROW);
        }
        stats_next_L = stats_of_row(lse_at, next_row + invocation + L * INVOCATIONS, EXTENT.seqlen_q);
      // }
      workgroupBarrier(); // the tile is in place

      // A turn of the inner loop takes PASSING_FRAGMENTS fragments of rows. It ends early, which is rare, where some dS
      // outgrows its scale: the outer loop changes that, and the turn is taken again. So only products change dK in the
      // inner loop. naga does not take the conditions of `if` for uniform, even by subgroupAny; hence the loops.
      var fragment = 0u;
      var p_largest = 0.0;
      var ds_largest = 0.0;
      loop {
        if fragment >= TILE_Q { break; }
        loop {
          // Sᵀ = K_j Q_iᵀ, dPᵀ = V_j dO_iᵀ
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

          p_largest = 0.0;
          ds_largest = 0.0;
          // unroll R in PASSING_FRAGMENTS {
            let row_R = fragment + R * MATRIX_SIDE + mine.row;
            let i_row_R = i * TILE_Q + row_R;
            var stats_R = stats_tile[row_R];
            if HAS_WINDOW && masked && atomicLoad(&poisoned[row_R]) == step + 1u { stats_R.x = not_a_number(); }
            let visible_R = visible_keys_unless_empty(params.batch_first + tile.batch, i_row_R, stats_tile[row_R]);
            let q_unit_R = q_unit(row_R);
            let d_o_unit_R = d_o_unit(row_R) * LARGEST_OF_ROW;
            let s_factor_R = q_unit_R * params.softmax_scale_log2;
            // unroll E in OWNED_FRAGMENTS {
              // P = exp(softmax_scale · S − LSE_i), masked
              store_by_columns(mine, s_half_R_E);
              scratch_barrier();
              let at_R_E = cell_at(tile.batch, head, i_row_R, key_E);
              let s_R_E = times(stored(mine), k_units_E);
              var p_R_E = p_of(s_R_E, s_factor_R, stats_R.x, at_R_E);
              scratch_barrier();
              store_by_columns(mine, dp_half_R_E);
              if masked { p_R_E = only(seen(visible_R, at_R_E), p_R_E, 0.0); }
              // dropout(P)ᵀ, in units of the rows of dO for their product
              var keep_R_E = every(true);
              if HAS_DROPOUT { keep_R_E = kept_of(at_R_E); }
              let dropped_R_E = only(keep_R_E, scaled(p_R_E, d_o_unit_R), 0.0);
              if HAS_UNITS { p_largest = max(p_largest, largest_size(dropped_R_E)); }
              place(mine, scaled(dropped_R_E, p_gain));
              scratch_barrier();
              let p_left_R_E = left_by_columns(mine.p_scratch);
              // dS = P ∘ (dropout(dP) − D_i)
              var ds_R_E = times(stored(mine), v_units_E);
              scratch_barrier();
              if HAS_DROPOUT { ds_R_E = only(keep_R_E, scaled(ds_R_E, params.dropout_scale), 0.0); }
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
          // unroll W in WIDTHS, FACTOR in FACTOR_W, SUM in GRADIENT_W {
            let FACTOR_new_gain = gain_for(subgroupMax(FACTOR_largest), FACTOR_gain);
            let FACTOR_ratio = FACTOR_new_gain / FACTOR_gain;
            FACTOR_gain = FACTOR_new_gain;
            // unroll E in OWNED_FRAGMENTS, M in W_CHUNKS {
              SUM_E_M = SUM_E_M * FACTOR_ratio;
            // }
          // }
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
  // unroll E in OWNED_FRAGMENTS, W in WIDTHS, TENSOR in GRADIENT_W, EXTENT in EXTENT_OF_TILE, ATK in AT_K {
    // unroll M in W_CHUNKS {
      let TENSOR_result_E_M = scaled(scaled(plain(mine, Sums(TENSOR_E_M)), TENSOR_per_gain), TENSOR_factor);
      if owned_E < EXTENT.key_count {
        write_TENSOR(tile.ATK, tile.head_kv, owned_E, first_of(mine, M), TENSOR_result_E_M);
      }
    // }
  // }
}
