// Sums over rows in standard attention: dropout(P)ᵀ dO or dSᵀ Q, over all heads that share the keys. Workgroup memory
// holds a tile of the matrix, and of dO or Q a chunk of head dimensions at a time. What lies outside is 0, as in
// standard_product.wgsl. Rows that see nothing, or only scores of −∞, are 0 too.

const CHUNK_QUADS = THREAD_QUADS * LANES;
const ROW_STRIDE = CHUNK_QUADS | 1u;
const P_QUADS = TILE_KV / 4u;
const P_STRIDE = P_QUADS | 1u;

@group(0) @binding(BINDING_lse) var<storage, read> lse: array<f32>;

var<workgroup> row_tile: array<vec4<f32>, TILE_Q * ROW_STRIDE>;
var<workgroup> p_tile: array<vec4<f32>, TILE_Q * P_STRIDE>;

// The first dimension of the last quad.
const LAST_PRODUCT_QUAD = (PRODUCT_DIM - 1u) / 4u * 4u;

// unroll MATRIX in MATRIX, ROWS in ROWS, SUM in SUM, EXTENT in EXTENT_OF_TILE, ATQ in AT_Q, ATK in AT_K {
  fn fetch_rows(tile: KvTile, head: u32, first_row: u32, chunk: u32, index: u32) -> vec4<f32> {
    let first = params.ROWS_offset + tile.ATQ * params.ROWS_stride_batch + head * params.ROWS_stride_head;
    let row = first_row + index / CHUNK_QUADS;
    let dim = (chunk * CHUNK_QUADS + index % CHUNK_QUADS) * 4u;
    let inside_dim = min(dim, LAST_PRODUCT_QUAD);
    let at = first + min(row, EXTENT.row_count - 1u) * params.ROWS_stride_row + inside_dim;
    let value = load_ROWS(at, PRODUCT_DIM - inside_dim);
    let lse_at = params.lse_offset + tile.ATQ * params.lse_stride_batch + head * params.lse_stride_head;
    let is_live = (row < EXTENT.row_count) & !(lse[lse_at + min(row, EXTENT.row_count - 1u)] <= MASKED);
    return select(vec4<f32>(0.0), decode(value), is_live && dim < PRODUCT_DIM);
  }

  fn place_rows(index: u32, value: vec4<f32>) {
    if index < TILE_Q * CHUNK_QUADS { row_tile[index / CHUNK_QUADS * ROW_STRIDE + index % CHUNK_QUADS] = value; }
  }

  // The keys of a KV tile, times `factor`. An invocation owns four neighbouring keys (THREAD_ROWS is 4) and every
  // LANES-th quad.
  fn sum_over_rows(tile: KvTile, invocation: u32, factor: f32) {
    // unroll PACKED in PACKED_SEQUENCES {
      if tile.key >= tile.sequence.key_count { return; }
    // }
    let lane = invocation % LANES;
    let key_quad = invocation / LANES;
    // unroll E in KEYS, C in V_CHUNKS, M in THREAD_QUADS {
      var sum_E_C_M = vec4<f32>(0.0);
      var total_E_C_M = vec4<f32>(0.0);
    // }

    let range = row_range(params.batch_first + tile.batch, tile.first_key, tile.last_key);
    let tiles_at_once = tiles_of_a_sum((range.end - range.first) * params.heads_per_kv, TILE_Q);
    var tiles_left = tiles_at_once;
    for (var head = tile.head; head < tile.head + params.heads_per_kv; head++) {
      let s_row = (tile.batch * params.head_count + head) * params.row_count;
      for (var i = range.first; i < range.end; i++) {
        let first_row = i * TILE_Q;
        let whole = is_whole(range, i);
        // unroll C in V_CHUNKS {
          workgroupBarrier(); // the last tile is read
          if C == 0u {
            for (var index = invocation; index < TILE_Q * P_QUADS; index += INVOCATIONS) {
              let row = index / P_QUADS;
              let quad = index % P_QUADS;
              var p = vec4<f32>(0.0);
              if first_row + row < EXTENT.row_count {
                p = MATRIX[((s_row + first_row + row) * params.s_stride_row + tile.key) / 4u + quad];
                // A tile that no row sees was never written.
                if !whole {
                  let cell = cell_at(tile.batch, head, first_row + row, tile.key + quad * 4u);
                  p = select(vec4<f32>(0.0), p, sees(visible_keys(cell.batch, cell.i), cell));
                }
              }
              p_tile[row * P_STRIDE + quad] = p;
            }
          }
          // unroll L in V_FETCHES {
            place_rows(invocation + L * INVOCATIONS,
              fetch_rows(tile, head, first_row, C, invocation + L * INVOCATIONS));
          // }
          workgroupBarrier();

          for (var row = 0u; row < TILE_Q; row++) {
            let p = p_tile[row * P_STRIDE + key_quad];
            let cell = cell_at(tile.batch, head, first_row + row, tile.key + key_quad * 4u);
            let seen = sees(visible_keys(cell.batch, cell.i), cell);
            // unroll M in THREAD_QUADS {
              let r_M = row_tile[row * ROW_STRIDE + lane + M * LANES];
              // unroll E in KEYS {
                if HAS_WINDOW && !whole {
                  sum_E_C_M = add_seen(seen[E], p[E], r_M, sum_E_C_M);
                } else {
                  sum_E_C_M = fma(vec4<f32>(p[E]), r_M, sum_E_C_M);
                }
              // }
            // }
          }
        // }
        tiles_left -= 1u;
        if tiles_left == 0u || i + 1u == range.end {
          tiles_left = tiles_at_once;
          // unroll E in KEYS, C in V_CHUNKS, M in THREAD_QUADS {
            total_E_C_M += sum_E_C_M;
            sum_E_C_M = vec4<f32>(0.0);
          // }
        }
      }
    }

    // unroll E in KEYS {
      let key_E = tile.key + key_quad * 4u + E;
      if key_E < EXTENT.key_count {
        let first = params.SUM_offset + tile.ATK * params.SUM_stride_batch + tile.head_kv * params.SUM_stride_head
          + key_E * params.SUM_stride_row;
        // unroll C in V_CHUNKS, M in THREAD_QUADS {
          let dim_C_M = (C * CHUNK_QUADS + lane + M * LANES) * 4u;
          if dim_C_M < PRODUCT_DIM { store_SUM(first + dim_C_M, PRODUCT_DIM - dim_C_M, total_E_C_M * factor); }
        // }
      }
    // }
  }
// }
