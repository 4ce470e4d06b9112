// One softmax over the support, which is exact, and all other keys, which are seen through features.
//
// Reads o_exact[lists, seqlen, HEAD_DIM] and lse_exact[lists, seqlen] of the support; o_features[num_heads, batch,
// padded, HEAD_DIM] and lse_features[batch · chunks, num_heads, CHUNK] of the other keys; shifts[num_heads, batch,
// padded] = −‖q‖² / (2 √HEAD_DIM). Writes O[lists, seqlen, HEAD_DIM]. A list is a sequence and a query head; `padded`
// is chunks · CHUNK.
//
//   LSE_2 = LSE_features + shift − ln features
//   O     = (exp(LSE_1) · O_1 + exp(LSE_2) · O_2) / (exp(LSE_1) + exp(LSE_2))
//
// Who owns what: an invocation owns four dimensions of one row.

struct Params {
  seqlen: u32,
  chunks: u32,
  lists: u32,
  num_heads: u32,
  features: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> o_exact: array<Quad>;
@group(0) @binding(2) var<storage, read> lse_exact: array<f32>;
@group(0) @binding(3) var<storage, read> o_features: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read> lse_features: array<f32>;
@group(0) @binding(5) var<storage, read> shifts: array<f32>;
@group(0) @binding(6) var<storage, read_write> o: array<Quad>;

const QUADS = HEAD_DIM / 4u;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>) {
  let index = id.y * grid.x * 64u + id.x;
  let row = index / QUADS;
  let quad = index % QUADS;
  if row >= params.lists * params.seqlen { return; }
  let list = row / params.seqlen;
  let token = row % params.seqlen;
  let batch = list / params.num_heads;
  let head = list % params.num_heads;
  let padded = (head * (params.lists / params.num_heads) + batch) * params.chunks * CHUNK + token;
  let chunk = batch * params.chunks + token / CHUNK;
  let of_features = lse_features[(chunk * params.num_heads + head) * CHUNK + token % CHUNK];
  let lse_1 = lse_exact[row];
  let lse_2 = of_features + shifts[padded] - log(f32(params.features));
  let m = max(lse_1, lse_2);
  let weight_1 = exp(lse_1 - m);
  let weight_2 = exp(lse_2 - m);
  let sum = decode(o_exact[row * QUADS + quad]) * weight_1 + o_features[padded * QUADS + quad] * weight_2;
  o[index] = encode(sum / (weight_1 + weight_2));
}
