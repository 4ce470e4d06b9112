// Performer: the stabiliser of a head's keys, M = max over its chunks and tiles of features.
//
// maxima: [KV heads, len]. stabilisers: [KV heads]. A workgroup owns a head.

struct Params {
  len: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> maxima: array<f32>;
@group(0) @binding(2) var<storage, read_write> stabilisers: array<f32>;

var<workgroup> largest_of: array<f32, 64>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) invocation: u32) {
  var largest = -1e38;
  for (var i = invocation; i < params.len; i += 64u) {
    largest = max(largest, maxima[workgroup.x * params.len + i]);
  }
  largest_of[invocation] = largest;
  workgroupBarrier();
  if invocation == 0u {
    for (var i = 0u; i < 64u; i++) {
      largest = max(largest, largest_of[i]);
    }
    stabilisers[workgroup.x] = largest;
  }
}
