// For each token the column with which its product is largest: the bucket of a hash, or the nearest centroid.
//
// Reads x[batch, heads, seqlen, HEAD_DIM] and columns[sets, columns, HEAD_DIM]. Writes nearest[first_list + list,
// seqlen]. Lists are (round, sequence, query head). A list has the set round · sets_of_round + head · sets_of_head.
//
//   for each token x:
//     s       = columns · x
//     nearest = argmax s                      IS_SIGNED: argmax [s; −s]
//   The lowest number wins where two are equal.
//
// Who owns what: a workgroup owns 64 tokens of a list, an invocation 4 × 4 products at a time.

struct Params {
  seqlen: u32,
  columns: u32,
  // Sequences times query heads.
  lists_of_round: u32,
  num_heads: u32,
  heads_per_x: u32,
  sets_of_round: u32,
  sets_of_head: u32,
  first_list: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(3) var<storage, read_write> nearest: array<u32>;

// Below all products.
const LEAST = -3.4e38;

var<workgroup> best_values: array<f32, 1024>;
var<workgroup> best_columns: array<u32, 1024>;

struct Best {
  value: f32,
  column: u32,
}

fn better(best: Best, value: f32, column: u32) -> Best {
  if value > best.value || (value == best.value && column < best.column) { return Best(value, column); }
  return best;
}

// The best of `best` and a product with this column.
fn with_column(best: Best, product: f32, column: u32) -> Best {
  if column >= params.columns { return best; }
  let next = better(best, product, column);
  if IS_SIGNED { return better(next, -product, column + params.columns); }
  return next;
}

// The best of `best` and four products, of which the first is of this column.
fn best_of(best: Best, products: vec4<f32>, column: u32) -> Best {
  let first = with_column(best, products.x, column);
  let second = with_column(first, products.y, column + LANES);
  let third = with_column(second, products.z, column + 2u * LANES);
  return with_column(third, products.w, column + 3u * LANES);
}

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) invocation: u32) {
  let first_token = workgroup.x * SIDE;
  let round = workgroup.y / params.lists_of_round;
  let list = workgroup.y % params.lists_of_round;
  let column_set = round * params.sets_of_round + list % params.num_heads * params.sets_of_head;
  let column_lane = invocation / LANES;
  let token_lane = invocation % LANES;

  var best_0 = Best(LEAST, 0u);
  var best_1 = Best(LEAST, 0u);
  var best_2 = Best(LEAST, 0u);
  var best_3 = Best(LEAST, 0u);
  for (var first = 0u; first < params.columns; first += SIDE) {
    let s = products(list / params.heads_per_x, first_token, column_set, first, invocation);
    best_0 = best_of(best_0, s.token_0, first + column_lane);
    best_1 = best_of(best_1, s.token_1, first + column_lane);
    best_2 = best_of(best_2, s.token_2, first + column_lane);
    best_3 = best_of(best_3, s.token_3, first + column_lane);
  }
  let at = column_lane * SIDE + token_lane;
  best_values[at] = best_0.value;
  best_columns[at] = best_0.column;
  best_values[at + 16u] = best_1.value;
  best_columns[at + 16u] = best_1.column;
  best_values[at + 32u] = best_2.value;
  best_columns[at + 32u] = best_2.column;
  best_values[at + 48u] = best_3.value;
  best_columns[at + 48u] = best_3.column;
  workgroupBarrier();
  let token = first_token + invocation;
  if invocation < SIDE && token < params.seqlen {
    var best = Best(LEAST, 0u);
    for (var lane = 0u; lane < LANES; lane++) {
      best = better(best, best_values[lane * SIDE + invocation], best_columns[lane * SIDE + invocation]);
    }
    nearest[(params.first_list + workgroup.y) * params.seqlen + token] = best.column;
  }
}
