// A step of spherical k-means: each centroid becomes the direction of the sum of its tokens, each token with length 1.
// A centroid without tokens stays.
//
// Reads Q[batch, num_heads, seqlen, HEAD_DIM], K[batch, num_heads / heads_per_k, seqlen, HEAD_DIM], 1 / ‖q‖ and 1 / ‖k‖
// of each row, and tokens sorted by their nearest centroid: order[2, batch, num_heads, seqlen], starts[2, batch,
// num_heads, blocks, columns], of Q and then of K. Changes centroids[num_heads, columns, HEAD_DIM].
//
// Who owns what: a workgroup owns a centroid; 16 invocations share a token, and 16 tokens pass at a time.

struct Params {
  seqlen: u32,
  columns: u32,
  batch: u32,
  num_heads: u32,
  heads_per_k: u32,
  blocks: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> q: array<Quad>;
@group(0) @binding(2) var<storage, read> k: array<Quad>;
@group(0) @binding(3) var<storage, read> q_inverse: array<f32>;
@group(0) @binding(4) var<storage, read> k_inverse: array<f32>;
@group(0) @binding(5) var<storage, read> order: array<u32>;
@group(0) @binding(6) var<storage, read> starts: array<u32>;
@group(0) @binding(7) var<storage, read_write> centroids: array<vec4<f32>>;

const QUADS = HEAD_DIM / 4u;
const LANES = 16u;
const OWN = (QUADS + LANES - 1u) / LANES;

var<workgroup> sums: array<vec4<f32>, LANES * QUADS>;

// A quad of Q (tensor 0) or K at length 1.
fn unit_quad(tensor: u32, list: u32, token: u32, quad: u32) -> vec4<f32> {
  if tensor == 0u {
    let row = list * params.seqlen + token;
    return decode(q[row * QUADS + quad]) * q_inverse[row];
  }
  let row = list / params.heads_per_k * params.seqlen + token;
  return decode(k[row * QUADS + quad]) * k_inverse[row];
}

// The sum of every 16th token of a centroid, from its token `first` on.
fn sum_of(centroid: u32, head: u32, quad: u32, first: u32) -> vec4<f32> {
  var sum = vec4<f32>(0.0);
  for (var tensor = 0u; tensor < 2u; tensor++) {
    for (var batch = 0u; batch < params.batch; batch++) {
      let list = batch * params.num_heads + head;
      let of_tensor = tensor * params.batch * params.num_heads + list;
      let bucket = of_tensor * params.blocks * params.columns + centroid;
      var end = params.seqlen;
      if centroid + 1u < params.columns { end = starts[bucket + 1u]; }
      for (var place = starts[bucket] + first; place < end; place += LANES) {
        sum += unit_quad(tensor, list, order[of_tensor * params.seqlen + place], quad);
      }
    }
  }
  return sum;
}

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) invocation: u32) {
  let first = invocation / LANES;
  for (var own = 0u; own < OWN; own++) {
    let quad = own * LANES + invocation % LANES;
    if quad < QUADS { sums[first * QUADS + quad] = sum_of(workgroup.x, workgroup.y, quad, first); }
  }
  workgroupBarrier();
  let quad = min(invocation, QUADS - 1u);
  var total = vec4<f32>(0.0);
  for (var row = 0u; row < LANES; row++) { total += sums[row * QUADS + quad]; }
  workgroupBarrier();
  if invocation < QUADS { sums[quad] = total; }
  workgroupBarrier();
  var square = 0.0;
  for (var n = 0u; n < QUADS; n++) { square += dot(sums[n], sums[n]); }
  if invocation < QUADS && square > 0.0 {
    centroids[(workgroup.y * params.columns + workgroup.x) * QUADS + quad] = total / sqrt(square);
  }
}
