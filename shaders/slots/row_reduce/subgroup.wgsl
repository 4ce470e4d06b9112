// Sums over the LANES invocations that share a row, by subgroup shuffles: no memory, no barrier. The planner chooses
// it if every subgroup holds at least LANES invocations.

// WGSL does not say which invocations of a workgroup form a subgroup. So the index comes from the subgroup's numbering:
// invocations that share a row are then neighbours in one subgroup.
fn invocation_index(subgroup_id: u32, subgroup_size: u32, subgroup_invocation_id: u32) -> u32 {
  return subgroup_id * subgroup_size + subgroup_invocation_id;
}

fn lane_share(row: u32, invocation: u32, value: Partial) {}

fn lane_barrier() {}

// Every lane adds the same pairs, so all of them get the same bits.
fn lane_sum(row: u32, invocation: u32, value: Partial) -> Partial {
  var sum = value;
  // unroll N in LANE_STEPS {
    sum += subgroupShuffleXor(sum, 1u << N);
  // }
  return sum;
}
