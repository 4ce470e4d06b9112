// The product that all dense methods are made of: a tile of 8 · ROW_GROUPS rows by 4 · COLUMNS columns, in registers.
//
//     sums[row, column] += Σ_k left[k, row] · right[k, column]
//
// Both factors lie in workgroup memory with their rows along the sum. An invocation owns 8 rows and a quad of columns.
// V gets one more quad of columns, (1, 0, 0, 0): so a sum of weighted rows of V carries the sum of the weights beside
// it. COLUMNS = HEAD_DIM / 4 + 1.
//
// Loops over slices are bounded by params.head_dim, which is HEAD_DIM, so that compilers do not unroll all of them:
// some take minutes then.

const DIM_QUADS = HEAD_DIM / 4u;
const COLUMNS = DIM_QUADS + 1u;
const LEFT_QUADS = 2u * ROW_GROUPS;
const TILE = 8u * ROW_GROUPS;
const INVOCATIONS = ROW_GROUPS * COLUMNS;

alias Numbers = vec4<f32>;

var<workgroup> left: array<Numbers, LEFT_DEPTH * LEFT_QUADS>;
var<workgroup> right: array<Numbers, SLICE * COLUMNS>;

struct Sums {
  row_0: Numbers,
  row_1: Numbers,
  row_2: Numbers,
  row_3: Numbers,
  row_4: Numbers,
  row_5: Numbers,
  row_6: Numbers,
  row_7: Numbers,
}

// Adds the products of eight rows with a quad of columns.
fn add_product(sums: ptr<function, Sums>, low: Numbers, high: Numbers, factor: Numbers) {
  (*sums).row_0 = fma(Numbers(low.x), factor, (*sums).row_0);
  (*sums).row_1 = fma(Numbers(low.y), factor, (*sums).row_1);
  (*sums).row_2 = fma(Numbers(low.z), factor, (*sums).row_2);
  (*sums).row_3 = fma(Numbers(low.w), factor, (*sums).row_3);
  (*sums).row_4 = fma(Numbers(high.x), factor, (*sums).row_4);
  (*sums).row_5 = fma(Numbers(high.y), factor, (*sums).row_5);
  (*sums).row_6 = fma(Numbers(high.z), factor, (*sums).row_6);
  (*sums).row_7 = fma(Numbers(high.w), factor, (*sums).row_7);
}

// Adds `depth` products: from row `first` of `left`, and from row 0 of `right`.
fn add_products(sums: ptr<function, Sums>, first: u32, depth: u32, row_group: u32, column: u32) {
  for (var k = 0u; k < depth; k++) {
    let low = left[(first + k) * LEFT_QUADS + 2u * row_group];
    let high = left[(first + k) * LEFT_QUADS + 2u * row_group + 1u];
    add_product(sums, low, high, right[k * COLUMNS + column]);
  }
}

// The same, and `total` gets the sum of what stands in `right`.
fn add_products_and_total(
  sums: ptr<function, Sums>,
  total: ptr<function, Numbers>,
  first: u32,
  depth: u32,
  row_group: u32,
  column: u32,
) {
  for (var k = 0u; k < depth; k++) {
    let low = left[(first + k) * LEFT_QUADS + 2u * row_group];
    let high = left[(first + k) * LEFT_QUADS + 2u * row_group + 1u];
    let factor = right[k * COLUMNS + column];
    (*total) += factor;
    add_product(sums, low, high, factor);
  }
}

// Scales each row by its own factor: rows 0 to 3, rows 4 to 7.
fn scale_rows(sums: ptr<function, Sums>, low: Numbers, high: Numbers) {
  (*sums).row_0 *= low.x;
  (*sums).row_1 *= low.y;
  (*sums).row_2 *= low.z;
  (*sums).row_3 *= low.w;
  (*sums).row_4 *= high.x;
  (*sums).row_5 *= high.y;
  (*sums).row_6 *= high.z;
  (*sums).row_7 *= high.w;
}

// Adds the same quad to each row.
fn add_to_rows(sums: ptr<function, Sums>, quad: Numbers) {
  (*sums).row_0 += quad;
  (*sums).row_1 += quad;
  (*sums).row_2 += quad;
  (*sums).row_3 += quad;
  (*sums).row_4 += quad;
  (*sums).row_5 += quad;
  (*sums).row_6 += quad;
  (*sums).row_7 += quad;
}

// Columns become rows: low[c] is rows 0 to 3 of column c, high[c] rows 4 to 7.
struct Turned {
  low: mat4x4<f32>,
  high: mat4x4<f32>,
}

fn turned(sums: Sums) -> Turned {
  return Turned(
    transpose(mat4x4<f32>(sums.row_0, sums.row_1, sums.row_2, sums.row_3)),
    transpose(mat4x4<f32>(sums.row_4, sums.row_5, sums.row_6, sums.row_7)),
  );
}

// left[depth, 8 rows of a row group]
fn put(depth: u32, row_group: u32, low: Numbers, high: Numbers) {
  left[depth * LEFT_QUADS + 2u * row_group] = low;
  left[depth * LEFT_QUADS + 2u * row_group + 1u] = high;
}

// Row r of eight.
fn row_of(sums: Sums, r: u32) -> Numbers {
  switch r {
    case 0u: { return sums.row_0; }
    case 1u: { return sums.row_1; }
    case 2u: { return sums.row_2; }
    case 3u: { return sums.row_3; }
    case 4u: { return sums.row_4; }
    case 5u: { return sums.row_5; }
    case 6u: { return sums.row_6; }
    default: { return sums.row_7; }
  }
}

// Products of four rows from `row` on with a key, where they see it.
fn seen(products: Numbers, key: u32, row: u32, end_key: u32) -> Numbers {
  let rows = vec4<u32>(row) + vec4<u32>(0u, 1u, 2u, 3u);
  return select(Numbers(0.0), products, vec4<bool>(key < end_key) & (vec4<u32>(key) <= rows));
}

// Writes the products of an invocation's rows and four keys from `key` on, which stand in `column`.
fn put_seen(products: Sums, column: u32, row_group: u32, key: u32, row: u32, end_key: u32) {
  let by_key = turned(products);
  let at = 4u * column;
  let far = row + 4u;
  put(at, row_group, seen(by_key.low[0], key, row, end_key), seen(by_key.high[0], key, far, end_key));
  put(at + 1u, row_group, seen(by_key.low[1], key + 1u, row, end_key), seen(by_key.high[1], key + 1u, far, end_key));
  put(at + 2u, row_group, seen(by_key.low[2], key + 2u, row, end_key), seen(by_key.high[2], key + 2u, far, end_key));
  put(at + 3u, row_group, seen(by_key.low[3], key + 3u, row, end_key), seen(by_key.high[3], key + 3u, far, end_key));
}

// right[j, :] = [v_(key + j), 1] for `depth` keys. Keys past the last repeat it.
fn values_to_right(head: u32, key: u32, depth: u32, invocation: u32) {
  for (var i = invocation; i < depth * COLUMNS; i += INVOCATIONS) {
    let row = min(key + i / COLUMNS, params.seqlen - 1u);
    let quad = i % COLUMNS;
    var values = Numbers(1.0, 0.0, 0.0, 0.0);
    if quad < DIM_QUADS {
      values = decode(v[(head * params.seqlen + row) * DIM_QUADS + quad]);
    }
    right[i] = values;
  }
}
