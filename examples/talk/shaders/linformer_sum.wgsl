// Linformer: the parts of all chunks become projected keys and values, in the element of the tensors.
//
//     projected_k = Σ_c parts[0, c]        projected_v = Σ_c parts[1, c]
//
// parts: [2, num_chunks, KV heads, PADDED, HEAD_DIM] in f32. projected_k, projected_v: [KV heads, ROWS, HEAD_DIM]. An
// invocation owns a quad of both.

struct Params {
  num_chunks: u32,
  heads: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> parts: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> projected_k: array<Quad>;
@group(0) @binding(3) var<storage, read_write> projected_v: array<Quad>;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
  let head = id.x / (ROWS * DIM_QUADS);
  if head >= params.heads {
    return;
  }
  let at = head * PADDED * DIM_QUADS + id.x % (ROWS * DIM_QUADS);
  let len = params.heads * PADDED * DIM_QUADS;
  var keys = vec4<f32>(0.0);
  var values = vec4<f32>(0.0);
  for (var chunk = 0u; chunk < params.num_chunks; chunk++) {
    keys += parts[chunk * len + at];
    values += parts[(params.num_chunks + chunk) * len + at];
  }
  projected_k[id.x] = encode(keys);
  projected_v[id.x] = encode(values);
}
