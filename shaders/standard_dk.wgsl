// Standard attention, backward: dK = softmax_scale · dSᵀ Q, with dS read from memory.
//
//   for each KV tile j of a KV head:                     one workgroup
//     dK_j = softmax_scale · Σ_i dS_ijᵀ Q_i            i: the Q tiles with a row that sees some key of j,
//                                                      of all query heads that share the KV head

@group(0) @binding(BINDING_dp) var<storage, read> dp: array<vec4<f32>>;

@compute @workgroup_size(INVOCATIONS)
fn main(
  @builtin(workgroup_id) workgroup_id: vec3<u32>,
  @builtin(local_invocation_index) invocation: u32,
) {
  let index = workgroup_id.y * params.grid_width + workgroup_id.x;
  if index >= kv_tile_count() { return; }
  sum_over_rows(kv_tile_at(index), invocation, params.softmax_scale_log2 * LN_2);
}
