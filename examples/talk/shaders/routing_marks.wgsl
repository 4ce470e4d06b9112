// Which centroids have taken a token.
//
// Reads members[lists, columns, length]. Sets bits of taken[lists, seqlen, words], which must be 0 before: bit c mod 32
// of word c / 32 for centroid c.
//
// Who owns what: an invocation owns a member.

struct Params {
  seqlen: u32,
  columns: u32,
  length: u32,
  words: u32,
  // lists · columns · length
  members: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> members: array<u32>;
@group(0) @binding(2) var<storage, read_write> taken: array<atomic<u32>>;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>) {
  let index = id.y * grid.x * 64u + id.x;
  if index >= params.members { return; }
  let centroid = index / params.length % params.columns;
  let list = index / params.length / params.columns;
  let token = min(members[index], params.seqlen - 1u);
  atomicOr(&taken[(list * params.seqlen + token) * params.words + centroid / 32u], 1u << (centroid % 32u));
}
