// As in one.wgsl, but factors are what f16 holds of f32, and the rest. Of their products three are summed, the small
// ones first: half · half + (half · rest + rest · half).
struct Left { half: MatrixA, rest: MatrixA }
struct Right { half: MatrixB, rest: MatrixB }

// The parts of a left factor.
fn left_half(a: Left) -> MatrixA { return a.half; }
fn left_rest(a: Left) -> MatrixA { return a.rest; }

// Matrix units round sums toward 0: the product starts at 0 and is added to the long sum by plain arithmetic.
fn accumulate(a: Left, b: Right, o: MatrixC) -> MatrixC {
  let rest = coopMultiplyAdd(a.half, b.rest, coopMultiplyAdd(a.rest, b.half, MatrixC()));
  return o + coopMultiplyAdd(a.half, b.half, rest);
}

fn left_by_rows(at: u32) -> Left {
  return Left(coopLoadT<MatrixA>(&p_tile_half[at], P_STRIDE), coopLoadT<MatrixA>(&p_tile_rest[at], P_STRIDE));
}
fn left_by_columns(at: u32) -> Left {
  return Left(coopLoad<MatrixA>(&p_tile_half[at], P_STRIDE), coopLoad<MatrixA>(&p_tile_rest[at], P_STRIDE));
}
fn store_left(left: Left, at: u32) {
  let stride = P_STRIDE;
  // unroll PART in PARTS {
    let PART = left.PART;
    coopStoreT(PART, &p_tile_PART[at], stride);
  // }
}

// unroll W in WIDTHS, TENSOR in WALKED_W, PART in PARTS {
  fn TENSOR_PART_by_rows(at: u32) -> MatrixB { return coopLoad<MatrixB>(&TENSOR_tile_PART[at], W_STRIDE); }
// }
// unroll W in WIDTHS, TENSOR in WALKED_W {
  fn TENSOR_by_columns(at: u32) -> Right {
    let half = coopLoadT<MatrixB>(&TENSOR_tile_half[at], W_STRIDE);
    return Right(half, coopLoadT<MatrixB>(&TENSOR_tile_rest[at], W_STRIDE));
  }
// }
