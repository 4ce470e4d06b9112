// How near each token is to each centroid of its head.
//
// Reads x[batch, heads, seqlen, HEAD_DIM], columns[num_heads, columns, HEAD_DIM] (centroids of length 1) and
// inverse[batch, heads, seqlen] = 1 / ‖x‖. Writes scores[lists of this call, columns, seqlen]: centroid · x / ‖x‖. A
// list is a sequence and a query head; `first_list` is the first of this call.
//
// Who owns what: a workgroup owns 64 tokens and 64 centroids of a list, an invocation 4 × 4 scores.

struct Params {
  seqlen: u32,
  columns: u32,
  num_heads: u32,
  heads_per_x: u32,
  first_list: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(3) var<storage, read> inverse: array<f32>;
@group(0) @binding(4) var<storage, read_write> scores: array<f32>;

// Stores the scores of a token of x's head `head` and four columns from `column` on, the first at `at`.
fn store(at: u32, head: u32, token: u32, column: u32, of_token: vec4<f32>) {
  if token >= params.seqlen { return; }
  let near = of_token * inverse[head * params.seqlen + token];
  let step = LANES * params.seqlen;
  let first = at + column * params.seqlen + token;
  if column < params.columns { scores[first] = near.x; }
  if column + LANES < params.columns { scores[first + step] = near.y; }
  if column + 2u * LANES < params.columns { scores[first + 2u * step] = near.z; }
  if column + 3u * LANES < params.columns { scores[first + 3u * step] = near.w; }
}

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) invocation: u32) {
  let list = params.first_list + workgroup.z;
  let head = list / params.heads_per_x;
  let first_column = workgroup.y * SIDE;
  let s = products(head, workgroup.x * SIDE, list % params.num_heads, first_column, invocation);
  let token = workgroup.x * SIDE + invocation % LANES;
  let column = first_column + invocation / LANES;
  let at = workgroup.z * params.columns * params.seqlen;
  store(at, head, token, column, s.token_0);
  store(at, head, token + 16u, column, s.token_1);
  store(at, head, token + 32u, column, s.token_2);
  store(at, head, token + 48u, column, s.token_3);
}
