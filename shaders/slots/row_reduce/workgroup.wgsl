// Sums over the LANES invocations that share a row, through workgroup memory: works everywhere.
//
// Use: every invocation calls lane_share for its rows, then lane_barrier once, then lane_sum for the same rows.

fn invocation_index(local_invocation_index: u32) -> u32 { return local_invocation_index; }

var<workgroup> lane_partials: array<Partial, PARTIALS * INVOCATIONS>;

fn lane_share(row: u32, invocation: u32, value: Partial) {
  if row == 0u { workgroupBarrier(); } // the last sums are read
  lane_partials[row * INVOCATIONS + invocation] = value;
}

fn lane_barrier() { workgroupBarrier(); }

fn lane_sum(row: u32, invocation: u32, value: Partial) -> Partial {
  let first = row * INVOCATIONS + invocation / LANES * LANES;
  var sum = Partial(0.0);
  // unroll N in LANES {
    sum += lane_partials[first + N];
  // }
  return sum;
}
