@group(0) @binding(BINDING_row_stats) var<storage, read> row_stats: array<vec2<f32>>;

// Whether a row of the head that starts at `head_at` sees nothing, or only scores of −∞: it has no gradient, and what
// it holds reaches none.
fn is_empty_row(head_at: u32, row: u32) -> bool {
  return row_stats[params.row_stats_offset + head_at + row].x == -MASKED;
}

// LSE in units of log2(e), and D, of a row of the head that starts at `head_at`. Rows outside the tensors, and empty
// ones, have an LSE at which every P is 0, and D = 0.
fn stats_of_row(head_at: u32, row: u32, row_count: u32) -> vec2<f32> {
  let stats = row_stats[params.row_stats_offset + head_at + min(row, row_count - 1u)];
  return select(vec2<f32>(-MASKED, 0.0), stats, row < row_count);
}
