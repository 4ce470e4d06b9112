// Performer: what a chunk of keys adds to the state.
//
//     M = max ω_f · k_j over the keys of the chunk and the features of the tile
//     S_c[f, :] = Σ_j exp(ω_f · k_j − |k_j|² / (2 √d) − M) · [v_j, 1]      and one row more, f = m: Σ_j [v_j, 1]
//
// k, v: [KV heads of all sequences, seqlen, HEAD_DIM]. states: [KV heads, num_chunks, m + 1, 4 · COLUMNS] in f32.
// maxima: [KV heads, num_chunks, tiles of features]. A workgroup makes TILE features of one chunk. HEAD_DIM keys pass
// at a time, so that an invocation has a quad of them; M grows on the way, and S is scaled down with it.

struct Params {
  seqlen: u32,
  chunk_len: u32,
  num_chunks: u32,
  // HEAD_DIM.
  head_dim: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> k: array<Quad>;
@group(0) @binding(2) var<storage, read> v: array<Quad>;
@group(0) @binding(3) var<storage, read> omega: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read_write> states: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read_write> maxima: array<f32>;

const LANES = 16u;

var<workgroup> maximum_of: array<f32, INVOCATIONS>;
var<workgroup> maximum_of_lane: array<f32, LANES>;

@compute @workgroup_size(INVOCATIONS)
fn main(
  @builtin(workgroup_id) workgroup: vec3<u32>,
  @builtin(num_workgroups) workgroups: vec3<u32>,
  @builtin(local_invocation_index) invocation: u32,
) {
  let chunk = workgroup.x;
  let first_feature = workgroup.y * TILE;
  let head = workgroup.z;
  let row_group = invocation / COLUMNS;
  let column = invocation % COLUMNS;
  let own_feature = first_feature + 8u * row_group;
  let first_key = chunk * params.chunk_len;
  let end_key = min(first_key + params.chunk_len, params.seqlen);

  var sums = Sums();
  var maximum = LOWEST;
  for (var key = first_key; key < end_key; key += HEAD_DIM) {
    var squares = Numbers(0.0);
    var exponents = key_exponents(&squares, head, key, first_feature, invocation);
    let own_keys = vec4<u32>(key + 4u * column) + vec4<u32>(0u, 1u, 2u, 3u);
    let is_key = (own_keys < vec4<u32>(end_key)) & vec4<bool>(column < DIM_QUADS);

    let num_features = max(FEATURES, own_feature) - own_feature;
    let next = max(maximum, largest_of_all(largest_of(exponents, num_features, is_key), invocation));
    let factor = exp(maximum - next);
    maximum = next;
    // The row of plain sums has no stabiliser.
    let low = vec4<u32>(own_feature) + vec4<u32>(0u, 1u, 2u, 3u);
    let factors_low = select(Numbers(1.0), Numbers(factor), low < vec4<u32>(FEATURES));
    let factors_high = select(Numbers(1.0), Numbers(factor), low + 4u < vec4<u32>(FEATURES));
    scale_rows(&sums, factors_low, factors_high);

    // left[key, f]: an invocation has 8 features of 4 keys.
    exponents = exponentials(exponents, squares + maximum);
    workgroupBarrier();
    if column < DIM_QUADS {
      let at = 4u * column;
      let by_key = turned(exponents);
      put(at, row_group, weights(by_key.low[0], low, is_key.x), weights(by_key.high[0], low + 4u, is_key.x));
      put(at + 1u, row_group, weights(by_key.low[1], low, is_key.y), weights(by_key.high[1], low + 4u, is_key.y));
      put(at + 2u, row_group, weights(by_key.low[2], low, is_key.z), weights(by_key.high[2], low + 4u, is_key.z));
      put(at + 3u, row_group, weights(by_key.low[3], low, is_key.w), weights(by_key.high[3], low + 4u, is_key.w));
    }
    for (var j = 0u; j < params.head_dim; j += SLICE) {
      let depth = min(SLICE, params.head_dim - j);
      workgroupBarrier();
      values_to_right(head, key + j, depth, invocation);
      workgroupBarrier();
      add_products(&sums, j, depth, row_group, column);
    }
  }

  let base = (head * params.num_chunks + chunk) * (FEATURES + 1u) * COLUMNS;
  for (var r = 0u; r < 8u; r++) {
    if own_feature + r <= FEATURES {
      states[base + (own_feature + r) * COLUMNS + column] = row_of(sums, r);
    }
  }
  if invocation == 0u {
    maxima[(head * params.num_chunks + chunk) * workgroups.y + workgroup.y] = maximum;
  }
}

// What four features weigh for a key: those past the last one nothing, the last one 1, and nothing if there is no such
// key.
fn weights(exponentials: Numbers, features: vec4<u32>, is_key: bool) -> Numbers {
  let others = select(Numbers(0.0), Numbers(1.0), features == vec4<u32>(FEATURES));
  let all = select(others, exponentials, features < vec4<u32>(FEATURES));
  return select(Numbers(0.0), all, vec4<bool>(is_key));
}

// The largest exponent of the first `num_features` rows and of the keys that there are.
fn largest_of(exponents: Sums, num_features: u32, is_key: vec4<bool>) -> f32 {
  var largest = Numbers(LOWEST);
  largest = select(largest, max(largest, exponents.row_0), is_key & vec4<bool>(num_features > 0u));
  largest = select(largest, max(largest, exponents.row_1), is_key & vec4<bool>(num_features > 1u));
  largest = select(largest, max(largest, exponents.row_2), is_key & vec4<bool>(num_features > 2u));
  largest = select(largest, max(largest, exponents.row_3), is_key & vec4<bool>(num_features > 3u));
  largest = select(largest, max(largest, exponents.row_4), is_key & vec4<bool>(num_features > 4u));
  largest = select(largest, max(largest, exponents.row_5), is_key & vec4<bool>(num_features > 5u));
  largest = select(largest, max(largest, exponents.row_6), is_key & vec4<bool>(num_features > 6u));
  largest = select(largest, max(largest, exponents.row_7), is_key & vec4<bool>(num_features > 7u));
  return max(max(largest.x, largest.y), max(largest.z, largest.w));
}

// The largest value of all invocations.
fn largest_of_all(own: f32, invocation: u32) -> f32 {
  maximum_of[invocation] = own;
  workgroupBarrier();
  if invocation < LANES {
    var largest = LOWEST;
    for (var i = invocation; i < INVOCATIONS; i += LANES) {
      largest = max(largest, maximum_of[i]);
    }
    maximum_of_lane[invocation] = largest;
  }
  workgroupBarrier();
  var largest = LOWEST;
  for (var i = 0u; i < min(LANES, INVOCATIONS); i++) {
    largest = max(largest, maximum_of_lane[i]);
  }
  return largest;
}
