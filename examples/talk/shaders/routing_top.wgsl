// The `length` tokens that are nearest to a centroid, in rising order of their positions. Of equal ones the first are
// taken.
//
// Reads scores[lists of this call, columns, seqlen]. Writes members[lists, columns, length], of the lists from
// `first_list` on.
//
//   keys    = scores as integers of the same order
//   bound   = the length-th largest key, digit by digit: four passes over the keys count those of each of 256 digits
//   members = positions of keys > bound, and of the first keys = bound, as many as are left
//
// Who owns what: a workgroup owns a centroid. At the end an invocation owns some neighbouring tokens.

struct Params {
  seqlen: u32,
  columns: u32,
  length: u32,
  first_list: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> scores: array<f32>;
@group(0) @binding(2) var<storage, read_write> members: array<u32>;

var<workgroup> digits: array<atomic<u32>, 256>;
// The digits of the bound that are known, and how many keys of those digits are to be taken.
var<workgroup> bound: u32;
var<workgroup> wanted: u32;
var<workgroup> larger: array<u32, 256>;
var<workgroup> equal: array<u32, 256>;

// Integers in the order of the numbers.
fn key_of(score: f32) -> u32 {
  let bits = bitcast<u32>(score);
  return select(bits | 0x80000000u, ~bits, (bits >> 31u) == 1u);
}

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) invocation: u32) {
  let first = (workgroup.y * params.columns + workgroup.x) * params.seqlen;
  if invocation == 0u {
    bound = 0u;
    wanted = params.length;
  }
  var known = 0u;
  for (var digit_number = 0u; digit_number < 4u; digit_number++) {
    let shift = 24u - 8u * digit_number;
    atomicStore(&digits[invocation], 0u);
    workgroupBarrier();
    let so_far = bound;
    for (var token = invocation; token < params.seqlen; token += 256u) {
      let key = key_of(scores[first + token]);
      if (key & known) == so_far { atomicAdd(&digits[(key >> shift) & 255u], 1u); }
    }
    workgroupBarrier();
    if invocation == 0u {
      var digit = 255u;
      var left = wanted;
      while digit > 0u && atomicLoad(&digits[digit]) < left {
        left -= atomicLoad(&digits[digit]);
        digit -= 1u;
      }
      bound = so_far | (digit << shift);
      wanted = left;
    }
    known |= 255u << shift;
    workgroupBarrier();
  }

  let own_tokens = (params.seqlen + 255u) / 256u;
  let own = min(invocation * own_tokens, params.seqlen);
  let end = min(own + own_tokens, params.seqlen);
  var own_larger = 0u;
  var own_equal = 0u;
  for (var token = own; token < end; token++) {
    let key = key_of(scores[first + token]);
    own_larger += u32(key > bound);
    own_equal += u32(key == bound);
  }
  larger[invocation] = own_larger;
  equal[invocation] = own_equal;
  workgroupBarrier();
  var larger_before = 0u;
  var equal_before = 0u;
  for (var other = 0u; other < invocation; other++) {
    larger_before += larger[other];
    equal_before += equal[other];
  }
  let at = ((params.first_list + workgroup.y) * params.columns + workgroup.x) * params.length;
  for (var token = own; token < end; token++) {
    let key = key_of(scores[first + token]);
    if key > bound || (key == bound && equal_before < wanted) {
      members[at + larger_before + min(equal_before, wanted)] = token;
    }
    larger_before += u32(key > bound);
    equal_before += u32(key == bound);
  }
}
