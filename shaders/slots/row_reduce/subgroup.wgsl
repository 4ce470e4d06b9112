// Reductions over the KEY_LANES invocations that share a row, by subgroup shuffles: no memory. The planner
// chooses it where every subgroup holds at least KEY_LANES invocations.

// WGSL does not say which invocations of a workgroup form a subgroup, so the index is made from the subgroup's own
// numbering: invocations that share a row are then neighbours in one subgroup by construction.
struct Invocation {
  @builtin(subgroup_id) subgroup_id: u32,
  @builtin(subgroup_size) subgroup_size: u32,
  @builtin(subgroup_invocation_id) subgroup_invocation_id: u32,
}

fn invocation_index(invocation: Invocation) -> u32 {
  return invocation.subgroup_id * invocation.subgroup_size + invocation.subgroup_invocation_id;
}

fn row_share(row: u32, lane: u32, value: f32) {}

fn row_max(row: u32, value: f32) -> f32 {
  var result = value;
  for (var distance = 1u; distance < KEY_LANES; distance *= 2u) {
    result = max(result, subgroupShuffleXor(result, distance));
  }
  return result;
}

fn row_sum(row: u32, value: f32) -> f32 {
  var result = value;
  for (var distance = 1u; distance < KEY_LANES; distance *= 2u) {
    result += subgroupShuffleXor(result, distance);
  }
  return result;
}
