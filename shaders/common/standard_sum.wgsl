// Sums over keys in standard attention: P V or dS K. Workgroup memory holds a tile of the matrix, and of V or K a
// chunk of head dimensions at a time. In a chunk, an invocation owns the quads lane, lane + LANES, … What lies outside
// is 0, as in standard_keys.wgsl.

const CHUNK_QUADS = THREAD_QUADS * LANES;
const KEY_STRIDE = CHUNK_QUADS | 1u;
const P_STRIDE = LANES | 1u;

@group(0) @binding(BINDING_lse) var<storage, read> lse: array<f32>;

var<workgroup> key_tile: array<vec4<f32>, TILE_KV * KEY_STRIDE>;
var<workgroup> p_tile: array<vec4<f32>, TILE_Q * P_STRIDE>;

fn place_keys(index: u32, value: vec4<f32>) {
  if index < TILE_KV * CHUNK_QUADS { key_tile[index / CHUNK_QUADS * KEY_STRIDE + index % CHUNK_QUADS] = value; }
}

// unroll MATRIX in MATRIX, SUM in SUM, EXTENT in EXTENT_OF_TILE, ATQ in AT_Q {
  // The rows of a Q tile, times `factor`. An invocation owns THREAD_ROWS of them and every LANES-th quad.
  fn sum_over_keys(tile: QTile, invocation: u32, factor: f32) {
    // unroll PACKED in PACKED_SEQUENCES {
      if tile.row >= tile.sequence.row_count { return; }
    // }
    let lane = invocation % LANES;
    let row_lane = invocation / LANES;
    // unroll N in THREAD_ROWS {
      let row_N = row_lane + N * ROW_LANES;
      // unroll C in V_CHUNKS, M in THREAD_QUADS {
        var o_N_C_M = vec4<f32>(0.0);
        var total_N_C_M = vec4<f32>(0.0);
      // }
    // }
    let s_row = (tile.batch * params.head_count + tile.head) * params.row_count + tile.row;

    let range = block_range(params.batch_first + tile.batch, tile.first_row, tile.last_row);
    let tiles_at_once = tiles_of_a_sum(range.end - range.first, TILE_KV);
    var tiles_left = tiles_at_once;
    for (var j = range.first; j < range.end; j++) {
      let key_first = j * TILE_KV;
      let whole = is_whole(range, j);
      // unroll C in V_CHUNKS {
        workgroupBarrier(); // the last tile is read
        if C == 0u {
          for (var index = invocation; index < TILE_Q * LANES; index += INVOCATIONS) {
            let row = index / LANES;
            let quad = index % LANES;
            var p = vec4<f32>(0.0);
            if tile.row + row < EXTENT.row_count {
              p = MATRIX[((s_row + row) * params.s_stride_row + key_first) / 4u + quad];
            }
            p_tile[row * P_STRIDE + quad] = p;
          }
        }
        // unroll L in V_FETCHES {
          place_keys(invocation + L * INVOCATIONS, fetch_keys(tile, key_first, C, invocation + L * INVOCATIONS));
        // }
        workgroupBarrier();

        for (var quad = 0u; quad < LANES; quad++) {
          // unroll N in THREAD_ROWS {
            let p_N = p_tile[row_N * P_STRIDE + quad];
          // }
          // unroll M in THREAD_QUADS {
            let v_0_M = key_tile[quad * 4u * KEY_STRIDE + lane + M * LANES];
            let v_1_M = key_tile[(quad * 4u + 1u) * KEY_STRIDE + lane + M * LANES];
            let v_2_M = key_tile[(quad * 4u + 2u) * KEY_STRIDE + lane + M * LANES];
            let v_3_M = key_tile[(quad * 4u + 3u) * KEY_STRIDE + lane + M * LANES];
            // unroll N in THREAD_ROWS {
              if HAS_WINDOW && !whole {
                let cell = cell_at(tile.batch, tile.head, tile.row + row_N, key_first + quad * 4u);
                let seen = sees(visible_keys(cell.batch, cell.i), cell);
                o_N_C_M = add_seen(seen.x, p_N.x, v_0_M, o_N_C_M);
                o_N_C_M = add_seen(seen.y, p_N.y, v_1_M, o_N_C_M);
                o_N_C_M = add_seen(seen.z, p_N.z, v_2_M, o_N_C_M);
                o_N_C_M = add_seen(seen.w, p_N.w, v_3_M, o_N_C_M);
              } else {
                o_N_C_M = fma(vec4<f32>(p_N.x), v_0_M, o_N_C_M);
                o_N_C_M = fma(vec4<f32>(p_N.y), v_1_M, o_N_C_M);
                o_N_C_M = fma(vec4<f32>(p_N.z), v_2_M, o_N_C_M);
                o_N_C_M = fma(vec4<f32>(p_N.w), v_3_M, o_N_C_M);
              }
            // }
          // }
        }
      // }
      tiles_left -= 1u;
      if tiles_left == 0u || j + 1u == range.end {
        tiles_left = tiles_at_once;
        // unroll N in THREAD_ROWS, C in V_CHUNKS, M in THREAD_QUADS {
          total_N_C_M += o_N_C_M;
          o_N_C_M = vec4<f32>(0.0);
        // }
      }
    }

    // A row that sees nothing, or only scores of −∞, gives 0 whatever the keys hold.
    let lse_at =
      params.lse_offset + tile.ATQ * params.lse_stride_batch + tile.head * params.lse_stride_head + tile.row;
    // unroll N in THREAD_ROWS {
      if tile.row + row_N < EXTENT.row_count {
        let is_empty = lse[lse_at + row_N] <= MASKED;
        let first = params.SUM_offset + tile.ATQ * params.SUM_stride_batch + tile.head * params.SUM_stride_head
          + (tile.row + row_N) * params.SUM_stride_row;
        // unroll C in V_CHUNKS, M in THREAD_QUADS {
          let dim_C_M = (C * CHUNK_QUADS + lane + M * LANES) * 4u;
          let result_C_M = select(total_N_C_M * factor, vec4<f32>(0.0), is_empty);
          if dim_C_M < PRODUCT_DIM { store_SUM(first + dim_C_M, PRODUCT_DIM - dim_C_M, result_C_M); }
        // }
      }
    // }
  }
// }
