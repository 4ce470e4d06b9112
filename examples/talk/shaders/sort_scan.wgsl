// Counting sort, second step: where the first token of each bucket and block goes.
//
// Changes counts[lists, blocks, BUCKETS] in place: each becomes the number of tokens of its list in lower buckets, and
// in its bucket in earlier blocks.
//
// Who owns what: a workgroup owns a list. An invocation owns every 256th bucket, and then sums some neighbouring ones.

struct Params {
  blocks: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read_write> counts: array<u32>;

const OWN = (BUCKETS + 255u) / 256u;

var<workgroup> totals: array<u32, BUCKETS>;
var<workgroup> sums: array<u32, 256>;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) invocation: u32) {
  let first = workgroup.x * params.blocks * BUCKETS;
  for (var bucket = invocation; bucket < BUCKETS; bucket += 256u) {
    var total = 0u;
    for (var block = 0u; block < params.blocks; block++) { total += counts[first + block * BUCKETS + bucket]; }
    totals[bucket] = total;
  }
  workgroupBarrier();

  // totals[bucket] = tokens in lower buckets
  let own = min(invocation * OWN, BUCKETS);
  let end = min(own + OWN, BUCKETS);
  var sum = 0u;
  for (var bucket = own; bucket < end; bucket++) { sum += totals[bucket]; }
  sums[invocation] = sum;
  workgroupBarrier();
  var start = 0u;
  for (var other = 0u; other < invocation; other++) { start += sums[other]; }
  for (var bucket = own; bucket < end; bucket++) {
    let total = totals[bucket];
    totals[bucket] = start;
    start += total;
  }
  workgroupBarrier();

  for (var bucket = invocation; bucket < BUCKETS; bucket += 256u) {
    var next = totals[bucket];
    for (var block = 0u; block < params.blocks; block++) {
      let at = first + block * BUCKETS + bucket;
      let count = counts[at];
      counts[at] = next;
      next += count;
    }
  }
}
