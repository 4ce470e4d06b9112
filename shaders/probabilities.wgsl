// Probabilities of chosen heads and rows, from LSE, before dropout.
//
// Reads Q[batch, seqlen_q, num_heads, head_dim], K[batch, seqlen_kv, num_heads_kv, head_dim],
// LSE[batch, num_heads, seqlen_q]. Writes P[batch, chosen heads, chosen rows, seqlen_kv].
//
//   for each Q tile i, for each KV tile j:               one workgroup
//     S_ij = softmax_scale · Q_i K_jᵀ
//     P_ij = exp(S_ij − LSE_i), 0 where masked
//
// S is in units of log2(e). A row that sees nothing, or only scores of −∞, has an LSE of −∞ and is 0. An
// invocation owns THREAD_ROWS rows by four neighbouring keys.

@group(0) @binding(BINDING_lse) var<storage, read> lse: array<f32>;
@group(0) @binding(BINDING_probabilities) var<storage, read_write> probabilities: array<f32>;

@compute @workgroup_size(INVOCATIONS)
fn main(
  @builtin(workgroup_id) workgroup_id: vec3<u32>,
  @builtin(local_invocation_index) invocation: u32,
) {
  let num_kv_tiles = (params.seqlen_kv + TILE_KV - 1u) / TILE_KV;
  let index = workgroup_id.y * params.grid_width + workgroup_id.x;
  let j = index % num_kv_tiles;
  if index / num_kv_tiles >= q_tile_count() { return; }
  let tile = q_tile_at(index / num_kv_tiles);
  let range = block_range(params.batch_first + tile.batch, tile.first_row, tile.last_row);
  // unroll DENSE in DENSE_SEQUENCES {
    let is_visited = j >= range.first && j < range.end;
  // }
  // unroll PACKED in PACKED_SEQUENCES {
    let is_visited = tile.row < tile.sequence.row_count && j >= range.first && j < range.end;
  // }
  let whole = is_whole(range, j);
  let key = j * TILE_KV + invocation % LANES * 4u;
  // unroll MODIFIED in MODIFIED_SCORES {
    enter_head(tile.batch, tile.head);
  // }

  // S_ij = softmax_scale · Q_i K_jᵀ
  var scores = array<vec4<f32>, THREAD_ROWS>();
  if is_visited { scores = products(tile, j * TILE_KV, invocation, params.softmax_scale_log2); }

  // P_ij = exp(S_ij − LSE_i), 0 where masked
  // unroll N in THREAD_ROWS {
    let row_N = tile.row + invocation / LANES + N * ROW_LANES;
    let cell_N = cell_at(tile.batch, tile.head, row_N, key);
    // unroll PLAIN in PLAIN_SCORES {
      let s_N = scores[N];
    // }
    // unroll MODIFIED in MODIFIED_SCORES {
      let s_N = scored(scores[N], cell_N);
    // }
    // unroll DENSE in DENSE_SEQUENCES {
      let lse_N = lse[params.lse_offset + tile.batch * params.lse_stride_batch + tile.head * params.lse_stride_head
        + min(row_N, params.row_count - 1u)];
    // }
    // unroll PACKED in PACKED_SEQUENCES {
      var lse_N = params.negative_infinity;
      if row_N < tile.sequence.row_count {
        lse_N = lse[params.lse_offset + tile.sequence.at_q + tile.head * params.lse_stride_head + row_N];
      }
    // }
    var seen_N = vec4<bool>(is_visited & !(lse_N <= MASKED));
    if !whole { seen_N = seen_N & sees(visible_keys(cell_N.batch, cell_N.i), cell_N); }
    let p_N = select(vec4<f32>(0.0), exp2(s_N - vec4<f32>(lse_N * LOG2_E)), seen_N);
    let first_N = params.probabilities_offset + tile.batch * params.probabilities_stride_batch
      + tile.head * params.probabilities_stride_head + row_N * params.s_stride_row + key;
    // unroll E in KEYS {
      if row_N < params.row_count && key + E < params.seqlen_kv { probabilities[first_N + E] = p_N[E]; }
    // }
  // }
}
