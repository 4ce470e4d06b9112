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
  let base = head * params.num_chunks * STATE_QUADS + id.x;
  var sum = vec4<f32>(0.0);
  // Four at a time: a load waits for no store but those of the turn before.
  for (var chunk = 0u; chunk < params.num_chunks; chunk += 4u) {
    let first = base + chunk * STATE_QUADS;
    let last = params.num_chunks - 1u - chunk;
    let a = state_of(head, chunk, tile, id.x, stabiliser);
    let b = state_of(head, chunk + min(1u, last), tile, id.x, stabiliser);
    let c = state_of(head, chunk + min(2u, last), tile, id.x, stabiliser);
    let d = state_of(head, chunk + min(3u, last), tile, id.x, stabiliser);
    if CAUSAL {
      states[first] = sum;
      if last >= 1u { states[first + STATE_QUADS] = sum + a; }
      if last >= 2u { states[first + 2u * STATE_QUADS] = sum + a + b; }
      if last >= 3u { states[first + 3u * STATE_QUADS] = sum + a + b + c; }
    }
    sum += a;
    if last >= 1u { sum += b; }
    if last >= 2u { sum += c; }
    if last >= 3u { sum += d; }
  }
  if !CAUSAL {
    states[base] = sum;
  }
}

// A quad of T_c.
fn state_of(head: u32, chunk: u32, tile: u32, quad: u32, stabiliser: f32) -> vec4<f32> {
  let number = head * params.num_chunks + chunk;
  let factor = exp(maxima[number * params.num_tiles + tile] - stabiliser);
  let plain = states[number * STATE_QUADS + FEATURES * COLUMNS + quad % COLUMNS];
  return factor * states[number * STATE_QUADS + quad] + EPSILON * plain;
}
