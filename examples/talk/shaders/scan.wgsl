// The states of all chunks become one, or what each chunk may use of those before it.
//
//     not causal:  S[0] = Σ_c S[c]
//     causal:      S[c] = Σ_{b < c} S[b]
//
// states: [heads, num_chunks, state_quads] in quads of f32, in place. An invocation owns one quad of all chunks.

struct Params {
  num_chunks: u32,
  state_quads: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read_write> states: array<vec4<f32>>;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
  let quad = id.x;
  let head = id.y;
  if quad >= params.state_quads {
    return;
  }
  let base = head * params.num_chunks * params.state_quads + quad;
  var sum = vec4<f32>(0.0);
  // Four at a time: a load waits for no store but those of the turn before.
  for (var chunk = 0u; chunk < params.num_chunks; chunk += 4u) {
    let first = base + chunk * params.state_quads;
    let last = params.num_chunks - 1u - chunk;
    let a = states[first];
    let b = states[first + min(1u, last) * params.state_quads];
    let c = states[first + min(2u, last) * params.state_quads];
    let d = states[first + min(3u, last) * params.state_quads];
    if CAUSAL {
      states[first] = sum;
      if last >= 1u { states[first + params.state_quads] = sum + a; }
      if last >= 2u { states[first + 2u * params.state_quads] = sum + a + b; }
      if last >= 3u { states[first + 3u * params.state_quads] = sum + a + b + c; }
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
