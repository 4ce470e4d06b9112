// FlashAttention, backward, dK and dV on cooperative matrices: the loop of flash_backward_dkdv.wgsl with its four
// products done by the matrix units, f16 in and f32 accumulated.
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
// f32 and bf16 pass in units of their rows, f32 in two parts, as in flash_forward_cooperative.wgsl.
//
// Who owns what: a workgroup one KV tile of one KV head; a subgroup THREAD_ROWS of its keys, as fragments of K, V, dK
// and dV in its registers; an invocation, between products, 8 neighbouring keys of one row. Workgroup memory holds the
// Q and dO tiles in f16, and for each subgroup the scratch in which S, dP, P and dS change between fragments and plain
// values.

// Rows of the scratch of S and dP, in quads: stored column by column, matrices meet no bank conflicts at this distance.
const S_STRIDE = MATRIX_QUADS + 1u;

// Whether the row is empty to which the fetch with this index belongs: of the head whose LSE starts at `head_at`,
// `lanes` of them to a row.
fn is_empty(head_at: u32, first_row: u32, index: u32, lanes: u32) -> bool {
  return is_empty_row(head_at, min(first_row + index / lanes, params.seqlen_q - 1u));
}

// LSE in units of log2(e), and D.
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

  // The subgroup's scratch, in which a row is one of the fragment's, or on the way in and out a key; and this
  // invocation's two quads there. Neighbouring lanes take neighbouring rows: without bank conflicts, which the other
  // order has.
  let row_in_fragment = subgroup_invocation_id % MATRIX_SIDE;
  let first_quad = subgroup_invocation_id / MATRIX_SIDE * 2u;
  let s_scratch = subgroup_id * MATRIX_SIDE * S_STRIDE;
  let s_mine = s_scratch + row_in_fragment * S_STRIDE + first_quad;
  let p_scratch = subgroup_id * MATRIX_SIDE * P_STRIDE;
  let p_mine = p_scratch + row_in_fragment * P_STRIDE + first_quad;
  let s_stride = S_STRIDE;

  // K_j, V_j; dK_j = 0, dV_j = 0
  let subgroup_key = tile.key + subgroup_id * THREAD_ROWS;
  let k_at = params.k_offset + tile.batch * params.k_stride_batch + tile.head_kv * params.k_stride_head;
  let v_at = params.v_offset + tile.batch * params.v_stride_batch + tile.head_kv * params.v_stride_head;
  // unroll E in OWNED_FRAGMENTS {
    let owned_E = subgroup_key + E * MATRIX_SIDE + row_in_fragment;
    let key_E = params.key_first + subgroup_key + E * MATRIX_SIDE + first_quad * 4u;
    var keep_0_E = vec4<bool>(true);
    var keep_1_E = vec4<bool>(true);
    var k_largest_E = 0.0;
    // unroll M in K_FRAGMENTS {
      let k_0_E_M = score_operand(fetch_k(k_at, owned_E, params.key_count, M * MATRIX_QUADS + first_quad));
      let k_1_E_M = score_operand(fetch_k(k_at, owned_E, params.key_count, M * MATRIX_QUADS + first_quad + 1u));
      k_largest_E = max(k_largest_E, max(largest_of_loaded(k_0_E_M), largest_of_loaded(k_1_E_M)));
    // }
    let k_scale_E = row_scale(k_largest_E, MATRIX_SIDE, LANES);
    let k_units_0_E = units_of_rows(inverse(k_scale_E), first_quad * 4u);
    let k_units_1_E = units_of_rows(inverse(k_scale_E), first_quad * 4u + 4u);
    // unroll M in K_FRAGMENTS {
      p_tile[p_mine] = to_half(k_0_E_M, k_scale_E);
      p_tile[p_mine + 1u] = to_half(k_1_E_M, k_scale_E);
      // unroll REST in REST_PARTS {
        p_tile_REST[p_mine] = to_rest(k_0_E_M, k_scale_E);
        p_tile_REST[p_mine + 1u] = to_rest(k_1_E_M, k_scale_E);
      // }
      scratch_barrier();
      let k_E_M = coopLoadT<MatrixA>(&p_tile[p_scratch], P_STRIDE);
      // unroll REST in REST_PARTS {
        let k_REST_E_M = coopLoadT<MatrixA>(&p_tile_REST[p_scratch], P_STRIDE);
      // }
      scratch_barrier();
      var dk_E_M = MatrixC();
    // }
    var v_largest_E = 0.0;
    // unroll M in V_FRAGMENTS {
      let v_0_E_M = fetch_v(v_at, owned_E, params.key_count, M * MATRIX_QUADS + first_quad);
      let v_1_E_M = fetch_v(v_at, owned_E, params.key_count, M * MATRIX_QUADS + first_quad + 1u);
      v_largest_E = max(v_largest_E, max(largest_of_loaded(v_0_E_M), largest_of_loaded(v_1_E_M)));
    // }
    let v_scale_E = row_scale(v_largest_E, MATRIX_SIDE, LANES);
    let v_units_0_E = units_of_rows(inverse(v_scale_E), first_quad * 4u);
    let v_units_1_E = units_of_rows(inverse(v_scale_E), first_quad * 4u + 4u);
    // unroll M in V_FRAGMENTS {
      p_tile[p_mine] = to_half(v_0_E_M, v_scale_E);
      p_tile[p_mine + 1u] = to_half(v_1_E_M, v_scale_E);
      // unroll REST in REST_PARTS {
        p_tile_REST[p_mine] = to_rest(v_0_E_M, v_scale_E);
        p_tile_REST[p_mine + 1u] = to_rest(v_1_E_M, v_scale_E);
      // }
      scratch_barrier();
      let v_E_M = coopLoadT<MatrixA>(&p_tile[p_scratch], P_STRIDE);
      // unroll REST in REST_PARTS {
        let v_REST_E_M = coopLoadT<MatrixA>(&p_tile_REST[p_scratch], P_STRIDE);
      // }
      scratch_barrier();
      var dv_E_M = MatrixC();
    // }
  // }
  var p_gain = FIRST_P_GAIN;
  var ds_gain = FIRST_GAIN;
  for (var row = invocation; row < TILE_Q; row += INVOCATIONS) { atomicStore(&poisoned[row], 0u); }

  // for each query head that shares it, for each Q tile i with a row that sees some key of j:
  // Those that all keys are seen by come first, so that their loop needs no mask; a tile that is not full of keys has
  // none, and where rows of them are empty by their scores all are taken for partial.
  var visits = visits_of(row_range(tile.first_key, tile.last_key));
  if invocation == 0u { stats_tile[0] = vec2<f32>(0.0); }
  workgroupBarrier();
  if has_empty_row(visits, tile, invocation) { stats_tile[0] = vec2<f32>(1.0); }
  let has_empty_row = workgroupUniformLoad(&stats_tile[0]).x != 0.0;
  visits.num_whole = select(0u, visits.num_whole, tile.key + TILE_KV <= params.key_count && !has_empty_row);
  let steps = visits.count * params.heads_per_kv;
  let q_batch_at = params.q_offset + tile.batch * params.q_stride_batch;
  let d_o_batch_at = params.d_o_offset + tile.batch * params.d_o_stride_batch;
  let lse_batch_at = tile.batch * params.lse_stride_batch;
  // The next tile is fetched into registers while the one before is computed with.
  // unroll L in K_FETCHES, P in K_FETCH_PARTS {
    var q_next_L_P = Loaded();
  // }
  // unroll L in V_FETCHES, P in V_FETCH_PARTS {
    var d_o_next_L_P = Loaded();
  // }
  // unroll L in STATS_FETCHES {
    var stats_next_L = vec2<f32>(0.0);
  // }
  if steps > 0u {
    let next_row = step_at(visits, 0u).row_tile * TILE_Q;
    let lse_at = lse_batch_at + tile.head * params.lse_stride_head;
    let q_at = q_batch_at + tile.head * params.q_stride_head;
    let d_o_at = d_o_batch_at + tile.head * params.d_o_stride_head;
    // unroll L in K_FETCHES, P in K_FETCH_PARTS {
      q_next_L_P = fetch_q(q_at, next_row, params.seqlen_q, invocation + L * INVOCATIONS, P);
    // }
    // unroll L in V_FETCHES, P in V_FETCH_PARTS {
      d_o_next_L_P = fetch_d_o(d_o_at, next_row, params.seqlen_q, invocation + L * INVOCATIONS, P);
    // }
    // unroll L in STATS_FETCHES {
      stats_next_L = row_stats(lse_at, next_row + invocation + L * INVOCATIONS, params.seqlen_q);
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
      let q_at = q_batch_at + next_head * params.q_stride_head;
      let d_o_at = d_o_batch_at + next_head * params.d_o_stride_head;
      workgroupBarrier(); // the last tile is read
      // unroll L in K_FETCHES {
        var q_largest_L = 0.0;
        // unroll P in K_FETCH_PARTS {
          let q_is_empty_L_P = masked && is_empty(lse_now, i * TILE_Q, invocation + L * INVOCATIONS, K_FETCH_LANES);
          q_next_L_P = live_q(score_operand(q_next_L_P), q_is_empty_L_P);
          q_largest_L = max(q_largest_L, largest_of_loaded(q_next_L_P));
        // }
        let q_scale_L = row_scale(q_largest_L, 1u, K_FETCH_LANES);
        // unroll P in K_FETCH_PARTS {
          place_q(invocation + L * INVOCATIONS, P, q_next_L_P, q_scale_L, HAS_WINDOW && masked, step + 1u);
          q_next_L_P = fetch_q(q_at, next_row, params.seqlen_q, invocation + L * INVOCATIONS, P);
        // }
      // }
      // unroll L in V_FETCHES {
        var d_o_largest_L = 0.0;
        // unroll P in V_FETCH_PARTS {
          let d_o_is_empty_L_P = masked && is_empty(lse_now, i * TILE_Q, invocation + L * INVOCATIONS, V_FETCH_LANES);
          d_o_next_L_P = select(d_o_next_L_P, Loaded(), d_o_is_empty_L_P);
          d_o_largest_L = max(d_o_largest_L, largest_of_loaded(d_o_next_L_P));
        // }
        let d_o_scale_L = row_scale(d_o_largest_L, 1u, V_FETCH_LANES);
        // unroll P in V_FETCH_PARTS {
          place_d_o(invocation + L * INVOCATIONS, P, d_o_next_L_P, d_o_scale_L, HAS_WINDOW && masked, step + 1u);
          d_o_next_L_P = fetch_d_o(d_o_at, next_row, params.seqlen_q, invocation + L * INVOCATIONS, P);
        // }
      // }
      // unroll L in STATS_FETCHES {
        if invocation + L * INVOCATIONS < TILE_Q { stats_tile[invocation + L * INVOCATIONS] = stats_next_L; }
        stats_next_L = row_stats(lse_at, next_row + invocation + L * INVOCATIONS, params.seqlen_q);
      // }
      workgroupBarrier(); // the tile is in place

      // A turn of the inner loop takes PASSING_FRAGMENTS fragments of rows. It is left early where some dS outgrows its
      // scale, which is rare, so that dK stays untouched in it but for the products; after the outer loop has changed
      // the scale, the turn is taken again. naga does not take `if` conditions for uniform where they are, by
      // subgroupAny; hence the loops.
      var fragment = 0u;
      var p_largest = 0.0;
      var ds_largest = 0.0;
      loop {
        if fragment >= TILE_Q { break; }
        loop {
          // Sᵀ = K_j Q_iᵀ, dPᵀ = V_j dO_iᵀ
          // unroll R in PASSING_FRAGMENTS {
            let q_fragment_R = (fragment + R * MATRIX_SIDE) * K_STRIDE;
            let d_o_fragment_R = (fragment + R * MATRIX_SIDE) * V_STRIDE;
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
            let q_R_M = coopLoad<MatrixB>(&q_tile[q_fragment_R + M * MATRIX_QUADS], K_STRIDE);
            // unroll E in OWNED_FRAGMENTS {
              s_R_E = coopMultiplyAdd(k_E_M, q_R_M, s_R_E);
            // }
            // unroll REST in REST_PARTS {
              let q_REST_R_M = coopLoad<MatrixB>(&q_tile_REST[q_fragment_R + M * MATRIX_QUADS], K_STRIDE);
              // unroll E in OWNED_FRAGMENTS {
                s_REST_R_E = coopMultiplyAdd(k_REST_E_M, q_R_M, s_REST_R_E);
                s_REST_R_E = coopMultiplyAdd(k_E_M, q_REST_R_M, s_REST_R_E);
              // }
            // }
          // }
          // unroll M in V_FRAGMENTS, R in PASSING_FRAGMENTS {
            let d_o_R_M = coopLoad<MatrixB>(&d_o_tile[d_o_fragment_R + M * MATRIX_QUADS], V_STRIDE);
            // unroll E in OWNED_FRAGMENTS {
              dp_R_E = coopMultiplyAdd(v_E_M, d_o_R_M, dp_R_E);
            // }
            // unroll REST in REST_PARTS {
              let d_o_REST_R_M = coopLoad<MatrixB>(&d_o_tile_REST[d_o_fragment_R + M * MATRIX_QUADS], V_STRIDE);
              // unroll E in OWNED_FRAGMENTS {
                dp_REST_R_E = coopMultiplyAdd(v_REST_E_M, d_o_R_M, dp_REST_R_E);
                dp_REST_R_E = coopMultiplyAdd(v_E_M, d_o_REST_R_M, dp_REST_R_E);
              // }
            // }
          // }

          p_largest = 0.0;
          ds_largest = 0.0;
          // unroll R in PASSING_FRAGMENTS {
            let row_R = fragment + R * MATRIX_SIDE + row_in_fragment;
            let i_row_R = i * TILE_Q + row_R;
            var stats_R = stats_tile[row_R];
            if HAS_WINDOW && masked && atomicLoad(&poisoned[row_R]) == step + 1u { stats_R.x = not_a_number(); }
            let visible_R = visible_keys_unless_empty(i_row_R, stats_tile[row_R]);
            let q_unit_R = q_unit(row_R);
            let d_o_unit_R = d_o_unit(row_R);
            let s_factor_R = q_unit_R * params.softmax_scale_log2;
            // unroll E in OWNED_FRAGMENTS {
              // unroll REST in REST_PARTS {
                s_R_E = s_R_E + s_REST_R_E;
                dp_R_E = dp_R_E + dp_REST_R_E;
              // }
              // P = exp(softmax_scale · S − LSE_i), masked
              coopStore(s_R_E, &s_tile[s_scratch], s_stride);
              scratch_barrier();
              // unroll PLAIN in PLAIN_SCORES {
                var p_0_R_E = exp2(fma(s_tile[s_mine] * k_units_0_E, vec4<f32>(s_factor_R), vec4<f32>(-stats_R.x)));
                var p_1_R_E = exp2(fma(s_tile[s_mine + 1u] * k_units_1_E, vec4<f32>(s_factor_R), vec4<f32>(-stats_R.x)));
              // }
              // unroll MODIFIED in MODIFIED_SCORES {
                let cell_0_R_E = cell_at(tile.batch, head, i_row_R, key_E);
                let cell_1_R_E = cell_at(tile.batch, head, i_row_R, key_E + 4u);
                let raw_0_R_E = s_tile[s_mine] * k_units_0_E * s_factor_R;
                let raw_1_R_E = s_tile[s_mine + 1u] * k_units_1_E * s_factor_R;
                var p_0_R_E = exp2(scored(raw_0_R_E, cell_0_R_E) - vec4<f32>(stats_R.x));
                var p_1_R_E = exp2(scored(raw_1_R_E, cell_1_R_E) - vec4<f32>(stats_R.x));
              // }
              scratch_barrier();
              coopStore(dp_R_E, &s_tile[s_scratch], s_stride);
              if masked {
                p_0_R_E = select(vec4<f32>(0.0), p_0_R_E, sees(visible_R, key_E));
                p_1_R_E = select(vec4<f32>(0.0), p_1_R_E, sees(visible_R, key_E + 4u));
              }
              // dropout(P)ᵀ
              var dropped_0_R_E = p_0_R_E * d_o_unit_R;
              var dropped_1_R_E = p_1_R_E * d_o_unit_R;
              if HAS_DROPOUT {
                let batch = params.batch_first + tile.batch;
                keep_0_E = kept(batch, params.head_first + head, i_row_R, key_E);
                keep_1_E = kept(batch, params.head_first + head, i_row_R, key_E + 4u);
                dropped_0_R_E = select(vec4<f32>(0.0), dropped_0_R_E, keep_0_E);
                dropped_1_R_E = select(vec4<f32>(0.0), dropped_1_R_E, keep_1_E);
              }
              if HAS_UNITS { p_largest = max(p_largest, max(largest_of(dropped_0_R_E), largest_of(dropped_1_R_E))); }
              dropped_0_R_E *= p_gain;
              dropped_1_R_E *= p_gain;
              p_tile[p_mine] = as_half(dropped_0_R_E);
              p_tile[p_mine + 1u] = as_half(dropped_1_R_E);
              // unroll REST in REST_PARTS {
                p_tile_REST[p_mine] = rest_of(dropped_0_R_E);
                p_tile_REST[p_mine + 1u] = rest_of(dropped_1_R_E);
              // }
              scratch_barrier();
              let p_R_E = coopLoad<MatrixA>(&p_tile[p_scratch], P_STRIDE);
              // unroll REST in REST_PARTS {
                let p_REST_R_E = coopLoad<MatrixA>(&p_tile_REST[p_scratch], P_STRIDE);
              // }
              // dS = P ∘ (dropout(dP) − D_i)
              var ds_0_R_E = s_tile[s_mine] * v_units_0_E;
              var ds_1_R_E = s_tile[s_mine + 1u] * v_units_1_E;
              scratch_barrier();
              if HAS_DROPOUT {
                ds_0_R_E = select(vec4<f32>(0.0), ds_0_R_E * params.dropout_scale, keep_0_E);
                ds_1_R_E = select(vec4<f32>(0.0), ds_1_R_E * params.dropout_scale, keep_1_E);
              }
              ds_0_R_E = p_0_R_E * fma(ds_0_R_E, vec4<f32>(d_o_unit_R), vec4<f32>(-stats_R.y));
              ds_1_R_E = p_1_R_E * fma(ds_1_R_E, vec4<f32>(d_o_unit_R), vec4<f32>(-stats_R.y));
              // unroll MODIFIED in MODIFIED_SCORES {
                ds_0_R_E = score_gradient(ds_0_R_E, raw_0_R_E, cell_0_R_E);
                ds_1_R_E = score_gradient(ds_1_R_E, raw_1_R_E, cell_1_R_E);
              // }
              if masked {
                // Not by P = 0: what is not seen may be infinite.
                ds_0_R_E = select(vec4<f32>(0.0), ds_0_R_E, sees(visible_R, key_E));
                ds_1_R_E = select(vec4<f32>(0.0), ds_1_R_E, sees(visible_R, key_E + 4u));
              }
              // in units of the rows of Q, for their product
              ds_0_R_E *= q_unit_R;
              ds_1_R_E *= q_unit_R;
              ds_largest = max(ds_largest, max(largest_of(ds_0_R_E), largest_of(ds_1_R_E)));
            // }
          // }
          if subgroupAny((ds_largest * ds_gain > GAIN_MOST) | (p_largest * p_gain > GAIN_MOST)) { break; }

          // dSᵀ
          // unroll R in PASSING_FRAGMENTS, E in OWNED_FRAGMENTS {
            p_tile[p_mine] = as_half(ds_0_R_E * ds_gain);
            p_tile[p_mine + 1u] = as_half(ds_1_R_E * ds_gain);
            // unroll REST in REST_PARTS {
              p_tile_REST[p_mine] = rest_of(ds_0_R_E * ds_gain);
              p_tile_REST[p_mine + 1u] = rest_of(ds_1_R_E * ds_gain);
            // }
            scratch_barrier();
            let ds_R_E = coopLoad<MatrixA>(&p_tile[p_scratch], P_STRIDE);
            // unroll REST in REST_PARTS {
              let ds_REST_R_E = coopLoad<MatrixA>(&p_tile_REST[p_scratch], P_STRIDE);
            // }
            scratch_barrier();
          // }

          // dV_j = dV_j + dropout(P)ᵀ dO_i, dK_j = dK_j + dSᵀ Q_i
          // unroll R in PASSING_FRAGMENTS {
            // unroll M in V_FRAGMENTS {
              let d_o_rows_R_M = coopLoadT<MatrixB>(&d_o_tile[d_o_fragment_R + M * MATRIX_QUADS], V_STRIDE);
              // unroll ONLY in ONLY_PARTS, E in OWNED_FRAGMENTS {
                dv_E_M = coopMultiplyAdd(p_R_E, d_o_rows_R_M, dv_E_M);
              // }
              // unroll REST in REST_PARTS {
                let d_o_rows_REST_R_M = coopLoadT<MatrixB>(&d_o_tile_REST[d_o_fragment_R + M * MATRIX_QUADS], V_STRIDE);
                // unroll E in OWNED_FRAGMENTS {
                  var dv_rest_R_E_M = coopMultiplyAdd(p_REST_R_E, d_o_rows_R_M, MatrixC());
                  dv_rest_R_E_M = coopMultiplyAdd(p_R_E, d_o_rows_REST_R_M, dv_rest_R_E_M);
                  dv_E_M = dv_E_M + coopMultiplyAdd(p_R_E, d_o_rows_R_M, dv_rest_R_E_M);
                // }
              // }
            // }
            // unroll M in K_FRAGMENTS {
              let q_rows_R_M = coopLoadT<MatrixB>(&q_tile[q_fragment_R + M * MATRIX_QUADS], K_STRIDE);
              // unroll ONLY in ONLY_PARTS, E in OWNED_FRAGMENTS {
                dk_E_M = coopMultiplyAdd(ds_R_E, q_rows_R_M, dk_E_M);
              // }
              // unroll REST in REST_PARTS {
                let q_rows_REST_R_M = coopLoadT<MatrixB>(&q_tile_REST[q_fragment_R + M * MATRIX_QUADS], K_STRIDE);
                // unroll E in OWNED_FRAGMENTS {
                  var dk_rest_R_E_M = coopMultiplyAdd(ds_REST_R_E, q_rows_R_M, MatrixC());
                  dk_rest_R_E_M = coopMultiplyAdd(ds_R_E, q_rows_REST_R_M, dk_rest_R_E_M);
                  dk_E_M = dk_E_M + coopMultiplyAdd(ds_R_E, q_rows_R_M, dk_rest_R_E_M);
                // }
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
          // unroll E in OWNED_FRAGMENTS, M in K_FRAGMENTS {
            dk_E_M = dk_E_M * ds_ratio;
          // }
          if HAS_UNITS {
            let new_p_gain = gain_for(subgroupMax(p_largest), p_gain);
            let p_ratio = new_p_gain / p_gain;
            p_gain = new_p_gain;
            // unroll E in OWNED_FRAGMENTS, M in V_FRAGMENTS {
              dv_E_M = dv_E_M * p_ratio;
            // }
          }
          break;
        }
      }
    }
  // }

  // dK_j = softmax_scale · dK_j; the kept probabilities' factor on dV_j
  let dk_factor = params.softmax_scale_log2 * LN_2 / ds_gain;
  let dv_factor = params.dropout_scale / p_gain;
  let dk_at = params.dk_offset + tile.batch * params.dk_stride_batch + tile.head_kv * params.dk_stride_head;
  let dv_at = params.dv_offset + tile.batch * params.dv_stride_batch + tile.head_kv * params.dv_stride_head;
  // unroll E in OWNED_FRAGMENTS {
    let inside_E = owned_E < params.key_count;
    // unroll M in K_FRAGMENTS {
      let k_dim_E_M = (M * MATRIX_QUADS + first_quad) * 4u;
      scratch_barrier();
      coopStoreT(dk_E_M, &s_tile[s_scratch], s_stride);
      scratch_barrier();
      if inside_E && k_dim_E_M < HEAD_DIM {
        store_dk(dk_at + owned_E * params.dk_stride_row + k_dim_E_M, HEAD_DIM - k_dim_E_M, s_tile[s_mine] * dk_factor);
      }
      if inside_E && k_dim_E_M + 4u < HEAD_DIM {
        store_dk(dk_at + owned_E * params.dk_stride_row + k_dim_E_M + 4u, HEAD_DIM - k_dim_E_M - 4u,
          s_tile[s_mine + 1u] * dk_factor);
      }
    // }
    // unroll M in V_FRAGMENTS {
      let v_dim_E_M = (M * MATRIX_QUADS + first_quad) * 4u;
      scratch_barrier();
      coopStoreT(dv_E_M, &s_tile[s_scratch], s_stride);
      scratch_barrier();
      if inside_E && v_dim_E_M < HEAD_DIM_V {
        store_dv(dv_at + owned_E * params.dv_stride_row + v_dim_E_M, HEAD_DIM_V - v_dim_E_M,
          s_tile[s_mine] * dv_factor);
      }
      if inside_E && v_dim_E_M + 4u < HEAD_DIM_V {
        store_dv(dv_at + owned_E * params.dv_stride_row + v_dim_E_M + 4u, HEAD_DIM_V - v_dim_E_M - 4u,
          s_tile[s_mine + 1u] * dv_factor);
      }
    // }
  // }
}
