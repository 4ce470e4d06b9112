// Each token gets the mean of what it got in its clusters.
//
// Reads o_clusters[lists, columns, length, HEAD_DIM], members[lists, columns, length] in rising order, and taken[lists,
// seqlen, words], a bit for each cluster of a token. Writes O[lists, seqlen, HEAD_DIM], 0 for a token in no cluster.
//
// Who owns what: an invocation owns four dimensions of one row. It adds its clusters up in rising order.

struct Params {
  seqlen: u32,
  columns: u32,
  length: u32,
  words: u32,
  lists: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> o_clusters: array<Quad>;
@group(0) @binding(2) var<storage, read> members: array<u32>;
@group(0) @binding(3) var<storage, read> taken: array<u32>;
@group(0) @binding(4) var<storage, read_write> o: array<Quad>;

const QUADS = HEAD_DIM / 4u;

// The place of a token in a rising list that has it.
fn place_of(token: u32, first: u32) -> u32 {
  var low = 0u;
  var high = params.length - 1u;
  while low < high {
    let middle = (low + high) / 2u;
    if members[first + middle] < token { low = middle + 1u; } else { high = middle; }
  }
  return low;
}

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>) {
  let index = id.y * grid.x * 64u + id.x;
  let row = index / QUADS;
  if row >= params.lists * params.seqlen { return; }
  let list = row / params.seqlen;
  let token = row % params.seqlen;
  var sum = vec4<f32>(0.0);
  var count = 0.0;
  for (var word = 0u; word < params.words; word++) {
    var bits = taken[row * params.words + word];
    while bits != 0u {
      let first = (list * params.columns + word * 32u + firstTrailingBit(bits)) * params.length;
      bits &= bits - 1u;
      sum += decode(o_clusters[(first + place_of(token, first)) * QUADS + index % QUADS]);
      count += 1.0;
    }
  }
  o[index] = encode(sum / max(count, 1.0));
}
