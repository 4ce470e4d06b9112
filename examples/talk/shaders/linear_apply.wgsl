// Linear attention: rows meet the state, and under a causal mask the keys of their own chunk.
//
//     [n_i, z_i] = φ(q_i) S + Σ_j (φ(q_i) · φ(k_j)) [v_j, 1]      the sum only if causal: keys j ≤ i of the chunk of i
//     o_i = n_i / z_i
//
// q, o: [heads of Q of all sequences, seqlen, HEAD_DIM]. k, v: KV heads. states: as scan.wgsl leaves them, the one of
// chunk 0 if not causal. A workgroup owns TILE rows. Keys come HEAD_DIM at a time, so that an invocation has a quad of
// them.

struct Params {
  seqlen: u32,
  chunk_len: u32,
  num_chunks: u32,
  heads_per_kv_head: u32,
  // HEAD_DIM.
  head_dim: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> q: array<Quad>;
@group(0) @binding(2) var<storage, read> k: array<Quad>;
@group(0) @binding(3) var<storage, read> v: array<Quad>;
@group(0) @binding(4) var<storage, read> states: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read_write> o: array<Quad>;

var<workgroup> weights: array<f32, TILE>;

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

  load_queries(head, first_row, invocation);
  var sums = Sums();
  let state = (head_kv * params.num_chunks + chunk) * HEAD_DIM * COLUMNS;
  for (var f = 0u; f < params.head_dim; f += SLICE) {
    let depth = min(SLICE, params.head_dim - f);
    workgroupBarrier();
    for (var i = invocation; i < depth * COLUMNS; i += INVOCATIONS) {
      right[i] = states[state + f * COLUMNS + i];
    }
    workgroupBarrier();
    add_products(&sums, f, depth, row_group, column);
  }

  if CAUSAL {
    let end_key = min(first_row + TILE, params.seqlen);
    for (var key = chunk * params.chunk_len; key < end_key; key += HEAD_DIM) {
      add_keys(&sums, vec3<u32>(head, head_kv, first_row), key, end_key, invocation);
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
      let weight = weights[8u * row_group + r];
      let out = select(Numbers(0.0), row_of(sums, r) / weight, Numbers(weight) > Numbers(0.0));
      o[(head * params.seqlen + row) * DIM_QUADS + column] = encode(out);
    }
  }
}

// left[d, row] = φ(q_row)[d]. An invocation turns 4 rows by 4 dimensions.
fn load_queries(head: u32, first_row: u32, invocation: u32) {
  workgroupBarrier();
  for (var i = invocation; i < LEFT_QUADS * DIM_QUADS; i += INVOCATIONS) {
    let rows = i % LEFT_QUADS;
    let quad = i / LEFT_QUADS;
    var block = mat4x4<f32>();
    for (var r = 0u; r < 4u; r++) {
      let row = min(first_row + 4u * rows + r, params.seqlen - 1u);
      block[r] = feature(decode(q[(head * params.seqlen + row) * DIM_QUADS + quad]));
    }
    let turned = transpose(block);
    for (var d = 0u; d < 4u; d++) {
      left[(4u * quad + d) * LEFT_QUADS + rows] = turned[d];
    }
  }
}

// Adds HEAD_DIM keys from `key` on, those before `end_key`, as far as rows see them. place: head, head of K and V,
// first row.
fn add_keys(sums: ptr<function, Sums>, place: vec3<u32>, key: u32, end_key: u32, invocation: u32) {
  let row_group = invocation / COLUMNS;
  let column = invocation % COLUMNS;

  // Products of features: a quad of keys for each column but the last.
  load_queries(place.x, place.z, invocation);
  var products = Sums();
  for (var d = 0u; d < params.head_dim; d += SLICE) {
    let depth = min(SLICE, params.head_dim - d);
    workgroupBarrier();
    for (var i = invocation; i < DIM_QUADS * depth / 4u; i += INVOCATIONS) {
      let keys = i % DIM_QUADS;
      let quad = i / DIM_QUADS;
      var block = mat4x4<f32>();
      for (var r = 0u; r < 4u; r++) {
        let row = min(key + 4u * keys + r, params.seqlen - 1u);
        block[r] = feature(decode(k[(place.y * params.seqlen + row) * DIM_QUADS + d / 4u + quad]));
      }
      let turned = transpose(block);
      for (var e = 0u; e < 4u; e++) {
        right[(4u * quad + e) * COLUMNS + keys] = turned[e];
      }
    }
    workgroupBarrier();
    add_products(&products, d, depth, row_group, min(column, DIM_QUADS - 1u));
  }

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
