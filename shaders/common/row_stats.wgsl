@group(0) @binding(BINDING_lse) var<storage, read> lse: array<f32>;
@group(0) @binding(BINDING_delta) var<storage, read> delta: array<f32>;

// LSE in units of log2(e), and D, of a row of the head that starts at `head_at`. Rows outside the tensors, and those that
// see nothing, get an LSE at which every P is 0.
fn row_stats(head_at: u32, row: u32, row_count: u32) -> vec2<f32> {
  let inside_row = min(row, row_count - 1u);
  let lse_row = lse[params.lse_offset + head_at + inside_row];
  let delta_row = delta[params.delta_offset + head_at + inside_row];
  let stats = vec2<f32>(select(lse_row * LOG2_E, -MASKED, lse_row <= MASKED), delta_row);
  return select(vec2<f32>(-MASKED, 0.0), stats, row < row_count);
}
