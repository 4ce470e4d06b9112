// Counting sort, third step: tokens in the order of (bucket, position).
//
// Reads keys[lists, seqlen] and what `sort_scan.wgsl` made, starts[lists, blocks, BUCKETS]. Writes order[lists,
// seqlen], the token at each place, and place_of[lists, seqlen], the place of each token.
//
// Who owns what: a workgroup owns a block of SORT_BLOCK tokens of a list, and goes over it 256 tokens at a time. An
// invocation counts the tokens of its bucket before its own. So the sort is stable, and every run gives the same order.

struct Params {
  seqlen: u32,
  blocks: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> keys: array<u32>;
@group(0) @binding(2) var<storage, read> starts: array<u32>;
@group(0) @binding(3) var<storage, read_write> order: array<u32>;
@group(0) @binding(4) var<storage, read_write> place_of: array<u32>;

// Where the next token of a bucket goes.
var<workgroup> next: array<atomic<u32>, BUCKETS>;
var<workgroup> buckets: array<u32, 256>;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) invocation: u32) {
  let first_token = workgroup.y * params.seqlen;
  let first = (workgroup.y * params.blocks + workgroup.x) * BUCKETS;
  for (var bucket = invocation; bucket < BUCKETS; bucket += 256u) {
    atomicStore(&next[bucket], starts[first + bucket]);
  }
  for (var step = 0u; step < SORT_BLOCK; step += 256u) {
    let token = workgroup.x * SORT_BLOCK + step + invocation;
    let exists = token < params.seqlen;
    let bucket = min(keys[first_token + min(token, params.seqlen - 1u)], BUCKETS - 1u);
    // No bucket has the number BUCKETS.
    buckets[invocation] = select(BUCKETS, bucket, exists);
    workgroupBarrier();
    var rank = 0u;
    for (var other = 0u; other < invocation; other++) { rank += u32(buckets[other] == bucket); }
    if exists {
      let place = atomicLoad(&next[bucket]) + rank;
      order[first_token + place] = token;
      place_of[first_token + token] = place;
    }
    workgroupBarrier();
    if exists { atomicAdd(&next[bucket], 1u); }
    workgroupBarrier();
  }
}
