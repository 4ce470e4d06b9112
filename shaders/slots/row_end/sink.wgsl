// What a row ends with: O = share · Σ exp(S − m) V, and its LSE.
struct RowEnd {
  share: f32,
  lse: f32,
}

// The end of the row of a cell, with the maximum m, in units of log2(e), and the sum l, which the sink joins:
// l = l + exp(sink). A row that sees nothing has MASKED and 0. A row past the length of its sequence has no sink.
fn row_end(cell: Cell, m: f32, l: f32) -> RowEnd {
  let logit = select(MASKED, sink_of(cell.head), has_row(cell.batch, cell.i));
  let m_end = max(m, logit);
  let alpha = exp2(m - m_end);
  let l_end = l * alpha + select(exp2(logit - m_end), 0.0, logit == MASKED);
  return RowEnd(alpha / l_end, select((m_end + log2(l_end)) * LN_2, params.negative_infinity, l_end == 0.0));
}
