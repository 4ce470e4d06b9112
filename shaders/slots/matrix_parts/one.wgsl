// Factors of products are one matrix of f16.
alias Left = MatrixA;
alias Right = MatrixB;

// The parts of a left factor.
fn left_half(a: Left) -> MatrixA { return a; }
fn accumulate(a: Left, b: Right, o: MatrixC) -> MatrixC { return coopMultiplyAdd(a, b, o); }

// Rows of a left factor are rows of the scratch, or its columns.
fn left_by_rows(at: u32) -> Left { return coopLoadT<MatrixA>(&p_tile_half[at], P_STRIDE); }
fn left_by_columns(at: u32) -> Left { return coopLoad<MatrixA>(&p_tile_half[at], P_STRIDE); }
fn store_left(left: Left, at: u32) {
  let stride = P_STRIDE;
  coopStoreT(left, &p_tile_half[at], stride);
}

// Columns of a right factor are rows of the tile, or its columns.
// unroll W in WIDTHS, TENSOR in WALKED_W, PART in PARTS {
  fn TENSOR_PART_by_rows(at: u32) -> MatrixB { return coopLoad<MatrixB>(&TENSOR_tile_PART[at], W_STRIDE); }
// }
// unroll W in WIDTHS, TENSOR in WALKED_W {
  fn TENSOR_by_columns(at: u32) -> Right { return coopLoadT<MatrixB>(&TENSOR_tile_half[at], W_STRIDE); }
// }
