// FlashAttention, forward, for few rows and many keys: decoding. The goal is to read K and V once, as fast as memory
// gives them.
//
// Reads Q[batch, seqlen_q, num_heads, head_dim], K[batch, seqlen_kv, num_heads_kv, head_dim],
// V[batch, seqlen_kv, num_heads_kv, head_dim_v]. Writes O[batch, seqlen_q, num_heads, head_dim_v],
// LSE[batch, num_heads, seqlen_q]. With splits of the keys, O and LSE have one more index, the split, in front.
//
//   for each tile i of rows that share a KV head, for each split of the keys:       one workgroup
//     for each group g of lanes:
//       O_g = 0, l_g = 0, m_g = −∞
//       for each KV tile j of the split that some row of i sees, for the keys of it that are g's:
//         S     = softmax_scale · Q_i K_gᵀ, masked
//         m_new = max(m_g, rowmax(S))
//         P     = exp(S − m_new)
//         α     = exp(m_g − m_new)
//         l_g   = α · l_g + rowsum(P)
//         O_g   = α · O_g + dropout(P) V_g
//         m_g   = m_new
//     m   = max m_g
//     l   = Σ exp(m_g − m) · l_g
//     O_i = Σ exp(m_g − m) · O_g / l,   LSE_i = m + ln l
//
// S, m and the exponents are in units of log2(e), as in flash_forward.wgsl.
//
// Who owns what: LANES neighbouring invocations are a group. A group owns one of every KEY_LANES quads of keys. Each
// of its invocations has every LANES-th quad of the head dimensions of Q, K, V and O, of all rows, in its registers.
// S, P, m and l of the group are in the registers of all of them. Workgroup memory holds what the groups exchange at
// the end.

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
  if index >= q_tile_count() * num_splits() { return; }
  let tile = q_tile_at(index / num_splits());
  // unroll PACKED in PACKED_SEQUENCES {
    if tile.row >= packed_rows_of(tile) { return; }
  // }
  let split = index % num_splits();
  let lane = invocation % LANES;
  let group = invocation / LANES;

  // Q_i; O_g = 0, l_g = 0, m_g = −∞
  // unroll N in THREAD_ROWS {
    var l_N = 0.0;
    var m_N = MASKED;
    // unroll M in K_QUADS {
      let q_N_M = fetch_q(tile, N, lane + M * LANES);
    // }
    // unroll M in V_QUADS {
      var o_N_M = vec4<f32>(0.0);
    // }
  // }

  // for each KV tile j of the split that some row of i sees:
  let range = block_range(params.batch_first + tile.batch, tile.first_row, tile.last_row);
  let visits = visits_of(keys_of(range, split));
  // unroll PART in PARTS_OF_SEQUENCES, GROUPROWS in ROWS_OF_GROUP, ATO in AT_O {
    // A split without keys, of a sequence that is shorter than others. The merge does not read its O.
    if visits.count == 0u {
      // unroll N in THREAD_ROWS {
        if invocation == 0u && tile.row + N < GROUPROWS {
          write_lse(split, tile.ATO, head_of(tile, tile.row + N), row_of(tile, tile.row + N), params.negative_infinity);
        }
      // }
      return;
    }
  // }
  // The next K is fetched as soon as this one is used, and so is V: loads are always in flight.
  // unroll U in GROUP_QUADS {
    let first_key_U = tile_at(visits, 0u) * TILE_KV + (U * KEY_LANES + group) * 4u;
    // unroll E in KEYS {
      // unroll M in K_QUADS {
        var k_U_E_M = Loaded();
        if visits.count > 0u { k_U_E_M = fetch_k(tile, first_key_U + E, lane + M * LANES); }
      // }
      // unroll M in V_QUADS {
        var v_U_E_M = Loaded();
        if visits.count > 0u { v_U_E_M = fetch_v(tile, first_key_U + E, lane + M * LANES); }
      // }
    // }
  // }
  for (var visit = 0u; visit < visits.count; visit++) {
    let whole = visit < visits.num_whole;
    let first_key = tile_at(visits, visit) * TILE_KV;
    let next_key = tile_at(visits, visit + 1u) * TILE_KV;

    // S = softmax_scale · Q_i K_gᵀ, four keys at a time
    // unroll U in GROUP_QUADS {
      let in_tile_U = (U * KEY_LANES + group) * 4u;
      let key_U = first_key + in_tile_U;
      // unroll N in THREAD_ROWS, E in KEYS {
        var s_N_U_E = 0.0;
      // }
      // unroll SCALED in SCALED_ROWS, E in KEYS {
        let k_scale_U_E = scale_of(k_U_E_0);
      // }
      // unroll E in KEYS, M in K_QUADS, DECODE_KV in DECODE_CACHED {
        let k_now_U_E_M = DECODE_KV(k_U_E_M);
        k_U_E_M = fetch_k(tile, next_key + in_tile_U + E, lane + M * LANES);
        // unroll N in THREAD_ROWS {
          s_N_U_E = dot_add(q_N_M, k_now_U_E_M, s_N_U_E);
        // }
      // }
    // }
    // unroll SCALED in SCALED_ROWS, U in GROUP_QUADS, N in THREAD_ROWS, E in KEYS {
      s_N_U_E *= k_scale_U_E;
    // }
    // unroll N in THREAD_ROWS, U in GROUP_QUADS {
      lane_share(N * GROUP_QUADS + U, invocation, vec4<f32>(s_N_U_0, s_N_U_1, s_N_U_2, s_N_U_3));
    // }
    lane_barrier();
    // unroll N in THREAD_ROWS, U in GROUP_QUADS {
      var s_N_U = lane_sum(N * GROUP_QUADS + U, invocation, vec4<f32>(s_N_U_0, s_N_U_1, s_N_U_2, s_N_U_3));
    // }

    // unroll MODIFIED in MODIFIED_SCORES, N in THREAD_ROWS {
      enter_head(tile.batch, head_of(tile, tile.row + N));
      // unroll U in GROUP_QUADS {
        s_N_U = scored(s_N_U, cell_at(tile.batch, head_of(tile, tile.row + N), row_of(tile, tile.row + N), key_U));
      // }
    // }

    // masked
    if !whole {
      // unroll N in THREAD_ROWS {
        let visible_N = visible_keys(params.batch_first + tile.batch, params.row_first + row_of(tile, tile.row + N));
        // unroll U in GROUP_QUADS {
          let cell_N_U = cell_at(tile.batch, head_of(tile, tile.row + N), row_of(tile, tile.row + N), key_U);
          s_N_U = select(vec4<f32>(MASKED), s_N_U, sees(visible_N, cell_N_U));
        // }
      // }
    }

    // unroll N in THREAD_ROWS {
      // m_new = max(m_g, rowmax(S)), α = exp(m_g − m_new); l_g = α · l_g, O_g = α · O_g where there is something to do
      var s_max_N = MASKED;
      // unroll U in GROUP_QUADS {
        s_max_N = max(s_max_N, largest_of_four(s_N_U));
      // }
      if s_max_N > m_N {
        let alpha = exp2(m_N - s_max_N);
        m_N = s_max_N;
        l_N *= alpha;
        // unroll M in V_QUADS {
          o_N_M *= alpha;
        // }
      }
      // unroll U in GROUP_QUADS {
        // P = exp(S − m_new); where a row has seen nothing yet, m_new is MASKED too and P must still be 0
        var p_N_U = exp2(s_N_U - vec4<f32>(m_N));
        if !whole { p_N_U = select(p_N_U, vec4<f32>(0.0), s_N_U == vec4<f32>(MASKED)); }
        // l_g = l_g + rowsum(P)
        l_N += (p_N_U.x + p_N_U.y) + (p_N_U.z + p_N_U.w);
        // dropout(P)
        if HAS_DROPOUT {
          let i = params.row_first + row_of(tile, tile.row + N);
          let head = params.head_first + head_of(tile, tile.row + N);
          p_N_U = dropout(p_N_U, params.batch_first + tile.batch, head, i, key_U);
        }
      // }
    // }

    // O_g = O_g + dropout(P) V_g
    // unroll SCALED in SCALED_ROWS, U in GROUP_QUADS, N in THREAD_ROWS, E in KEYS {
      p_N_U[E] *= scale_of(v_U_E_0);
    // }
    if !whole {
      // unroll U in GROUP_QUADS, E in KEYS, M in V_QUADS, DECODE_KV in DECODE_CACHED {
        let v_now_U_E_M = DECODE_KV(v_U_E_M);
        // unroll N in THREAD_ROWS {
          o_N_M = add_seen(!(s_N_U[E] == MASKED), p_N_U[E], v_now_U_E_M, o_N_M);
        // }
      // }
    } else {
      // unroll U in GROUP_QUADS, E in KEYS, M in V_QUADS, DECODE_KV in DECODE_CACHED {
        let v_now_U_E_M = DECODE_KV(v_U_E_M);
        // unroll N in THREAD_ROWS {
          o_N_M = fma(vec4<f32>(p_N_U[E]), v_now_U_E_M, o_N_M);
        // }
      // }
    }
    // unroll U in GROUP_QUADS, E in KEYS, M in V_QUADS {
      v_U_E_M = fetch_v(tile, next_key + in_tile_U + E, lane + M * LANES);
    // }
  }

  // unroll N in THREAD_ROWS, GROUPROWS in ROWS_OF_GROUP, ATO in AT_O {
    // m = max m_g
    workgroupBarrier(); // the last row is read
    if lane == 0u { group_stats[group] = vec2<f32>(m_N, l_N); }
    workgroupBarrier();
    var m_all_N = MASKED;
    for (var g = 0u; g < KEY_LANES; g++) { m_all_N = max(m_all_N, group_stats[g].x); }
    // unroll M in V_QUADS {
      group_o[group * V_STRIDE + lane + M * LANES] = o_N_M * exp2(m_N - m_all_N);
    // }
    workgroupBarrier();
    // l = Σ exp(m_g − m) · l_g
    var l_all_N = 0.0;
    for (var g = 0u; g < KEY_LANES; g++) { l_all_N += exp2(group_stats[g].x - m_all_N) * group_stats[g].y; }
    // O_i = Σ exp(m_g − m) · O_g / l, LSE_i = m + ln l; a row that sees nothing, or only scores of −∞, gives 0
    // and −∞
    if tile.row + N < GROUPROWS {
      let head = head_of(tile, tile.row + N);
      let row = row_of(tile, tile.row + N);
      let empty = l_all_N == 0.0;
      let end = row_end(cell_at(tile.batch, head, row, 0u), m_all_N, l_all_N);
      let factor = params.dropout_scale * end.share;
      let first = o_row(split, tile.ATO, head, row);
      for (var quad = invocation; quad * 4u < HEAD_DIM_V; quad += INVOCATIONS) {
        var o = vec4<f32>(0.0);
        for (var g = 0u; g < KEY_LANES; g++) { o += group_o[g * V_STRIDE + quad]; }
        write_o(first, quad * 4u, select(o * factor, vec4<f32>(0.0), empty));
      }
      if invocation == 0u { write_lse(split, tile.ATO, head, row, end.lse); }
    }
  // }
}
