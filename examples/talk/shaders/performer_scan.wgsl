// Performer: the states of all chunks become one, or what each chunk may use of those before it, all under one
// stabiliser M.
//
//     T_c[f] = exp(M_c,f − M) · S_c[f] + ε · S_c[m]         M_c,f: that of the chunk and the feature's tile
//     not causal:  S[0] = Σ_c T_c            causal:  S[c] = Σ_{b < c} T_b
//
// states: [KV heads, num_chunks, m + 1, 4 · COLUMNS], in place; the last row stays as it is. maxima: [KV heads,
// num_chunks, num_tiles]. An invocation owns one quad of a feature, of all chunks.

struct Params {
  num_chunks: u32,
  num_tiles: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> maxima: array<f32>;
@group(0) @binding(2) var<storage, read> stabilisers: array<f32>;
@group(0) @binding(3) var<storage, read_write> states: array<vec4<f32>>;

const EPSILON = 1e-4;
const COLUMNS = HEAD_DIM / 4u + 1u;
const STATE_QUADS = (FEATURES + 1u) * COLUMNS;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
  let head = id.y;
  if id.x >= FEATURES * COLUMNS {
    return;
  }
  let tile = id.x / COLUMNS / TILE;
  let stabiliser = stabilisers[head];
  let base = head * params.num_chunks * STATE_QUADS;
  var sum = vec4<f32>(0.0);
  for (var chunk = 0u; chunk < params.num_chunks; chunk++) {
    let first = base + chunk * STATE_QUADS;
    let factor = exp(maxima[(head * params.num_chunks + chunk) * params.num_tiles + tile] - stabiliser);
    let state = factor * states[first + id.x] + EPSILON * states[first + FEATURES * COLUMNS + id.x % COLUMNS];
    if CAUSAL {
      states[first + id.x] = sum;
    }
    sum += state;
  }
  if !CAUSAL {
    states[base + id.x] = sum;
  }
}
