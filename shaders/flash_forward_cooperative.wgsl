// FlashAttention, forward, on cooperative matrices: the loop of flash_forward.wgsl with the products S = Q Kᵀ and P V done
// by the matrix units, f16 in and f32 accumulated.
//
//   for each Q tile i:                                   one workgroup
//     O_i = 0, l_i = 0, m_i = −∞
//     for each KV tile j that some row of i sees:
//       S = Q_i K_jᵀ                                     on matrices
//       m_i = max(m_i, rowmax(S)) if that grew by more than 2⁸, α = exp(m_old − m_i), l_i = α · l_i, O_i = α · O_i
//       P = exp(S − m_i), l_i = l_i + rowsum(P)          through scratch memory: a matrix's elements cannot be reached
//       O_i = O_i + dropout(P) V_j                       on matrices
//     O_i = O_i / l_i,   LSE_i = m_i + ln l_i
//
// m_i may lag behind the true maximum by 2⁸: P then stays within f16, and the division at the end corrects O and LSE. It
// saves nearly all rescaling of O.
//
// Who owns what: a workgroup one Q tile of one head; a subgroup MATRIX_SIDE of its rows, as fragments of Q, S, P and O in
// its registers; an invocation, between products, 8 neighbouring keys of one row. Workgroup memory holds the K and V
// tiles in f16, and for each subgroup the scratch in which S, P and O change between fragments and plain values.
//
// Order: K_{j+1} and V_j are stored while the softmax of tile j runs, so that a tile costs two workgroup barriers.

@group(0) @binding(BINDING_lse) var<storage, read_write> lse: array<f32>;

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
  // Neighbouring lanes take neighbouring rows: without bank conflicts, which the other order has.
  let row_in_subgroup = subgroup_invocation_id % MATRIX_SIDE;
  let row = subgroup_id * MATRIX_SIDE + row_in_subgroup;
  let first_quad = subgroup_invocation_id / MATRIX_SIDE * 2u;
  let i = tile.first_row + row;
  let visible = visible_keys(i);
  let scale = abs(params.softmax_scale_log2);

  // The subgroup's scratch, and this invocation's two quads in it.
  let s_scratch = subgroup_id * MATRIX_SIDE * S_STRIDE;
  let s_mine = s_scratch + row_in_subgroup * S_STRIDE + first_quad;
  let p_scratch = subgroup_id * MATRIX_SIDE * P_STRIDE;
  let p_mine = p_scratch + row_in_subgroup * P_STRIDE + first_quad;
  let s_stride = S_STRIDE;

  // Q_i
  // unroll M in K_FRAGMENTS {
  p_tile[p_mine] = fetch_q(tile, row, M * MATRIX_QUADS + first_quad);
  p_tile[p_mine + 1u] = fetch_q(tile, row, M * MATRIX_QUADS + first_quad + 1u);
  scratch_barrier();
  let q_M = coopLoadT<MatrixA>(&p_tile[p_scratch], P_STRIDE);
  scratch_barrier();
  // }

  // O_i = 0, l_i = 0 (this invocation's part of it), m_i = −∞
  // unroll M in V_FRAGMENTS {
  var o_M = MatrixC();
  // }
  var l = 0.0;
  var m = MASKED;

  // for each KV tile j that some row of i sees:
  let range = block_range(tile.first_row, tile.last_row);
  // unroll L in K_FETCHES {
  var k_next_L = Loaded();
  if range.first < range.end {
    place_k(invocation + L * INVOCATIONS, fetch_k(tile, range.first * TILE_KV, invocation + L * INVOCATIONS));
    k_next_L = fetch_k(tile, (range.first + 1u) * TILE_KV, invocation + L * INVOCATIONS);
  }
  // }
  // unroll L in V_FETCHES {
  var v_next_L = Loaded();
  if range.first < range.end { v_next_L = fetch_v(tile, range.first * TILE_KV, invocation + L * INVOCATIONS); }
  // }
  workgroupBarrier(); // K of the first tile is in place
  for (var j = range.first; j < range.end; j++) {
    let whole = is_whole(range, j);

    // S = Q_i K_jᵀ: dimensions outside, keys inside, so that several chains of products are in flight
    // unroll E in KEY_FRAGMENTS {
    var s_E = MatrixC();
    // }
    // unroll M in K_FRAGMENTS {
    // unroll E in KEY_FRAGMENTS {
    s_E = coopMultiplyAdd(q_M, coopLoad<MatrixB>(&k_tile[E * MATRIX_SIDE * K_STRIDE + M * MATRIX_QUADS], K_STRIDE), s_E);
    // }
    // }

    workgroupBarrier(); // K and the last V are read
    // unroll L in K_FETCHES {
    place_k(invocation + L * INVOCATIONS, k_next_L);
    k_next_L = fetch_k(tile, (j + 2u) * TILE_KV, invocation + L * INVOCATIONS);
    // }
    // unroll L in V_FETCHES {
    place_v(invocation + L * INVOCATIONS, v_next_L);
    v_next_L = fetch_v(tile, (j + 1u) * TILE_KV, invocation + L * INVOCATIONS);
    // }

    // rowmax(S), masked
    var s_max = MASKED;
    // unroll E in KEY_FRAGMENTS {
    coopStoreT(s_E, &s_tile[s_scratch], s_stride);
    scratch_barrier();
    var s_0_E = s_tile[s_mine];
    var s_1_E = s_tile[s_mine + 1u];
    scratch_barrier();
    let key_E = j * TILE_KV + E * MATRIX_SIDE + first_quad * 4u;
    if !whole {
      s_0_E = select(vec4<f32>(MASKED), s_0_E, sees(visible, key_E));
      s_1_E = select(vec4<f32>(MASKED), s_1_E, sees(visible, key_E + 4u));
    }
    let s_max_E = max(s_0_E, s_1_E);
    s_max = max(s_max, max(max(s_max_E.x, s_max_E.y), max(s_max_E.z, s_max_E.w)));
    // }
    s_max = row_max(s_max) * scale;

    // m_i = max(m_i, rowmax(S)), α, l_i = α · l_i, O_i = α · O_i. A loop that ends after one turn, because naga does not
    // take the condition of an `if` for uniform; it is, by subgroupAny.
    loop {
      if !subgroupAny(s_max > m + 8.0) { break; }
      let m_new = max(m, s_max);
      let alpha = exp2(m - m_new);
      m = m_new;
      l *= alpha;
      if j == range.first { break; } // O is still 0
      // unroll M in V_FRAGMENTS {
      coopStoreT(o_M, &s_tile[s_scratch], s_stride);
      scratch_barrier();
      s_tile[s_mine] *= alpha;
      s_tile[s_mine + 1u] *= alpha;
      scratch_barrier();
      o_M = coopLoadT<MatrixC>(&s_tile[s_scratch], s_stride);
      scratch_barrier();
      // }
      break;
    }

    // P = exp(S − m_i), l_i = l_i + rowsum(P), dropout(P)
    // unroll E in KEY_FRAGMENTS {
    var p_0_E = exp2(fma(s_0_E, vec4<f32>(scale), vec4<f32>(-m)));
    var p_1_E = exp2(fma(s_1_E, vec4<f32>(scale), vec4<f32>(-m)));
    if !whole {
      p_0_E = select(p_0_E, vec4<f32>(0.0), s_0_E == vec4<f32>(MASKED));
      p_1_E = select(p_1_E, vec4<f32>(0.0), s_1_E == vec4<f32>(MASKED));
    }
    let p_sum_E = p_0_E + p_1_E;
    l += (p_sum_E.x + p_sum_E.y) + (p_sum_E.z + p_sum_E.w);
    if HAS_DROPOUT {
      p_0_E = dropout(p_0_E, params.batch_first + tile.batch, params.head_first + tile.head, i, key_E);
      p_1_E = dropout(p_1_E, params.batch_first + tile.batch, params.head_first + tile.head, i, key_E + 4u);
    }
    p_tile[p_mine] = vec4<f16>(p_0_E);
    p_tile[p_mine + 1u] = vec4<f16>(p_1_E);
    scratch_barrier();
    let p_E = coopLoadT<MatrixA>(&p_tile[p_scratch], P_STRIDE);
    scratch_barrier();
    // }
    workgroupBarrier(); // V and the next K are in place

    // O_i = O_i + dropout(P) V_j. A product with a matrix adds 0 · v for the keys that a row does not see, which is not 0
    // if v is infinite or not a number: where some rows see less than others, such tiles (there should be none) are left
    // to plain arithmetic. Loops that end after one turn, as above.
    var is_finite = true;
    if HAS_WINDOW && !whole { is_finite = v_tile_is_finite(subgroup_invocation_id); }
    loop {
      if HAS_WINDOW && subgroupAny(!is_finite) { break; }
      // unroll E in KEY_FRAGMENTS {
      // unroll M in V_FRAGMENTS {
      o_M = coopMultiplyAdd(p_E, coopLoadT<MatrixB>(&v_tile[E * MATRIX_SIDE * V_STRIDE + M * MATRIX_QUADS], V_STRIDE), o_M);
      // }
      // }
      break;
    }
    loop {
      if !(HAS_WINDOW && subgroupAny(!is_finite)) { break; }
      // unroll M in V_FRAGMENTS {
      coopStoreT(o_M, &s_tile[s_scratch], s_stride);
      // unroll E in KEY_FRAGMENTS {
      p_tile[p_mine] = vec4<f16>(p_0_E);
      p_tile[p_mine + 1u] = vec4<f16>(p_1_E);
      scratch_barrier();
      for (var key = 0u; key < MATRIX_SIDE; key++) {
        let p = f32(p_tile[p_scratch + row_in_subgroup * P_STRIDE + key / 4u][key % 4u]);
        let v_mine = (E * MATRIX_SIDE + key) * V_STRIDE + M * MATRIX_QUADS + first_quad;
        s_tile[s_mine] = add_visible(p, vec4<f32>(v_tile[v_mine]), s_tile[s_mine]);
        s_tile[s_mine + 1u] = add_visible(p, vec4<f32>(v_tile[v_mine + 1u]), s_tile[s_mine + 1u]);
      }
      scratch_barrier();
      // }
      o_M = coopLoadT<MatrixC>(&s_tile[s_scratch], s_stride);
      scratch_barrier();
      // }
      break;
    }
  }

  // O_i = O_i / l_i, LSE_i = m_i + ln l_i; a row that sees nothing gives 0 and −∞
  let l_row = row_sum(l);
  let empty = visible.x >= visible.y;
  let factor = select(params.dropout_scale / l_row, 0.0, empty);
  let first = params.o_offset + tile.batch * params.o_stride_batch + tile.head * params.o_stride_head
    + (tile.row + row) * params.o_stride_row;
  let inside = tile.row + row < params.row_count;
  // unroll M in V_FRAGMENTS {
  scratch_barrier();
  coopStoreT(o_M, &s_tile[s_scratch], s_stride);
  scratch_barrier();
  let dim_0_M = (M * MATRIX_QUADS + first_quad) * 4u;
  let dim_1_M = dim_0_M + 4u;
  if inside && dim_0_M < HEAD_DIM_V { store_o(first + dim_0_M, HEAD_DIM_V - dim_0_M, s_tile[s_mine] * factor); }
  if inside && dim_1_M < HEAD_DIM_V { store_o(first + dim_1_M, HEAD_DIM_V - dim_1_M, s_tile[s_mine + 1u] * factor); }
  // }
  if inside && first_quad == 0u {
    let lse_index = params.lse_offset + tile.batch * params.lse_stride_batch + tile.head * params.lse_stride_head
      + tile.row + row;
    lse[lse_index] = select((m + log2(l_row)) * LN_2, params.negative_infinity, empty);
  }
}
