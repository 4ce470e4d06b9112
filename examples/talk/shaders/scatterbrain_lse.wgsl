// LSE of what each row of chunks sees outside its support.
//
// Reads lse_chunks[chunks, heads, features], LSE over the keys of each chunk, and support[chunks, 2], the first chunk
// of the support of a row of chunks and the first behind it, both rising. Writes lse[chunks, heads · heads_per_kv,
// features], for each query head. Chunks are those of all sequences.
//
//   LSE = logsumexp of LSE_c over the chunks c before the support and, unless IS_CAUSAL, behind it
//
// Where no chunk is left LSE is EMPTY. Nothing is taken away from a sum, so nothing cancels.
//
// Who owns what: an invocation owns a feature and goes over all chunks, forth and back.

struct Params {
  chunks: u32,
  batch: u32,
  heads: u32,
  heads_per_kv: u32,
  features: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> lse_chunks: array<f32>;
@group(0) @binding(2) var<storage, read> support: array<vec2<u32>>;
@group(0) @binding(3) var<storage, read_write> lse: array<f32>;

// Below every LSE. It is finite, so that scores that have it stay numbers.
const EMPTY = -1.0e30;

fn merged(a: f32, b: f32) -> f32 {
  let m = max(a, b);
  if m == EMPTY { return EMPTY; }
  return m + log(exp(a - m) + exp(b - m));
}

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>) {
  let index = id.y * grid.x * 64u + id.x;
  if index >= params.batch * params.heads * params.features { return; }
  let feature = index % params.features;
  let head = index / params.features % params.heads;
  let first_chunk = index / params.features / params.heads * params.chunks;

  var before = EMPTY;
  var next = 0u;
  for (var chunk = 0u; chunk < params.chunks; chunk++) {
    for (; next < min(support[chunk].x, params.chunks); next++) {
      before = merged(before, lse_chunks[((first_chunk + next) * params.heads + head) * params.features + feature]);
    }
    for (var n = 0u; n < params.heads_per_kv; n++) {
      let row = (first_chunk + chunk) * params.heads * params.heads_per_kv + head * params.heads_per_kv + n;
      lse[row * params.features + feature] = before;
    }
  }
  if IS_CAUSAL { return; }
  var behind = EMPTY;
  next = params.chunks;
  for (var left = params.chunks; left > 0u; left--) {
    let chunk = left - 1u;
    for (; next > support[chunk].y; next--) {
      let of_chunk = lse_chunks[((first_chunk + next - 1u) * params.heads + head) * params.features + feature];
      behind = merged(behind, of_chunk);
    }
    for (var n = 0u; n < params.heads_per_kv; n++) {
      let row = (first_chunk + chunk) * params.heads * params.heads_per_kv + head * params.heads_per_kv + n;
      lse[row * params.features + feature] = merged(lse[row * params.features + feature], behind);
    }
  }
}
