// What a row ends with: O = share · Σ exp(S − m) V, and its LSE.
struct RowEnd {
  share: f32,
  lse: f32,
}

// The end of the row of a cell, with the maximum m, in units of log2(e), and the sum l: 0 if the row sees nothing.
fn row_end(cell: Cell, m: f32, l: f32) -> RowEnd {
  return RowEnd(1.0 / l, select((m + log2(l)) * LN_2, params.negative_infinity, l == 0.0));
}
