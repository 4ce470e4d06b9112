// A tensor in f32, cut into chunks, and what its rows add to the exponents of their features.
//
// Reads x[batch, heads, seqlen, HEAD_DIM]. Writes rows[heads, batch, padded, HEAD_DIM], 0 past seqlen, and
// shifts[heads, batch, padded] = −‖x‖² / (2 √HEAD_DIM). `padded` is seqlen in whole chunks.
//
// Who owns what: an invocation owns a row.

struct Params {
  seqlen: u32,
  padded: u32,
  batch: u32,
  heads: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<Quad>;
@group(0) @binding(2) var<storage, read_write> rows: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> shifts: array<f32>;

const QUADS = HEAD_DIM / 4u;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>) {
  let row = id.y * grid.x * 64u + id.x;
  if row >= params.batch * params.heads * params.padded { return; }
  let token = row % params.padded;
  let head = row / params.padded / params.batch;
  let batch = row / params.padded % params.batch;
  let source = (batch * params.heads + head) * params.seqlen + token;
  var sum = 0.0;
  for (var quad = 0u; quad < QUADS; quad++) {
    var of_row = vec4<f32>(0.0);
    if token < params.seqlen { of_row = decode(x[source * QUADS + quad]); }
    rows[row * QUADS + quad] = of_row;
    sum += dot(of_row, of_row);
  }
  shifts[row] = -sum / (2.0 * sqrt(f32(HEAD_DIM)));
}
