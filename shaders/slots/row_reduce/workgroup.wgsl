// Reductions over the KEY_LANES invocations that share a row, through workgroup memory: works everywhere.
//
// Use: every invocation calls row_share for its rows, then workgroupBarrier once, then row_max or row_sum. Another
// barrier must lie between those and the next row_share.

struct Invocation {
  @builtin(local_invocation_index) local_invocation_index: u32,
}

fn invocation_index(invocation: Invocation) -> u32 { return invocation.local_invocation_index; }

var<workgroup> row_partials: array<f32, TILE_Q * KEY_LANES>;

fn row_share(row: u32, lane: u32, value: f32) { row_partials[row * KEY_LANES + lane] = value; }

fn row_max(row: u32, value: f32) -> f32 {
  var result = value;
  for (var lane = 0u; lane < KEY_LANES; lane++) { result = max(result, row_partials[row * KEY_LANES + lane]); }
  return result;
}

fn row_sum(row: u32, value: f32) -> f32 {
  var result = 0.0;
  for (var lane = 0u; lane < KEY_LANES; lane++) { result += row_partials[row * KEY_LANES + lane]; }
  return result;
}
