// FlashAttention, forward, on cooperative matrices: the loop of flash_forward.wgsl with the products S = Q Kᵀ and P V
// done by the matrix units, f16 in and f32 accumulated.
//
// Reads Q[batch, seqlen_q, num_heads, head_dim], K[batch, seqlen_kv, num_heads_kv, head_dim],
// V[batch, seqlen_kv, num_heads_kv, head_dim_v]. Writes O[batch, seqlen_q, num_heads, head_dim_v],
// LSE[batch, num_heads, seqlen_q]. With splits of the keys, O and LSE have one more index, the split, in front.
//
//   for each Q tile i, for each split of the keys:       one workgroup
//     O_i = 0, l_i = 0, m_i = −∞
//     for each KV tile j of the split that some row of i sees:
//       S = Q_i K_jᵀ                                     on matrices, one tile ahead
//       m_i = max(m_i, rowmax(S)) if that grew by more than 2⁸, α = exp(m_old − m_i), l_i = α · l_i, O_i = α · O_i
//       P = exp(S − m_i), l_i = l_i + rowsum(P)          through scratch memory: a matrix's elements cannot be reached
//       O_i = O_i + dropout(P) V_j                       on matrices
//     O_i = O_i / l_i,   LSE_i = m_i + ln l_i
//
// m_i may lag behind the true maximum by 2⁸. P still fits f16, and the division at the end corrects O and LSE. This
// saves nearly all rescaling of O.
//
// Rows of f32 and bf16 do not fit f16, so each row has a unit (slot row_units). S is multiplied by the units of its row
// of Q and its row of K, P by the unit of its row of V. f32 passes in two parts, half and rest (slot matrix_operand).
// The product of two such sums is half · half + half · rest + rest · half. f16 needs no units and no rest.
//
// Who owns what: a workgroup owns one Q tile of one head. A subgroup owns THREAD_ROWS of its rows, as fragments of Q,
// S, P and O in its registers. Between products, an invocation owns 8 elements of one row of a chunk. A chunk is
// MATRIX_SIDE rows high, and so many fragments wide that each invocation has 8 elements of it. Workgroup memory holds
// the K and V tiles in f16. It also holds a scratch for each subgroup, where S, P and O change between fragments and
// plain values.
//
// Order: the kernel computes S of the next tile while the softmax of this one runs, and loads the tiles after that. The
// tiles that all rows see whole come first, so their loop needs no mask.

@compute @workgroup_size(INVOCATIONS)
fn main(
  @builtin(workgroup_id) workgroup_id: vec3<u32>,
  @builtin(subgroup_id) subgroup_id: u32,
  @builtin(subgroup_invocation_id) subgroup_invocation_id: u32,
) {
  let index = workgroup_id.y * params.grid_width + workgroup_id.x;
  if index >= q_tile_count() * num_splits() { return; }
  let tile = q_tile_at(index / num_splits());
  let split = index % num_splits();
  let invocation = subgroup_id * LANES + subgroup_invocation_id;
  let scale = abs(params.softmax_scale_log2);

  // This invocation's row of a chunk, and its two quads there: CHUNK_LANES apart, so that the lanes of a subgroup read
  // and write without bank conflicts.
  let chunk_row = subgroup_invocation_id / CHUNK_LANES;
  let quad = subgroup_invocation_id % CHUNK_LANES;
  let first_row = tile.row + subgroup_id * THREAD_ROWS + chunk_row;
  let scratch = subgroup_id * MATRIX_SIDE * CHUNK_STRIDE;
  // unroll G in CHUNK_FRAGMENTS {
    let scratch_G = scratch + G * MATRIX_QUADS;
  // }
  let scratch_row = scratch + chunk_row * CHUNK_STRIDE;
  let low = scratch_row + quad;
  let high = scratch_row + quad + CHUNK_LANES;
  let s_stride = CHUNK_STRIDE;
  if invocation == 0u { grew_at.x = NEVER; }

  // Q_i; O_i = 0, l_i = 0 (this invocation's part of it), m_i = −∞
  // unroll N in ROW_FRAGMENTS {
    var q_largest_N = 0.0;
    // unroll M in K_CHUNKS {
      let q_low_N_M = operand_K(fetch_q(tile, first_row + N * MATRIX_SIDE, M * CHUNK_QUADS + quad));
      let q_high_N_M = operand_K(fetch_q(tile, first_row + N * MATRIX_SIDE, M * CHUNK_QUADS + quad + CHUNK_LANES));
      q_largest_N = max(q_largest_N, max(largest_of_loaded(q_low_N_M), largest_of_loaded(q_high_N_M)));
    // }
    let q_scale_N = row_scale(q_largest_N, 1u, CHUNK_LANES);
    let scale_N = scale * inverse(q_scale_N);
    // What is left to multiply S with: modifiers take it as it is.
    // unroll PLAIN in PLAIN_SCORES {
      let s_factor_N = scale_N;
    // }
    // unroll MODIFIED in MODIFIED_SCORES {
      let s_factor_N = 1.0;
    // }
    // unroll M in K_CHUNKS {
      // unroll PART in PARTS {
        p_tile_PART[low] = signed(to_PART(q_low_N_M, q_scale_N));
        p_tile_PART[high] = signed(to_PART(q_high_N_M, q_scale_N));
      // }
      scratch_barrier();
      // unroll G in CHUNK_FRAGMENTS, PART in PARTS {
        let q_PART_N_M_G = coopLoadT<MatrixA>(&p_tile_PART[scratch_G], CHUNK_STRIDE);
      // }
      scratch_barrier();
    // }
    // unroll M in V_CHUNKS, G in CHUNK_FRAGMENTS {
      var o_N_M_G = MatrixC();
    // }
    var l_N = 0.0;
    var m_N = MASKED;
    var v_gain_N = FIRST_V_GAIN;
  // }

  // for each KV tile j of the split that some row of i sees. `next` counts visits: a turn of the inner loop computes S
  // of the next tile and uses up that of the tile before. It goes on until some row's maximum has grown, which is rare,
  // so that O and m stay untouched in it. naga does not take `if` conditions for uniform where they are; hence loops
  // that end after one turn.
  let visits = visits_of(keys_of(block_range(tile.first_row, tile.last_row), split));
  let k_mine = k_share(tile, invocation);
  let v_mine = v_share(tile, invocation);
  // unroll L in K_FETCHES {
    var k_next_L = Loaded();
  // }
  // unroll L in V_FETCHES {
    var v_next_L = Loaded();
  // }
  if visits.count > 0u {
    // unroll L in K_FETCHES {
      place_k(k_mine, L, fetch_k(k_mine, tile_at(visits, 0u), L));
      k_next_L = fetch_k(k_mine, tile_at(visits, 1u), L);
    // }
    // unroll L in V_FETCHES {
      v_next_L = fetch_v(v_mine, tile_at(visits, 0u), L);
    // }
  }
  workgroupBarrier(); // K of the first tile is in place
  // unroll N in ROW_FRAGMENTS {
    let i_N = params.row_first + first_row + N * MATRIX_SIDE;
    var s_max_N = MASKED;
    // unroll E in KEY_CHUNKS {
      var s_low_N_E = vec4<f32>(MASKED);
      var s_high_N_E = vec4<f32>(MASKED);
    // }
  // }
  var next = 0u;
  // unroll SEEN in FIRST_WHOLE_AND_PARTIAL {
    loop {
      if next >= end_SEEN(visits) { break; }

      // m_i = max(m_i, rowmax(S)) if that grew by more than 2⁸, α, l_i = α · l_i, O_i = α · O_i; the same for the
      // gain of V
      // unroll N in ROW_FRAGMENTS {
        let m_new_N = select(m_N, s_max_N, s_max_N > m_N + MAX_GROWTH);
        let alpha_N = exp2(m_N - m_new_N);
        m_N = m_new_N;
        l_N *= alpha_N;
        var o_factor_N = alpha_N;
        if HAS_UNITS && next > 0u {
          // The largest unit of V that the row sees.
          let visible = visible_keys(i_N);
          let seen_whole = vec4<bool>(next <= visits.num_whole);
          var v_unit_N = 0.0;
          // unroll E in KEY_CHUNKS {
            let low_E = (E * CHUNK_QUADS + quad) * 4u;
            let high_E = low_E + CHUNK_LANES * 4u;
            let key_E = tile_at(visits, next - 1u) * TILE_KV + low_E;
            let seen_low_E = seen_whole | sees(visible, key_E);
            let seen_high_E = seen_whole | sees(visible, key_E + CHUNK_LANES * 4u);
            v_unit_N = max(v_unit_N, largest_of_four(select(vec4<f32>(0.0), v_units(low_E), seen_low_E)));
            v_unit_N = max(v_unit_N, largest_of_four(select(vec4<f32>(0.0), v_units(high_E), seen_high_E)));
          // }
          v_unit_N = row_max(v_unit_N);
          let v_gain_new_N = select(v_gain_N, V_UNIT_GOAL * inverse(v_unit_N), v_unit_N * v_gain_N > V_UNIT_MOST);
          o_factor_N *= v_gain_new_N * inverse(v_gain_N);
          v_gain_N = v_gain_new_N;
        }
        loop {
          if next <= 1u || !subgroupAny(o_factor_N != 1.0) { break; } // O is still 0, or as it should be
          // unroll M in V_CHUNKS {
            // unroll G in CHUNK_FRAGMENTS {
              coopStoreT(o_N_M_G, &s_tile[scratch_G], s_stride);
            // }
            scratch_barrier();
            s_tile[low] *= o_factor_N;
            s_tile[high] *= o_factor_N;
            scratch_barrier();
            // unroll G in CHUNK_FRAGMENTS {
              o_N_M_G = coopLoadT<MatrixC>(&s_tile[scratch_G], s_stride);
            // }
            scratch_barrier();
          // }
          break;
        }
      // }

      loop {
        // S = Q_i K_jᵀ of the next tile: dimensions outside, keys inside, so that several chains of products are in
        // flight. After the last tile it is computed once more for nothing.
        // unroll N in ROW_FRAGMENTS, E in KEY_CHUNKS, G in CHUNK_FRAGMENTS, PART in PARTS {
          var s_PART_N_E_G = MatrixC();
          var p_PART_N_E_G = MatrixA();
        // }
        // unroll M in K_CHUNKS, H in CHUNK_FRAGMENTS, E in KEY_CHUNKS, G in CHUNK_FRAGMENTS {
          let k_M_H_E_G = coopLoad<MatrixB>(&k_tile_half[k_fragment(E, G, M, H)], K_STRIDE);
          // unroll N in ROW_FRAGMENTS {
            s_half_N_E_G = coopMultiplyAdd(q_half_N_M_H, k_M_H_E_G, s_half_N_E_G);
          // }
          // unroll REST in REST_PARTS {
            let k_REST_M_H_E_G = coopLoad<MatrixB>(&k_tile_REST[k_fragment(E, G, M, H)], K_STRIDE);
            // unroll N in ROW_FRAGMENTS {
              s_REST_N_E_G = coopMultiplyAdd(q_REST_N_M_H, k_M_H_E_G, s_REST_N_E_G);
              s_REST_N_E_G = coopMultiplyAdd(q_half_N_M_H, k_REST_M_H_E_G, s_REST_N_E_G);
            // }
          // }
        // }

        if !IS_FIRST_SEEN {
          // P = exp(S − m_i), l_i = l_i + rowsum(P), dropout(P)
          let key_first = tile_at(visits, next - 1u) * TILE_KV;
          // unroll E in KEY_CHUNKS, N in ROW_FRAGMENTS {
            let low_N_E = (E * CHUNK_QUADS + quad) * 4u;
            let high_N_E = (E * CHUNK_QUADS + quad + CHUNK_LANES) * 4u;
            var p_low_N_E = exp2(fma(s_low_N_E, vec4<f32>(s_factor_N), vec4<f32>(-m_N)));
            var p_high_N_E = exp2(fma(s_high_N_E, vec4<f32>(s_factor_N), vec4<f32>(-m_N)));
            if IS_MASKED_SEEN {
              p_low_N_E = select(p_low_N_E, vec4<f32>(0.0), s_low_N_E == vec4<f32>(MASKED));
              p_high_N_E = select(p_high_N_E, vec4<f32>(0.0), s_high_N_E == vec4<f32>(MASKED));
            }
            let p_sum_N_E = p_low_N_E + p_high_N_E;
            l_N += (p_sum_N_E.x + p_sum_N_E.y) + (p_sum_N_E.z + p_sum_N_E.w);
            if HAS_DROPOUT {
              let batch = params.batch_first + tile.batch;
              let head = params.head_first + tile.head;
              let key = key_first + low_N_E;
              p_low_N_E = dropout(p_low_N_E, batch, head, i_N, key);
              p_high_N_E = dropout(p_high_N_E, batch, head, i_N, key + CHUNK_LANES * 4u);
            }
            // in units of the rows of V, at most V_UNIT_MOST where the row sees them
            p_low_N_E *= min(v_units(low_N_E) * v_gain_N, vec4<f32>(V_UNIT_MOST));
            p_high_N_E *= min(v_units(high_N_E) * v_gain_N, vec4<f32>(V_UNIT_MOST));
            // unroll PART in PARTS {
              p_tile_PART[low] = as_PART(p_low_N_E);
              p_tile_PART[high] = as_PART(p_high_N_E);
            // }
            scratch_barrier();
            // unroll G in CHUNK_FRAGMENTS, PART in PARTS {
              p_PART_N_E_G = coopLoadT<MatrixA>(&p_tile_PART[scratch_G], CHUNK_STRIDE);
            // }
            scratch_barrier();
          // }
        }

        // rowmax(S) of the next tile, masked
        let next_key = tile_at(visits, next) * TILE_KV;
        // unroll N in ROW_FRAGMENTS {
          s_max_N = MASKED;
        // }
        // unroll E in KEY_CHUNKS, N in ROW_FRAGMENTS {
          // unroll G in CHUNK_FRAGMENTS {
            // unroll REST in REST_PARTS {
              s_half_N_E_G = s_half_N_E_G + s_REST_N_E_G;
            // }
            coopStoreT(s_half_N_E_G, &s_tile[scratch_G], s_stride);
          // }
          scratch_barrier();
          let low_N_E = (E * CHUNK_QUADS + quad) * 4u;
          let high_N_E = (E * CHUNK_QUADS + quad + CHUNK_LANES) * 4u;
          s_low_N_E = s_tile[low] * k_units(low_N_E);
          s_high_N_E = s_tile[high] * k_units(high_N_E);
          scratch_barrier();
          // unroll MODIFIED in MODIFIED_SCORES {
            let row_N_E = first_row + N * MATRIX_SIDE;
            let key_N_E = next_key + (E * CHUNK_QUADS + quad) * 4u;
            s_low_N_E = scored(s_low_N_E * scale_N, cell_at(tile.batch, tile.head, row_N_E, key_N_E));
            s_high_N_E = scored(s_high_N_E * scale_N,
              cell_at(tile.batch, tile.head, row_N_E, key_N_E + CHUNK_LANES * 4u));
          // }
          if IS_MASKED_SEEN {
            let key = next_key + low_N_E;
            s_low_N_E = select(vec4<f32>(MASKED), s_low_N_E, sees(visible_keys(i_N), key));
            s_high_N_E = select(vec4<f32>(MASKED), s_high_N_E, sees(visible_keys(i_N), key + CHUNK_LANES * 4u));
          }
          let s_max_N_E = max(s_low_N_E, s_high_N_E);
          s_max_N = max(s_max_N, largest_of_four(s_max_N_E));
        // }
        var grew = false;
        // unroll N in ROW_FRAGMENTS {
          s_max_N = row_max(s_max_N) * s_factor_N;
          grew = grew || s_max_N > m_N + MAX_GROWTH;
        // }
        // A branch that a subgroup takes together or not at all: products need its lanes side by side.
        if subgroupAny(grew) { grew_at.x = next; }

        if !IS_FIRST_SEEN {
          // O_i = O_i + dropout(P) V_j. A product with a matrix adds 0 · v for the keys that a row does not see, which
          // is not 0 if v is infinite or not a number: where some rows see less than others, such tiles (there should
          // be none) are left to plain arithmetic.
          var is_finite = true;
          if HAS_WINDOW && IS_MASKED_SEEN { is_finite = v_tile_is_finite(subgroup_invocation_id); }
          loop {
            if HAS_WINDOW && IS_MASKED_SEEN && subgroupAny(!is_finite) { break; }
            // unroll E in KEY_CHUNKS, G in CHUNK_FRAGMENTS, M in V_CHUNKS, H in CHUNK_FRAGMENTS {
              let v_E_G_M_H = coopLoadT<MatrixB>(&v_tile_half[v_fragment(E, G, M, H)], V_STRIDE);
              // unroll ONLY in ONLY_PARTS, N in ROW_FRAGMENTS {
                o_N_M_H = coopMultiplyAdd(p_half_N_E_G, v_E_G_M_H, o_N_M_H);
              // }
              // unroll REST in REST_PARTS {
                let v_REST_E_G_M_H = coopLoadT<MatrixB>(&v_tile_REST[v_fragment(E, G, M, H)], V_STRIDE);
                // unroll N in ROW_FRAGMENTS {
                  var o_REST_E_G_N_M_H = coopMultiplyAdd(p_REST_N_E_G, v_E_G_M_H, MatrixC());
                  o_REST_E_G_N_M_H = coopMultiplyAdd(p_half_N_E_G, v_REST_E_G_M_H, o_REST_E_G_N_M_H);
                  o_N_M_H = o_N_M_H + coopMultiplyAdd(p_half_N_E_G, v_E_G_M_H, o_REST_E_G_N_M_H);
                // }
              // }
            // }
            break;
          }
          loop {
            if !(HAS_WINDOW && IS_MASKED_SEEN && subgroupAny(!is_finite)) { break; }
            // unroll N in ROW_FRAGMENTS, E in KEY_CHUNKS {
              // unroll G in CHUNK_FRAGMENTS, PART in PARTS {
                coopStoreT(p_PART_N_E_G, &p_tile_PART[scratch_G], s_stride);
              // }
              // unroll M in V_CHUNKS {
                // unroll G in CHUNK_FRAGMENTS {
                  coopStoreT(o_N_M_G, &s_tile[scratch_G], s_stride);
                // }
                scratch_barrier();
                for (var key = 0u; key < CHUNK_QUADS * 4u; key++) {
                  let at = (E * CHUNK_QUADS * 4u + key) * V_STRIDE + M * CHUNK_QUADS + quad;
                  var p = f32(p_tile_half[scratch_row + key / 4u][key % 4u]);
                  var v_low = vec4<f32>(v_tile_half[at]);
                  var v_high = vec4<f32>(v_tile_half[at + CHUNK_LANES]);
                  // unroll REST in REST_PARTS {
                    p += f32(p_tile_REST[scratch_row + key / 4u][key % 4u]);
                    v_low += vec4<f32>(v_tile_REST[at]);
                    v_high += vec4<f32>(v_tile_REST[at + CHUNK_LANES]);
                  // }
                  s_tile[low] = add_visible(p, v_low, s_tile[low]);
                  s_tile[high] = add_visible(p, v_high, s_tile[high]);
                }
                scratch_barrier();
                // unroll G in CHUNK_FRAGMENTS {
                  o_N_M_G = coopLoadT<MatrixC>(&s_tile[scratch_G], s_stride);
                // }
                scratch_barrier();
              // }
            // }
            break;
          }
        }

        workgroupBarrier(); // V, and K of the next tile, are read
        let has_grown = subgroupAny(grew_at.x == next);
        // unroll L in K_FETCHES {
          place_k(k_mine, L, k_next_L);
          k_next_L = fetch_k(k_mine, tile_at(visits, next + 2u), L);
        // }
        // unroll L in V_FETCHES {
          place_v(v_mine, tile_at(visits, next), !IS_MASKED_SEEN, L, v_next_L);
          v_next_L = fetch_v(v_mine, tile_at(visits, next + 1u), L);
        // }
        workgroupBarrier(); // the next V, and K of the tile after it, are in place
        next++;
        // In whole tiles all rows see the same units of V.
        var v_unit = 0.0;
        if HAS_UNITS && !IS_MASKED_SEEN {
          // unroll E in KEY_CHUNKS {
            v_unit = max(v_unit, largest_of_four(v_units((E * CHUNK_QUADS + quad) * 4u)));
            v_unit = max(v_unit, largest_of_four(v_units((E * CHUNK_QUADS + quad + CHUNK_LANES) * 4u)));
          // }
          v_unit = row_max(v_unit);
        }
        let has_outgrown = subgroupAny(v_unit * v_gain_0 > V_UNIT_MOST);
        if next >= end_SEEN(visits) || has_grown || has_outgrown || (HAS_UNITS && IS_MASKED_SEEN) { break; }
      }
    }
  // }

  // O_i = O_i / l_i, LSE_i = m_i + ln l_i; a row that sees nothing, or only scores of −∞, gives 0 and −∞
  // unroll N in ROW_FRAGMENTS {
    let row_N = first_row + N * MATRIX_SIDE;
    let l_row_N = row_sum(l_N);
    let empty_N = l_row_N == 0.0 || stands_for_infinity(m_N);
    let factor_N = params.dropout_scale / l_row_N * inverse(v_gain_N);
    let first_N = o_row(split, tile.batch, tile.head, row_N);
    let inside_N = row_N < params.row_count;
    // unroll M in V_CHUNKS {
      // unroll G in CHUNK_FRAGMENTS {
        coopStoreT(o_N_M_G, &s_tile[scratch_G], s_stride);
      // }
      scratch_barrier();
      let dim_low_N_M = (M * CHUNK_QUADS + quad) * 4u;
      let dim_high_N_M = dim_low_N_M + CHUNK_LANES * 4u;
      if inside_N && dim_low_N_M < HEAD_DIM_V {
        write_o(first_N, dim_low_N_M, select(s_tile[low] * factor_N, vec4<f32>(0.0), empty_N));
      }
      if inside_N && dim_high_N_M < HEAD_DIM_V {
        write_o(first_N, dim_high_N_M, select(s_tile[high] * factor_N, vec4<f32>(0.0), empty_N));
      }
      scratch_barrier();
    // }
    if inside_N && quad == 0u {
      let lse_row = select((m_N + log2(l_row_N)) * LN_2, params.negative_infinity, empty_N);
      write_lse(split, tile.batch, tile.head, row_N, lse_row);
    }
  // }
}
