// A sink: a logit for each query head that joins the sum of each row and has no value, so O shrinks.

@group(0) @binding(BINDING_sink) var<storage, read> sink: array<f32>;

// The logit of a head of the whole problem, in units of log2(e); MASKED stands for −∞.
fn sink_of(head: u32) -> f32 {
  let logit = sink[params.sink_offset + head];
  // Bits of negative numbers rise towards −∞. Compilers may turn a comparison into `max`, which loses NaN.
  let bits = bitcast<u32>(logit);
  return select(logit * LOG2_E, MASKED, bits > bitcast<u32>(-2.0e38) && bits <= 0xff800000u);
}

// What a row ends with: O = share · Σ exp(S − m) V, and its LSE.
struct RowEnd {
  share: f32,
  lse: f32,
}

// The end of the row of a cell, with the maximum m, in units of log2(e), and the sum l. A row that sees nothing has
// MASKED and 0. A row past the length of its sequence has no sink.
fn with_sink(cell: Cell, m: f32, l: f32) -> RowEnd {
  let logit = select(MASKED, sink_of(cell.head), has_row(cell.batch, cell.i));
  let m_end = max(m, logit);
  let alpha = exp2(m - m_end);
  let l_end = l * alpha + select(exp2(logit - m_end), 0.0, logit == MASKED);
  return RowEnd(alpha / l_end, select((m_end + log2(l_end)) * LN_2, params.negative_infinity, l_end == 0.0));
}
