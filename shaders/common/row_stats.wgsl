@group(0) @binding(BINDING_lse) var<storage, read> lse: array<f32>;
@group(0) @binding(BINDING_delta) var<storage, read> delta: array<f32>;

// Whether a row of the head that starts at `head_at` sees nothing, or only scores of −∞: it has no gradient, and what
// it holds reaches none.
fn is_empty_row(head_at: u32, row: u32) -> bool { return lse[params.lse_offset + head_at + row] <= MASKED; }

// LSE in units of log2(e), and D, of a row of the head that starts at `head_at`. Rows outside the tensors, and empty
// ones, get an LSE at which every P is 0, and D = 0.
fn row_stats(head_at: u32, row: u32, row_count: u32) -> vec2<f32> {
  let inside_row = min(row, row_count - 1u);
  let is_live = row < row_count && !is_empty_row(head_at, inside_row);
  let lse_row = lse[params.lse_offset + head_at + inside_row];
  let delta_row = delta[params.delta_offset + head_at + inside_row];
  return select(vec2<f32>(-MASKED, 0.0), vec2<f32>(lse_row * LOG2_E, delta_row), is_live);
}
