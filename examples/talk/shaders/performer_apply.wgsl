// Performer: rows meet the state, and under a causal mask the keys of their own chunk.
//
//     φ(q)_f = exp(ω_f · q − |q|² / (2 √d) − M) + ε,  M = max_f ω_f · q       m^(−1/2) cancels
//     [n_i, z_i] = φ(q_i) S + Σ_j (φ(q_i) · φ(k_j)) [v_j, 1]      the sum only if causal: keys j ≤ i of the chunk of i
//     o_i = n_i / z_i
//
// It is the loop of flash attention, with rows of omega for keys and rows of S for values: the maximum of a row grows
// on the way, and what was summed is scaled down with it. At the end it is scaled by exp(−|q|² / (2 √d)), and ε is
// added, as ε Σ_f S[f].
//
// q, o: [heads of Q of all sequences, seqlen, HEAD_DIM]. k, v: KV heads. states: as performer_scan.wgsl leaves them,
// the one of chunk 0 if not causal. A workgroup owns TILE rows, and an invocation 8 of them.

struct Params {
  seqlen: u32,
  chunk_len: u32,
  num_chunks: u32,
  heads_per_kv_head: u32,
  // HEAD_DIM and FEATURES.
  head_dim: u32,
  num_features: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> q: array<Quad>;
@group(0) @binding(2) var<storage, read> k: array<Quad>;
@group(0) @binding(3) var<storage, read> v: array<Quad>;
@group(0) @binding(4) var<storage, read> omega: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read> stabilisers: array<f32>;
@group(0) @binding(6) var<storage, read> states: array<vec4<f32>>;
@group(0) @binding(7) var<storage, read_write> o: array<Quad>;

// Features of one step: as many as an invocation has quads for, and rows of `left`.
const STEP = min(HEAD_DIM, TILE);

var<workgroup> weights: array<f32, TILE>;

// A number for each of an invocation's rows.
struct OfRows {
  low: Numbers,
  high: Numbers,
}

@compute @workgroup_size(INVOCATIONS)
fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) invocation: u32) {
  let first_row = workgroup.x * TILE;
  let head = workgroup.y;
  let head_kv = head / params.heads_per_kv_head;
  let row_group = invocation / COLUMNS;
  let column = invocation % COLUMNS;
  var chunk = 0u;
  if CAUSAL {
    chunk = first_row / params.chunk_len;
  }

  let decay = decay_of(head, first_row, invocation);
  var sums = Sums();
  var total = Numbers(0.0);
  var maxima = OfRows(Numbers(LOWEST), Numbers(LOWEST));
  let state = (head_kv * params.num_chunks + chunk) * (FEATURES + 1u) * COLUMNS;
  for (var feature = 0u; feature < params.num_features; feature += STEP) {
    query_features(&sums, &maxima, head, first_row, feature, invocation);
    let end = min(STEP, params.num_features - feature);
    for (var f = 0u; f < end; f += SLICE) {
      let depth = min(SLICE, end - f);
      workgroupBarrier();
      for (var i = invocation; i < depth * COLUMNS; i += INVOCATIONS) {
        right[i] = states[state + (feature + f) * COLUMNS + i];
      }
      workgroupBarrier();
      add_products_and_total(&sums, &total, f, depth, row_group, column);
    }
  }
  scale_rows(&sums, decay.low, decay.high);
  add_to_rows(&sums, EPSILON * total);

  if CAUSAL {
    let end_key = min(first_row + TILE, params.seqlen);
    for (var key = chunk * params.chunk_len; key < end_key; key += HEAD_DIM) {
      add_keys(&sums, decay, vec3<u32>(head, head_kv, first_row), key, end_key, invocation);
    }
  }

  // The last column holds the sum of weights.
  workgroupBarrier();
  if column == DIM_QUADS {
    for (var r = 0u; r < 8u; r++) {
      weights[8u * row_group + r] = row_of(sums, r).x;
    }
  }
  workgroupBarrier();
  for (var r = 0u; r < 8u; r++) {
    let row = first_row + 8u * row_group + r;
    if row < params.seqlen && column < DIM_QUADS {
      o[(head * params.seqlen + row) * DIM_QUADS + column] = encode(row_of(sums, r) / weights[8u * row_group + r]);
    }
  }
}

// exp(−|q|² / (2 √d)) of an invocation's rows.
fn decay_of(head: u32, first_row: u32, invocation: u32) -> OfRows {
  for (var i = invocation; i < TILE; i += INVOCATIONS) {
    let row = min(first_row + i, params.seqlen - 1u);
    var squares = Numbers(0.0);
    for (var quad = 0u; quad < DIM_QUADS; quad++) {
      let x = decode(q[(head * params.seqlen + row) * DIM_QUADS + quad]);
      squares = fma(x, x, squares);
    }
    weights[i] = exp(-dot(squares, Numbers(HALF_SCALE)));
  }
  workgroupBarrier();
  let at = 8u * (invocation / COLUMNS);
  return OfRows(
    Numbers(weights[at], weights[at + 1u], weights[at + 2u], weights[at + 3u]),
    Numbers(weights[at + 4u], weights[at + 5u], weights[at + 6u], weights[at + 7u]),
  );
}

// left[f, row] = exp(ω_f · q_row − M) for STEP features from `feature` on. Where M grows, `sums` is scaled down.
fn query_features(
  sums: ptr<function, Sums>,
  maxima: ptr<function, OfRows>,
  head: u32,
  first_row: u32,
  feature: u32,
  invocation: u32,
) {
  let row_group = invocation / COLUMNS;
  let column = invocation % COLUMNS;
  var exponents = Sums();
  for (var d = 0u; d < params.head_dim; d += SLICE) {
    let depth = min(SLICE, params.head_dim - d);
    workgroupBarrier();
    queries_to_left(head, first_row, d, depth, invocation);
    for (var i = invocation; i < depth * STEP / 4u; i += INVOCATIONS) {
      let quad = feature / 4u + i % (STEP / 4u);
      let dim = i / (STEP / 4u);
      let x = omega[(d + dim) * FEATURE_QUADS + min(quad, FEATURE_QUADS - 1u)];
      right[dim * COLUMNS + i % (STEP / 4u)] = x;
    }
    workgroupBarrier();
    add_products(&exponents, 0u, depth, row_group, min(column, STEP / 4u - 1u));
  }

  // The largest of an invocation's four features, then of the row.
  workgroupBarrier();
  let features = vec4<u32>(feature + 4u * column) + vec4<u32>(0u, 1u, 2u, 3u);
  let is_feature = (features < vec4<u32>(FEATURES)) & vec4<bool>(column < STEP / 4u);
  let by_feature = turned(exponents);
  if column < STEP / 4u {
    let at = column * LEFT_QUADS + 2u * row_group;
    right[at] = largest_of_four(by_feature.low, is_feature);
    right[at + 1u] = largest_of_four(by_feature.high, is_feature);
  }
  workgroupBarrier();
  var next = *maxima;
  for (var c = 0u; c < STEP / 4u; c++) {
    next.low = max(next.low, right[c * LEFT_QUADS + 2u * row_group]);
    next.high = max(next.high, right[c * LEFT_QUADS + 2u * row_group + 1u]);
  }
  scale_rows(sums, exp((*maxima).low - next.low), exp((*maxima).high - next.high));
  *maxima = next;
  if column < STEP / 4u {
    let at = 4u * column;
    let low = by_feature.low;
    let high = by_feature.high;
    put(at, row_group, weight(low[0] - next.low, is_feature.x), weight(high[0] - next.high, is_feature.x));
    put(at + 1u, row_group, weight(low[1] - next.low, is_feature.y), weight(high[1] - next.high, is_feature.y));
    put(at + 2u, row_group, weight(low[2] - next.low, is_feature.z), weight(high[2] - next.high, is_feature.z));
    put(at + 3u, row_group, weight(low[3] - next.low, is_feature.w), weight(high[3] - next.high, is_feature.w));
  }
}

// Of each of four rows, the largest exponent of four features, of those that there are.
fn largest_of_four(exponents: mat4x4<f32>, is_feature: vec4<bool>) -> Numbers {
  let low = Numbers(LOWEST);
  let first = max(select(low, exponents[0], is_feature.xxxx), select(low, exponents[1], is_feature.yyyy));
  return max(first, max(select(low, exponents[2], is_feature.zzzz), select(low, exponents[3], is_feature.wwww)));
}

fn weight(exponents: Numbers, is_feature: bool) -> Numbers {
  return select(Numbers(0.0), exp(exponents), vec4<bool>(is_feature));
}

// left[d, row] = q_row[first_dim + d]. An invocation turns 4 rows by 4 dimensions.
fn queries_to_left(head: u32, first_row: u32, first_dim: u32, depth: u32, invocation: u32) {
  for (var i = invocation; i < LEFT_QUADS * depth / 4u; i += INVOCATIONS) {
    let rows = i % LEFT_QUADS;
    let quad = i / LEFT_QUADS;
    var block = mat4x4<f32>();
    for (var r = 0u; r < 4u; r++) {
      let row = min(first_row + 4u * rows + r, params.seqlen - 1u);
      block[r] = decode(q[(head * params.seqlen + row) * DIM_QUADS + first_dim / 4u + quad]);
    }
    let turned = transpose(block);
    for (var d = 0u; d < 4u; d++) {
      left[(4u * quad + d) * LEFT_QUADS + rows] = turned[d];
    }
  }
}

// Adds HEAD_DIM keys from `key` on, those before `end_key`, as far as rows see them. place: head, head of K and V,
// first row.
fn add_keys(
  sums: ptr<function, Sums>,
  decay: OfRows,
  place: vec3<u32>,
  key: u32,
  end_key: u32,
  invocation: u32,
) {
  let row_group = invocation / COLUMNS;
  let column = invocation % COLUMNS;
  let key_column = min(column, DIM_QUADS - 1u);
  let stabiliser = stabilisers[place.y];

  // products[row, key] = φ(q_row) · φ(k_key): a quad of keys for each column but the last.
  var products = Sums();
  var total = Numbers(0.0);
  var maxima = OfRows(Numbers(LOWEST), Numbers(LOWEST));
  for (var feature = 0u; feature < params.num_features; feature += STEP) {
    var squares = Numbers(0.0);
    var of_keys = key_exponents(&squares, place.y, key, feature, invocation);
    of_keys = exponentials(of_keys, squares + stabiliser);
    add_to_rows(&of_keys, Numbers(EPSILON));
    query_features(&products, &maxima, place.x, place.z, feature, invocation);
    let end = min(STEP, params.num_features - feature);
    for (var f = 0u; f < end; f += SLICE) {
      let depth = min(SLICE, end - f);
      workgroupBarrier();
      // right[f, key]: rows of an invocation are its features here.
      let at = 8u * row_group - f;
      if column < DIM_QUADS && 8u * row_group >= f && at < SLICE {
        right[at * COLUMNS + column] = of_keys.row_0;
        right[(at + 1u) * COLUMNS + column] = of_keys.row_1;
        right[(at + 2u) * COLUMNS + column] = of_keys.row_2;
        right[(at + 3u) * COLUMNS + column] = of_keys.row_3;
        right[(at + 4u) * COLUMNS + column] = of_keys.row_4;
        right[(at + 5u) * COLUMNS + column] = of_keys.row_5;
        right[(at + 6u) * COLUMNS + column] = of_keys.row_6;
        right[(at + 7u) * COLUMNS + column] = of_keys.row_7;
      }
      workgroupBarrier();
      add_products_and_total(&products, &total, f, depth, row_group, key_column);
    }
  }
  scale_rows(&products, decay.low, decay.high);
  add_to_rows(&products, EPSILON * total);

  workgroupBarrier();
  if column < DIM_QUADS {
    put_seen(products, column, row_group, key + 4u * column, place.z + 8u * row_group, end_key);
  }
  for (var j = 0u; j < params.head_dim; j += SLICE) {
    let depth = min(SLICE, params.head_dim - j);
    workgroupBarrier();
    values_to_right(place.y, key + j, depth, invocation);
    workgroupBarrier();
    add_products(sums, j, depth, row_group, column);
  }
}
