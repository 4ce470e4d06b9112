// Standard attention, backward: dP = dO Vᵀ, written to memory like S by standard_scores.wgsl.
//
// Reads dO[batch, seqlen_q, num_heads, head_dim_v], V[batch, seqlen_kv, num_heads_kv, head_dim_v]. Writes
// dP[batch, num_heads, seqlen_q, seqlen_kv].
//
//   for each Q tile i, for each KV tile j that some row of i sees:      one workgroup
//     dP_ij = dO_i V_jᵀ

@group(0) @binding(BINDING_dp) var<storage, read_write> dp: array<vec4<f32>>;

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
  let key = j * TILE_KV + invocation % LANES * 4u;

  // dP_ij = dO_i V_jᵀ
  let gradients = products(tile, j * TILE_KV, invocation, 1.0);
  // unroll N in THREAD_ROWS, EXTENT in EXTENT_OF_TILE {
    let row_N = invocation / LANES + N * ROW_LANES;
    if tile.row + row_N < EXTENT.row_count {
      let row = (tile.batch * params.head_count + tile.head) * params.row_count + tile.row + row_N;
      dp[(row * params.s_stride_row + key) / 4u] = gradients[N];
    }
  // }
}
