// Linformer with mean pooling: each projected key is the mean of a segment of keys, and so for values.
//
//     projected_k[r] = mean of k_j,  ⌊r N / ROWS⌋ ≤ j < ⌊(r + 1) N / ROWS⌋        N = seqlen
//
// k, v: [KV heads of all sequences, seqlen, HEAD_DIM]. projected_k, projected_v: [KV heads, ROWS, HEAD_DIM]. Neighbours
// in a workgroup own the quads of a row.

struct Params {
  seqlen: u32,
  heads: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> k: array<Quad>;
@group(0) @binding(2) var<storage, read> v: array<Quad>;
@group(0) @binding(3) var<storage, read_write> projected_k: array<Quad>;
@group(0) @binding(4) var<storage, read_write> projected_v: array<Quad>;

const DIM_QUADS = HEAD_DIM / 4u;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
  let quad = id.x % DIM_QUADS;
  let row = id.x / DIM_QUADS % ROWS;
  let head = id.x / DIM_QUADS / ROWS;
  if head >= params.heads {
    return;
  }
  // In two steps, so that no product passes 32 bits.
  let whole = params.seqlen / ROWS;
  let rest = params.seqlen % ROWS;
  let first = row * whole + row * rest / ROWS;
  let end = (row + 1u) * whole + (row + 1u) * rest / ROWS;
  var keys = vec4<f32>(0.0);
  var values = vec4<f32>(0.0);
  for (var token = first; token < end; token++) {
    let at = (head * params.seqlen + token) * DIM_QUADS + quad;
    keys += decode(k[at]);
    values += decode(v[at]);
  }
  projected_k[id.x] = encode(keys / f32(end - first));
  projected_v[id.x] = encode(values / f32(end - first));
}
