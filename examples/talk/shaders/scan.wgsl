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
  for (var chunk = 0u; chunk < params.num_chunks; chunk++) {
    let at = base + chunk * params.state_quads;
    let state = states[at];
    if CAUSAL {
      states[at] = sum;
    }
    sum += state;
  }
  if !CAUSAL {
    states[base] = sum;
  }
}
