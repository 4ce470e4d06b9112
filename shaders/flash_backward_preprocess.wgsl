// FlashAttention, backward, first kernel: what the other two need of each row.
//
// Reads O[batch, seqlen_q, num_heads, head_dim_v], dO of the same shape, LSE[batch, num_heads, seqlen_q], dLSE of the
// same shape. Writes row_stats[batch, num_heads, seqlen_q, 2]: LSE in units of log2(e), and D.
//
//   for each row i:                                      LANES neighbouring invocations
//     D_i = rowsum(dO_i ∘ O_i) − dLSE_i
//
// rowsum(dO ∘ O) = rowsum(P ∘ dP), with dropout too. So dS = P ∘ (dP − D) needs no sum over keys. The gradient of LSE,
// if there is one, adds dLSE_i · P_ij to dS_ij. So it is a part of D.
// A row that sees nothing, or only scores of −∞, has no
// gradient: it gets an LSE at which every P is 0, and D = 0.

@group(0) @binding(BINDING_d_lse) var<storage, read> d_lse: array<f32>;
@group(0) @binding(BINDING_lse) var<storage, read> lse: array<f32>;
@group(0) @binding(BINDING_row_stats) var<storage, read_write> row_stats: array<vec2<f32>>;

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
  if index >= q_tile_count() { return; }
  let tile = q_tile_at(index);
  // unroll PACKED in PACKED_SEQUENCES {
    if tile.row >= tile.sequence.row_count { return; }
  // }
  let lane = invocation % LANES;
  let row = tile.row + invocation / LANES;
  // unroll EXTENT in EXTENT_OF_TILE, ATQ in AT_Q {
    let inside_row = min(row, EXTENT.row_count - 1u);
    let o_first = params.o_offset + tile.ATQ * params.o_stride_batch + tile.head * params.o_stride_head
      + inside_row * params.o_stride_row;
    let d_o_first = params.d_o_offset + tile.ATQ * params.d_o_stride_batch + tile.head * params.d_o_stride_head
      + inside_row * params.d_o_stride_row;
  // }

  // rowsum(dO_i ∘ O_i)
  var sum = 0.0;
  for (var dim = lane * 4u; dim < HEAD_DIM_V; dim += LANES * 4u) {
    let valid = HEAD_DIM_V - dim;
    sum = dot_add(decode(load_d_o(d_o_first + dim, valid)), decode(load_o(o_first + dim, valid)), sum);
  }
  lane_share(0u, invocation, Partial(sum, 0.0));
  lane_barrier();
  sum = lane_sum(0u, invocation, Partial(sum, 0.0)).x;

  // D_i
  // unroll EXTENT in EXTENT_OF_TILE, ATQ in AT_Q {
    if lane == 0u && row < EXTENT.row_count {
      let head_at = tile.ATQ * params.lse_stride_batch + tile.head * params.lse_stride_head + row;
      if params.has_d_lse != 0u { sum -= d_lse[params.d_lse_offset + head_at]; }
      let lse_row = lse[params.lse_offset + head_at];
      let is_live = !(lse_row <= MASKED);
      let stats = select(vec2<f32>(-MASKED, 0.0), vec2<f32>(lse_row * LOG2_E, sum), is_live);
      row_stats[params.row_stats_offset + head_at] = stats;
    }
  // }
}
