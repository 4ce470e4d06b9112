// Counting sort, first step: how many tokens of each bucket a block of tokens has.
//
// Reads keys[lists, seqlen], each below BUCKETS. Writes counts[lists, blocks, BUCKETS].
//
// Who owns what: a workgroup owns a block of SORT_BLOCK tokens of a list.

struct Params {
  seqlen: u32,
  blocks: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> keys: array<u32>;
@group(0) @binding(2) var<storage, read_write> counts: array<u32>;

var<workgroup> counted: array<atomic<u32>, BUCKETS>;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) invocation: u32) {
  let list = workgroup.y;
  let block = workgroup.x;
  for (var bucket = invocation; bucket < BUCKETS; bucket += 256u) { atomicStore(&counted[bucket], 0u); }
  workgroupBarrier();
  let end = min((block + 1u) * SORT_BLOCK, params.seqlen);
  for (var token = block * SORT_BLOCK + invocation; token < end; token += 256u) {
    atomicAdd(&counted[min(keys[list * params.seqlen + token], BUCKETS - 1u)], 1u);
  }
  workgroupBarrier();
  let first = (list * params.blocks + block) * BUCKETS;
  for (var bucket = invocation; bucket < BUCKETS; bucket += 256u) {
    counts[first + bucket] = atomicLoad(&counted[bucket]);
  }
}
