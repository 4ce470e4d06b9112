// FlashAttention, forward, on cooperative matrices: flash_forward.wgsl, which says what is read and written, with the
// products S = Q Kᵀ and P V done by the matrix units, f16 in and f32 accumulated.
//
//   for each Q tile i, for each split of the keys:       one workgroup
//     O_i = 0, l_i = 0, m_i = −∞
//     for each KV tile j of the split that some row of i sees:
//       S = Q_i K_jᵀ                                     on matrices, one tile ahead
//       m_i = max(m_i, rowmax(S)) if m_i lags too far behind, α = exp(m_old − m_i), l_i = α · l_i, O_i = α · O_i
//       P = exp(S − m_i), l_i = l_i + rowsum(P)          through scratch memory: a matrix's elements cannot be reached
//       O_i = O_i + dropout(P) V_j                       on matrices
//     O_i = O_i / l_i,   LSE_i = m_i + ln l_i
//
// m_i may lag behind the true maximum as long as P fits f16: the division at the end corrects O and LSE. This saves
// nearly all rescaling of O. How a lag is noticed is in slot row_max: by the row's maximum in each tile (EAGER), or by
// the sum of its P, which are then taken in the turn that computes S (LAZY).
//
// Rows of f32 and bf16 do not fit f16, so each row has a unit (slot row_units): S is multiplied by those of its rows of
// Q and K, P by that of its row of V.
//
// A workgroup owns one Q tile of one head, a subgroup THREAD_ROWS of its rows, as fragments of Q, S, P and O in its
// registers. Between products they are plain values of its invocations (common/fragments.wgsl). Workgroup memory holds
// the K and V tiles, and the scratch in which one becomes the other.
//
// The kernel computes S of the next tile while the softmax of this one runs, and loads the tiles after that. With lazy
// maxima, P V of this tile stands between the ways of S through the scratch instead, and the softmax of the next tile
// ends the turn. The tiles that all rows see whole come first, so their loop needs no mask.

@compute @workgroup_size(INVOCATIONS)
fn main(
  @builtin(workgroup_id) workgroup_id: vec3<u32>,
  @builtin(subgroup_id) subgroup_id: u32,
  @builtin(subgroup_invocation_id) subgroup_invocation_id: u32,
) {
  let index = workgroup_id.y * params.grid_width + workgroup_id.x;
  if index >= q_tile_count() * num_splits() { return; }
  // unroll PACKED in PACKED_SEQUENCES {
    // Past the end of its sequence: as q_tile_at says, in expressions that naga takes for uniform.
    {
      let number = index / num_splits();
      let num_heads = params.head_count * params.batch_count;
      let place = select(number % num_q_tiles(), num_q_tiles() - 1u - number / num_heads, HAS_WINDOW);
      let head = select(number / num_q_tiles(), number % num_heads, HAS_WINDOW);
      let seqlen_q = tables[first_seqlen_q() + params.batch_first + head / params.head_count];
      if params.row_first + place * TILE_Q >= min(seqlen_q, params.seqlen_q) { return; }
    }
  // }
  let tile = q_tile_at(index / num_splits());
  let split = index % num_splits();
  let invocation = subgroup_id * LANES + subgroup_invocation_id;
  let mine = mine_at(subgroup_id, subgroup_invocation_id / CHUNK_LANES, subgroup_invocation_id % CHUNK_LANES);
  let first_row = tile.row + subgroup_id * THREAD_ROWS + mine.row;
  if invocation == 0u { grew_at.x = NEVER; }

  // Q_i; O_i = 0, l_i = 0 (this invocation's part of it), m_i = −∞
  let batch = params.batch_first + tile.batch;
  // unroll MODIFIED in MODIFIED_SCORES {
    enter_head(tile.batch, head_of(tile, first_row));
  // }
  // unroll N in ROW_FRAGMENTS, EXTENT in EXTENT_OF_TILE, ATQ in AT_Q {
    let head_N = head_of(tile, first_row + N * MATRIX_SIDE);
    let row_N = row_of(tile, first_row + N * MATRIX_SIDE);
    let i_N = params.row_first + row_N;
    // The scale is applied to S, in f32; only its sign is here, so that the greatest S stays the greatest.
    let q_N = q_rows(mine, q_head(tile.ATQ, head_N), row_N, EXTENT.row_count, 0.0, params.softmax_scale_log2 < 0.0);
    let scale_N = abs(params.softmax_scale_log2) * inverse(q_N.scale);
    // What is left to multiply S with: modifiers take natural scores and give such.
    let s_factor_N = select(scale_N, LOG2_E, HAS_SCORE_MODS);
    // unroll M in V_CHUNKS {
      var o_N_M = Sums();
    // }
    var l_N = 0.0;
    var m_N = MASKED;
    var v_gain_N = FIRST_V_GAIN;
    var s_max_N = MASKED;
    // unroll E in KEY_CHUNKS {
      var s_N_E = Eight(vec4<f32>(MASKED), vec4<f32>(MASKED));
    // }
    // unroll LAZY in LAZY_MAXIMA {
      var p_sum_N = 0.0;
      // unroll E in KEY_CHUNKS {
        var held_N_E = Held();
      // }
    // }
  // }

  // for each KV tile j of the split that some row of i sees. `next` counts visits: a turn of the inner loop computes S
  // of the next tile and uses up that of the tile before. It goes on until some row's maximum has grown, which is rare,
  // so that O and m stay untouched in it. naga does not take `if` conditions for uniform where they are; hence loops
  // that end after one turn.
  let visits = visits_of(keys_of(kv_tiles_of(tile), split));
  let k_mine = k_share(tile, invocation);
  let v_mine = v_share(tile, invocation);
  // unroll L in K_FETCHES {
    // unroll EAGER in EAGER_MAXIMA {
      var k_next_L = K_Fetched();
    // }
    if visits.count > 0u {
      place_k(k_mine, 0u, true, L, fetch_k(k_mine, tile_at(visits, 0u), L));
      // unroll EAGER in EAGER_MAXIMA {
        k_next_L = fetch_k(k_mine, tile_at(visits, 1u), L);
      // }
    }
  // }
  // unroll EAGER in EAGER_MAXIMA, L in V_FETCHES {
    var v_next_L = V_Fetched();
    if visits.count > 0u { v_next_L = fetch_v(v_mine, tile_at(visits, 0u), L); }
  // }
  workgroupBarrier(); // K of the first tile is in place
  var next = 0u;
  // unroll CARRIED in CARRIED_NUMBERS {
    // The tile of which a turn computes S, and the one behind it, whose K is fetched.
    var tile_next = tile_at(visits, 0u);
    var tile_after = tile_at(visits, 1u);
  // }
  // unroll SEEN in FIRST_WHOLE_AND_PARTIAL {
    loop {
      if next >= end_SEEN(visits) { break; }

      // m_i = max(m_i, rowmax(S)) if it lags by more than 2⁸, α, l_i = α · l_i, O_i = α · O_i; the same for the
      // gain of V
      // unroll LAZY in LAZY_MAXIMA, N in ROW_FRAGMENTS {
        s_max_N = MASKED;
        // unroll E in KEY_CHUNKS {
          s_max_N = max(s_max_N, largest_of_eight(s_N_E));
        // }
        s_max_N = row_max(s_max_N) * s_factor_N;
      // }
      // unroll N in ROW_FRAGMENTS {
        let m_new_N = select(m_N, s_max_N, s_max_N > m_N + MAX_GROWTH);
        var o_factor_N = exp2(m_N - m_new_N);
        m_N = m_new_N;
        l_N *= o_factor_N;
        if HAS_UNITS && next > 0u {
          let at_tile_N = cell_at(tile.batch, head_N, row_N, tile_at(visits, next - 1u) * TILE_KV);
          let v_unit_N = largest_v_unit(mine, visible_keys(batch, i_N), at_tile_N, next <= visits.num_whole);
          let v_gain_new_N = select(v_gain_N, V_UNIT_GOAL * inverse(v_unit_N), v_unit_N * v_gain_N > V_UNIT_MOST);
          o_factor_N *= v_gain_new_N * inverse(v_gain_N);
          v_gain_N = v_gain_new_N;
        }
        loop {
          if next <= 1u || !subgroupAny(o_factor_N != 1.0) { break; } // O is still 0, or as it should be
          // unroll M in V_CHUNKS {
            o_N_M = rescaled(mine, o_N_M, o_factor_N);
          // }
          break;
        }
      // }
      // unroll LAZY in LAZY_MAXIMA, N in ROW_FRAGMENTS {
        if !IS_FIRST_SEEN {
          // P = exp(S − m_i), anew
          p_sum_N = 0.0;
          // unroll E in KEY_CHUNKS {
            let at_N_E = cell_at(tile.batch, head_N, row_N, tile_at(visits, next - 1u) * TILE_KV + first_of(mine, E));
            held_N_E = taken(s_N_E, s_factor_N, m_N, IS_MASKED_SEEN, at_N_E);
            p_sum_N += held_N_E.sum;
          // }
        }
      // }

      loop {
        // S = Q_i K_jᵀ of the next tile: dimensions outside, keys inside, so that several chains of products are in
        // flight. After the last tile it is computed once more for nothing.
        // unroll N in ROW_FRAGMENTS, E in KEY_CHUNKS {
          // unroll G in CHUNK_FRAGMENTS, PART in PARTS {
            var s_PART_N_E_G = MatrixC();
          // }
          var p_N_E = Lefts();
        // }
        // unroll M in K_CHUNKS, H in CHUNK_FRAGMENTS, E in KEY_CHUNKS, G in CHUNK_FRAGMENTS {
          let k_M_H_E_G = k_half_by_rows(k_fragment(E, G, M, H));
          // unroll N in ROW_FRAGMENTS {
            s_half_N_E_G = coopMultiplyAdd(left_half(q_N.chunks[M][H]), k_M_H_E_G, s_half_N_E_G);
          // }
          // unroll REST in REST_PARTS {
            let k_REST_M_H_E_G = k_REST_by_rows(k_fragment(E, G, M, H));
            // unroll N in ROW_FRAGMENTS {
              s_REST_N_E_G = coopMultiplyAdd(left_rest(q_N.chunks[M][H]), k_M_H_E_G, s_REST_N_E_G);
              s_REST_N_E_G = coopMultiplyAdd(left_half(q_N.chunks[M][H]), k_REST_M_H_E_G, s_REST_N_E_G);
            // }
          // }
        // }

        if !IS_FIRST_SEEN {
          // P = exp(S − m_i), l_i = l_i + rowsum(P), dropout(P)
          // unroll EAGER in EAGER_MAXIMA {
            let key_first = tile_at(visits, next - 1u) * TILE_KV;
          // }
          // unroll EAGER in EAGER_MAXIMA, E in KEY_CHUNKS, N in ROW_FRAGMENTS {
            var plain_N_E = probabilities(s_N_E, s_factor_N, m_N);
            if IS_MASKED_SEEN { plain_N_E = without_masked(plain_N_E, s_N_E); }
            l_N += sum_of(plain_N_E);
            if HAS_DROPOUT {
              let at = cell_at(tile.batch, head_N, row_N, key_first + first_of(mine, E));
              plain_N_E = only(kept_of(at), plain_N_E, 0.0);
            }
            p_N_E = lefts_of(mine, in_v_units(plain_N_E, first_of(mine, E), v_gain_N));
          // }
          // unroll LAZY in LAZY_MAXIMA, N in ROW_FRAGMENTS {
            l_N += p_sum_N;
          // }
          // unroll LAZY in LAZY_MAXIMA, E in KEY_CHUNKS, N in ROW_FRAGMENTS {
            p_N_E = lefts_held(mine, held_N_E);
          // }
        }
        // unroll COUNTED in COUNTED_NUMBERS {
          let tile_next = tile_at(visits, next);
          let tile_after = tile_at(visits, next + 1u);
        // }
        // unroll LAZY in LAZY_MAXIMA, L in K_FETCHES {
          let k_next_L = fetch_k(k_mine, tile_after, L);
        // }
        // unroll LAZY in LAZY_MAXIMA, L in V_FETCHES {
          let v_next_L = fetch_v(v_mine, tile_next, L);
        // }

        // S of the next tile as plain values, masked
        let next_key = tile_at(visits, next) * TILE_KV;
        // unroll E in KEY_CHUNKS, N in ROW_FRAGMENTS {
          var s_sum_N_E = Sums();
          // unroll G in CHUNK_FRAGMENTS {
            // unroll REST in REST_PARTS {
              s_half_N_E_G = s_half_N_E_G + s_REST_N_E_G;
            // }
            s_sum_N_E[G] = s_half_N_E_G;
          // }
          // unroll EAGER in EAGER_MAXIMA {
            s_N_E = times(plain(mine, s_sum_N_E), k_units_of(first_of(mine, E)));
          // }
          // unroll LAZY in LAZY_MAXIMA {
            // O_i = O_i + dropout(P) V_j between the ways of S, a share of the products for each fragment of rows
            store_sums(mine, s_sum_N_E);
            s_N_E = stored(mine);
            // unroll M in V_CHUNKS {
              if !IS_FIRST_SEEN && !(HAS_WINDOW && IS_MASKED_SEEN) && M % ROW_FRAGMENTS == N {
                // unroll G in CHUNK_FRAGMENTS, H in CHUNK_FRAGMENTS {
                  let v_E_G_M_H = v_by_columns(v_fragment(E, G, M, H));
                  // unroll R in ROW_FRAGMENTS {
                    o_R_M[H] = accumulate(p_R_E[G], v_E_G_M_H, o_R_M[H]);
                  // }
                // }
              }
            // }
            scratch_barrier();
          // }
          let at_N_E = cell_at(tile.batch, head_N, row_N, next_key + first_of(mine, E));
          // unroll MODIFIED in MODIFIED_SCORES {
            s_N_E = natural_eight(scaled(s_N_E, scale_N * LN_2), at_N_E);
          // }
          if IS_MASKED_SEEN { s_N_E = only(seen(visible_keys(batch, i_N), at_N_E), s_N_E, MASKED); }
          // unroll EAGER in EAGER_MAXIMA {
            s_max_N = max(select(s_max_N, MASKED, E == 0u), largest_of_eight(s_N_E));
          // }
        // }

        // unroll EARLY in EARLY_MAXIMA {
          // rowmax(S) of the next tile, before the products
          var grew = false;
          // unroll N in ROW_FRAGMENTS {
            s_max_N = row_max(s_max_N) * s_factor_N;
            grew = grew || s_max_N > m_N + MAX_GROWTH;
          // }
          if subgroupAny(grew) { grew_at.x = next; }
        // }

        if !IS_FIRST_SEEN {
          // O_i = O_i + dropout(P) V_j. A product with a matrix adds 0 · v for the keys that a row does not see, which
          // is not 0 if v is infinite or not a number: where some rows see less than others, such tiles (there should
          // be none) are left to plain arithmetic.
          var is_finite = true;
          if HAS_WINDOW && IS_MASKED_SEEN { is_finite = v_tile_is_finite(subgroup_invocation_id); }
          loop {
            // unroll LAZY in LAZY_MAXIMA {
              if !(HAS_WINDOW && IS_MASKED_SEEN) { break; } // they are done
            // }
            if HAS_WINDOW && IS_MASKED_SEEN && subgroupAny(!is_finite) { break; }
            // unroll E in KEY_CHUNKS, G in CHUNK_FRAGMENTS, M in V_CHUNKS, H in CHUNK_FRAGMENTS {
              let v_E_G_M_H = v_by_columns(v_fragment(E, G, M, H));
              // unroll N in ROW_FRAGMENTS {
                o_N_M[H] = accumulate(p_N_E[G], v_E_G_M_H, o_N_M[H]);
              // }
            // }
            break;
          }
          loop {
            if !(HAS_WINDOW && IS_MASKED_SEEN && subgroupAny(!is_finite)) { break; }
            // unroll N in ROW_FRAGMENTS, E in KEY_CHUNKS {
              let at_E_N = cell_at(tile.batch, head_N, row_N, tile_at(visits, next - 1u) * TILE_KV);
              // unroll G in CHUNK_FRAGMENTS {
                store_left(p_N_E[G], mine.p_scratch + G * MATRIX_QUADS);
              // }
              // unroll M in V_CHUNKS {
                o_N_M = add_seen_keys(mine, o_N_M, visible_keys(batch, i_N), at_E_N, E, M);
              // }
            // }
            break;
          }
        }

        workgroupBarrier(); // V, and K of the next tile, are read
        // unroll EARLY in EARLY_MAXIMA {
          let has_grown = subgroupAny(grew_at.x == next);
        // }
        // unroll LATE in LATE_VOTES {
          var grew = false;
        // }
        // unroll STEP in LAST_STEPS {
          if PLACES_STEP {
            // unroll L in K_FETCHES {
              place_k(k_mine, 0u, true, L, k_next_L);
              // unroll EAGER in EAGER_MAXIMA {
                k_next_L = fetch_k(k_mine, tile_at(visits, next + 2u), L);
              // }
            // }
            // unroll L in V_FETCHES {
              place_v(v_mine, tile_at(visits, next), !IS_MASKED_SEEN, L, v_next_L);
              // unroll EAGER in EAGER_MAXIMA {
                v_next_L = fetch_v(v_mine, tile_at(visits, next + 1u), L);
              // }
            // }
          } else {
            // unroll LATE in LATE_MAXIMA, N in ROW_FRAGMENTS {
              // rowmax(S) of the next tile
              s_max_N = row_max(s_max_N) * s_factor_N;
              grew = grew || s_max_N > m_N + MAX_GROWTH;
            // }
            // unroll LAZY in LAZY_MAXIMA, N in ROW_FRAGMENTS {
              if !IS_FIRST_SEEN {
                // P = exp(S − m_i) of the next tile
                p_sum_N = 0.0;
                // unroll E in KEY_CHUNKS {
                  held_N_E = taken(s_N_E, s_factor_N, m_N, IS_MASKED_SEEN, at_N_E);
                  p_sum_N += held_N_E.sum;
                // }
                grew = grew || is_too_much(p_sum_N);
              }
            // }
          }
        // }
        // unroll LATE in LATE_VOTES {
          // A branch that a subgroup takes together or not at all: products need its lanes side by side.
          if subgroupAny(grew) { grew_at.x = next; }
        // }
        workgroupBarrier(); // the next V, and K of the tile after it, are in place
        // unroll LATE in LATE_VOTES {
          let has_grown = subgroupAny(grew_at.x == next);
        // }
        next++;
        // unroll CARRIED in CARRIED_NUMBERS {
          tile_next = tile_after;
          tile_after = tile_at(visits, next + 1u);
        // }
        // In whole tiles all rows see the same units of V.
        var v_unit = 0.0;
        if HAS_UNITS && !IS_MASKED_SEEN { v_unit = largest_v_unit(mine, vec2<i32>(0), Cell(0u, 0u, 0u, 0u), true); }
        let has_outgrown = subgroupAny(v_unit * v_gain_0 > V_UNIT_MOST);
        let is_last = IS_FIRST_SEEN || next >= end_SEEN(visits);
        if is_last || has_grown || has_outgrown || (HAS_UNITS && IS_MASKED_SEEN) { break; }
      }
      if IS_FIRST_SEEN { break; } // one tile: the compiler sees that there is no loop
    }
  // }

  // O_i = O_i / l_i, LSE_i = m_i + ln l_i; a row that sees nothing, or only scores of −∞, gives 0 and −∞
  // unroll N in ROW_FRAGMENTS, EXTENT in EXTENT_OF_TILE, ATO in AT_O {
    let l_row_N = row_sum(l_N);
    // In a row of nothing but NaN the maximum is that of masked scores.
    let is_nan_N = (m_N == MASKED || m_N == MASKED * s_factor_N) && is_nan(l_row_N);
    let empty_N = l_row_N == 0.0 || (stands_for_infinity(m_N) && !is_nan_N);
    let row_cell_N = cell_at(tile.batch, head_N, row_N, 0u);
    let end_N = row_end(row_cell_N, select(m_N, MASKED, empty_N), select(l_row_N, 0.0, empty_N));
    // What makes O smaller comes first: two small factors in one might be 0, and O could overflow.
    let v_unit_N = inverse(v_gain_N);
    let factor_N = params.dropout_scale * end_N.share * max(v_unit_N, 1.0);
    let first_N = o_row(split, tile.ATO, head_N, row_N);
    let inside_N = row_N < EXTENT.row_count;
    // unroll M in V_CHUNKS {
      let o_plain_N_M = only(every(!empty_N), scaled(scaled(plain(mine, o_N_M), min(v_unit_N, 1.0)), factor_N), 0.0);
      let dim_N_M = first_of(mine, M);
      if inside_N && dim_N_M < HEAD_DIM_V { write_o(first_N, dim_N_M, o_plain_N_M.low); }
      if inside_N && dim_N_M + HIGH < HEAD_DIM_V { write_o(first_N, dim_N_M + HIGH, o_plain_N_M.high); }
    // }
    if inside_N && mine.quad == 0u { write_lse(split, tile.ATO, head_N, row_N, end_N.lse); }
  // }
}
