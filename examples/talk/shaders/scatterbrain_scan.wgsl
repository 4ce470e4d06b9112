// What the features give of the chunks outside the support of each row of chunks.
//
// Reads o_chunks[heads, chunks, features, HEAD_DIM] and lse_chunks[chunks, heads, features], O and LSE over the keys of
// each chunk, support[chunks, 2], the first chunk of the support of a row of chunks and the first behind it, both
// rising, and lse[chunks, heads · heads_per_kv, features] of `scatterbrain_lse.wgsl`. Writes o[heads, chunks, features,
// HEAD_DIM]. Chunks are those of all sequences.
//
//   O = Σ exp(LSE_c − LSE) · O_c over the chunks c before the support and, unless IS_CAUSAL, behind it
//
// Who owns what: an invocation owns four dimensions of one feature and goes over all chunks, forth and back.

struct Params {
  chunks: u32,
  batch: u32,
  heads: u32,
  heads_per_kv: u32,
  features: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> o_chunks: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> lse_chunks: array<f32>;
@group(0) @binding(3) var<storage, read> support: array<vec2<u32>>;
@group(0) @binding(4) var<storage, read> lse: array<f32>;
@group(0) @binding(5) var<storage, read_write> o: array<vec4<f32>>;

const QUADS = HEAD_DIM / 4u;
const EMPTY = -1.0e30;

// Σ exp(LSE_c − m) · O_c
struct Sum {
  o: vec4<f32>,
  m: f32,
}

// What an invocation owns.
struct Own {
  first_chunk: u32,
  head: u32,
  feature: u32,
  quad: u32,
}

fn quad_of(own: Own, chunk: u32) -> u32 {
  let row = (own.head * params.batch * params.chunks + own.first_chunk + chunk) * params.features + own.feature;
  return row * QUADS + own.quad;
}

fn with_chunk(sum: Sum, own: Own, chunk: u32) -> Sum {
  let lse_c = lse_chunks[((own.first_chunk + chunk) * params.heads + own.head) * params.features + own.feature];
  let m = max(sum.m, lse_c);
  return Sum(sum.o * exp(sum.m - m) + o_chunks[quad_of(own, chunk)] * exp(lse_c - m), m);
}

// A sum in the unit of the row's LSE.
fn share(sum: Sum, own: Own, chunk: u32) -> vec4<f32> {
  let row = (own.first_chunk + chunk) * params.heads * params.heads_per_kv + own.head * params.heads_per_kv;
  return sum.o * exp(sum.m - lse[row * params.features + own.feature]);
}

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>) {
  let index = id.y * grid.x * 64u + id.x;
  let row = index / QUADS;
  if row >= params.batch * params.heads * params.features { return; }
  let first_chunk = row / params.features / params.heads * params.chunks;
  let own = Own(first_chunk, row / params.features % params.heads, row % params.features, index % QUADS);

  var before = Sum(vec4<f32>(0.0), EMPTY);
  var next = 0u;
  for (var chunk = 0u; chunk < params.chunks; chunk++) {
    for (; next < min(support[chunk].x, params.chunks); next++) { before = with_chunk(before, own, next); }
    o[quad_of(own, chunk)] = share(before, own, chunk);
  }
  if IS_CAUSAL { return; }
  var behind = Sum(vec4<f32>(0.0), EMPTY);
  next = params.chunks;
  for (var left = params.chunks; left > 0u; left--) {
    for (; next > support[left - 1u].y; next--) { behind = with_chunk(behind, own, next - 1u); }
    let at = quad_of(own, left - 1u);
    o[at] = o[at] + share(behind, own, left - 1u);
  }
}
