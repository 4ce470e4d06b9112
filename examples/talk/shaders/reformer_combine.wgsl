// The rounds of Reformer become one answer, and tokens come back to their own order.
//
// Reads o_rounds[rounds, lists, seqlen, HEAD_DIM] and lse_rounds[rounds, lists, seqlen] in sorted order,
// place_of[rounds, lists, seqlen], V[lists / heads_per_v, seqlen, HEAD_DIM]. Writes O[lists, seqlen, HEAD_DIM]. A list
// is a sequence and a query head.
//
//   for each token, over the rounds r:
//     O = Σ exp(lse_r − logsumexp lse) · O_r
//   A token that sees nothing in a round has lse_r = −∞ there. If it sees nothing in all of them, it sees itself,
//   and O = V.
//
// Who owns what: an invocation owns four dimensions of one row.

struct Params {
  seqlen: u32,
  rounds: u32,
  lists: u32,
  heads_per_v: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> o_rounds: array<Quad>;
@group(0) @binding(2) var<storage, read> lse_rounds: array<f32>;
@group(0) @binding(3) var<storage, read> place_of: array<u32>;
@group(0) @binding(4) var<storage, read> v: array<Quad>;
@group(0) @binding(5) var<storage, read_write> o: array<Quad>;

const QUADS = HEAD_DIM / 4u;
// Stands for −∞.
const MASKED = -3.0e38;

// LSE of a round. Its bits show −∞, because WGSL compilers may assume that there are no infinities.
fn load_lse(index: u32) -> f32 {
  let value = lse_rounds[index];
  return select(value, MASKED, bitcast<u32>(value) == 0xff800000u);
}

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>) {
  let index = id.y * grid.x * 64u + id.x;
  let row = index / QUADS;
  let quad = index % QUADS;
  if row >= params.lists * params.seqlen { return; }
  let list = row / params.seqlen;
  let token = row % params.seqlen;

  var m = MASKED;
  for (var round = 0u; round < params.rounds; round++) {
    let first = (round * params.lists + list) * params.seqlen;
    m = max(m, load_lse(first + place_of[first + token]));
  }
  var l = 0.0;
  var sum = vec4<f32>(0.0);
  for (var round = 0u; round < params.rounds; round++) {
    let first = (round * params.lists + list) * params.seqlen;
    let place = first + place_of[first + token];
    let lse = load_lse(place);
    if lse != MASKED {
      let weight = exp(lse - m);
      l += weight;
      sum = fma(vec4<f32>(weight), decode(o_rounds[place * QUADS + quad]), sum);
    }
  }
  var own = v[(list / params.heads_per_v * params.seqlen + token) * QUADS + quad];
  if l != 0.0 { own = encode(sum / l); }
  o[index] = own;
}
