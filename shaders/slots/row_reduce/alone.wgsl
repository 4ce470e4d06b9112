// One invocation to a row: nothing to reduce.

struct Invocation {
  @builtin(local_invocation_index) local_invocation_index: u32,
}

fn invocation_index(invocation: Invocation) -> u32 { return invocation.local_invocation_index; }

fn lane_share(row: u32, invocation: u32, value: Partial) {}

fn lane_barrier() {}

fn lane_sum(row: u32, invocation: u32, value: Partial) -> Partial { return value; }
