// Each row has one invocation: there is nothing to reduce.

fn invocation_index(local_invocation_index: u32) -> u32 { return local_invocation_index; }

fn lane_share(row: u32, invocation: u32, value: Partial) {}

fn lane_barrier() {}

fn lane_sum(row: u32, invocation: u32, value: Partial) -> Partial { return value; }
