// Standard attention, first kernel: S = softmax_scale · Q Kᵀ, masked, written to memory.
//
// Reads Q[batch, seqlen_q, num_heads, head_dim], K[batch, seqlen_kv, num_heads_kv, head_dim]. Writes
// S[batch, num_heads, seqlen_q, seqlen_kv].
//
//   for each Q tile i, for each KV tile j that some row of i sees:      one workgroup
//     S_ij = softmax_scale · Q_i K_jᵀ, masked
//
// S is in units of log2(e). Rows of S are whole numbers of tiles. Tiles that no row sees are not written. An invocation
// owns THREAD_ROWS rows by four neighbouring keys.

@group(0) @binding(BINDING_s) var<storage, read_write> s: array<vec4<f32>>;

@compute @workgroup_size(INVOCATIONS)
fn main(
  @builtin(workgroup_id) workgroup_id: vec3<u32>,
  @builtin(local_invocation_index) invocation: u32,
) {
  let num_kv_tiles = params.s_stride_row / TILE_KV;
  let index = workgroup_id.y * params.grid_width + workgroup_id.x;
  let j = index % num_kv_tiles;
  if index / num_kv_tiles >= q_tile_count() { return; }
  let tile = q_tile_at(index / num_kv_tiles);
  // unroll PACKED in PACKED_SEQUENCES {
    if tile.row >= tile.sequence.row_count { return; }
  // }
  let range = block_range(params.batch_first + tile.batch, tile.first_row, tile.last_row);
  if j < range.first || j >= range.end { return; }
  let key_first = j * TILE_KV;
  let key = key_first + invocation % LANES * 4u;

  // S_ij = softmax_scale · Q_i K_jᵀ
  let scores = products(tile, key_first, invocation, params.softmax_scale_log2);

  // masked
  let whole = is_whole(range, j);
  // unroll N in THREAD_ROWS, EXTENT in EXTENT_OF_TILE {
    let row_N = invocation / LANES + N * ROW_LANES;
    var s_N = scores[N];
    if !whole {
      let cell = cell_at(tile.batch, tile.head, tile.row + row_N, key);
      s_N = select(vec4<f32>(MASKED), s_N, sees(visible_keys(cell.batch, cell.i), cell));
    }
    if tile.row + row_N < EXTENT.row_count {
      let row = (tile.batch * params.head_count + tile.head) * params.row_count + tile.row + row_N;
      s[(row * params.s_stride_row + key) / 4u] = s_N;
    }
  // }
}
