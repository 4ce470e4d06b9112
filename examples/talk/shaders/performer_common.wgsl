// What the kernels of the Performer share. FEATURES is m. omega: [HEAD_DIM, FEATURE_QUADS · 4] in f32, scaled by
// head_dim^(−1/4), features past m are 0.

const FEATURE_QUADS = (FEATURES + 3u) / 4u;
const EPSILON = 1e-4;
// Of |x|² in the exponent: 1 / (2 √d).
const HALF_SCALE = 0.5 / sqrt(f32(HEAD_DIM));
// Below every exponent, and finite.
const LOWEST = -1e38;

// left[d, f] = omega[first_dim + d, first_feature + f] for TILE features and `depth` dimensions.
fn omega_to_left(first_dim: u32, depth: u32, first_feature: u32, invocation: u32) {
  for (var i = invocation; i < depth * LEFT_QUADS; i += INVOCATIONS) {
    let quad = first_feature / 4u + i % LEFT_QUADS;
    let row = (first_dim + i / LEFT_QUADS) * FEATURE_QUADS;
    left[i] = select(Numbers(0.0), omega[row + min(quad, FEATURE_QUADS - 1u)], quad < FEATURE_QUADS);
  }
}

// right[d, key] = k[key + …][first_dim + d] for HEAD_DIM keys and `depth` dimensions. Keys past the last repeat it.
fn keys_to_right(head: u32, key: u32, first_dim: u32, depth: u32, invocation: u32) {
  for (var i = invocation; i < DIM_QUADS * depth / 4u; i += INVOCATIONS) {
    let keys = i % DIM_QUADS;
    let quad = i / DIM_QUADS;
    var block = mat4x4<f32>();
    for (var r = 0u; r < 4u; r++) {
      let row = min(key + 4u * keys + r, params.seqlen - 1u);
      block[r] = decode(k[(head * params.seqlen + row) * DIM_QUADS + first_dim / 4u + quad]);
    }
    let turned = transpose(block);
    for (var d = 0u; d < 4u; d++) {
      right[(4u * quad + d) * COLUMNS + keys] = turned[d];
    }
  }
}

// ω · k for TILE features from `first_feature` on (rows) and HEAD_DIM keys from `key` on (columns), and |k|² / (2 √d)
// of an invocation's keys. The last column holds nothing.
fn key_exponents(
  squares: ptr<function, Numbers>,
  head: u32,
  key: u32,
  first_feature: u32,
  invocation: u32,
) -> Sums {
  let row_group = invocation / COLUMNS;
  let column = min(invocation % COLUMNS, DIM_QUADS - 1u);
  var sums = Sums();
  var sum_of_squares = Numbers(0.0);
  for (var d = 0u; d < params.head_dim; d += SLICE) {
    let depth = min(SLICE, params.head_dim - d);
    workgroupBarrier();
    omega_to_left(d, depth, first_feature, invocation);
    keys_to_right(head, key, d, depth, invocation);
    workgroupBarrier();
    add_products(&sums, 0u, depth, row_group, column);
    for (var i = 0u; i < depth; i++) {
      let x = right[i * COLUMNS + column];
      sum_of_squares = fma(x, x, sum_of_squares);
    }
  }
  *squares = sum_of_squares * HALF_SCALE;
  return sums;
}

// exp of each, less a quad for the columns.
fn exponentials(x: Sums, less: Numbers) -> Sums {
  var y = Sums();
  y.row_0 = exp(x.row_0 - less);
  y.row_1 = exp(x.row_1 - less);
  y.row_2 = exp(x.row_2 - less);
  y.row_3 = exp(x.row_3 - less);
  y.row_4 = exp(x.row_4 - less);
  y.row_5 = exp(x.row_5 - less);
  y.row_6 = exp(x.row_6 - less);
  y.row_7 = exp(x.row_7 - less);
  return y;
}
