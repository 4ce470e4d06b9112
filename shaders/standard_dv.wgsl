// Standard attention, backward: dV = dropout(P)ᵀ dO, with dropout(P) read from memory.
//
//   for each KV tile j of a KV head:                     one workgroup
//     dV_j = Σ_i dropout(P_ij)ᵀ dO_i                   i: the Q tiles with a row that sees some key of j,
//                                                      of all query heads that share the KV head

@group(0) @binding(BINDING_s) var<storage, read> s: array<vec4<f32>>;

@compute @workgroup_size(INVOCATIONS)
fn main(
  @builtin(workgroup_id) workgroup_id: vec3<u32>,
  @builtin(local_invocation_index) invocation: u32,
) {
  let index = workgroup_id.y * params.grid_width + workgroup_id.x;
  if index >= kv_tile_count() { return; }
  sum_over_rows(kv_tile_at(index), invocation, params.dropout_scale);
}
