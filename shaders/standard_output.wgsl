// Standard attention, third kernel: O = P V, with P read from memory.
//
// Reads P[batch, num_heads, seqlen_q, seqlen_kv], V[batch, seqlen_kv, num_heads_kv, head_dim_v]. Writes
// O[batch, seqlen_q, num_heads, head_dim_v].
//
//   for each Q tile i:                                   one workgroup
//     O_i = Σ_j P_ij V_j over the KV tiles j that some row of i sees

@group(0) @binding(BINDING_s) var<storage, read> s: array<vec4<f32>>;

@compute @workgroup_size(INVOCATIONS)
fn main(
  @builtin(workgroup_id) workgroup_id: vec3<u32>,
  @builtin(local_invocation_index) invocation: u32,
) {
  let index = workgroup_id.y * params.grid_width + workgroup_id.x;
  if index >= q_tile_count() { return; }
  sum_over_keys(q_tile_at(index), invocation, 1.0);
}
