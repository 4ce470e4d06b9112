// Standard attention, backward: dQ = softmax_scale · dS K, with dS read from memory.
//
// Reads dS[batch, num_heads, seqlen_q, seqlen_kv], K[batch, seqlen_kv, num_heads_kv, head_dim]. Writes
// dQ[batch, seqlen_q, num_heads, head_dim].
//
//   for each Q tile i:                                   one workgroup
//     dQ_i = softmax_scale · Σ_j dS_ij K_j over the KV tiles j that some row of i sees

@group(0) @binding(BINDING_dp) var<storage, read> dp: array<vec4<f32>>;

@compute @workgroup_size(INVOCATIONS)
fn main(
  @builtin(workgroup_id) workgroup_id: vec3<u32>,
  @builtin(local_invocation_index) invocation: u32,
) {
  let index = workgroup_id.y * params.grid_width + workgroup_id.x;
  if index >= q_tile_count() { return; }
  sum_over_keys(q_tile_at(index), invocation, params.softmax_scale_log2 * LN_2);
}
