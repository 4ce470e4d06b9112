// Rows of a tensor in another order.
//
// Reads x[heads, seqlen, HEAD_DIM], rows[groups, length] from entry `first_row` on, and inverse[heads, seqlen]. Writes
// gathered[groups, length, HEAD_DIM]: row n of a group is token rows[group, n] of the head of its list, with length 1
// if IS_UNIT. The list of a group is group / groups_per_list mod lists, and lists / heads_per_x are the heads of x.
//
// Who owns what: an invocation owns four dimensions of one row.

struct Params {
  seqlen: u32,
  // groups · length
  rows: u32,
  length: u32,
  groups_per_list: u32,
  lists: u32,
  heads_per_x: u32,
  first_row: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<Quad>;
@group(0) @binding(2) var<storage, read> rows: array<u32>;
@group(0) @binding(3) var<storage, read> inverse: array<f32>;
@group(0) @binding(4) var<storage, read_write> gathered: array<Quad>;

const QUADS = HEAD_DIM / 4u;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>) {
  let index = id.y * grid.x * 64u + id.x;
  if index >= params.rows * QUADS { return; }
  let row = index / QUADS;
  let list = row / params.length / params.groups_per_list % params.lists;
  let source = list / params.heads_per_x * params.seqlen + min(rows[params.first_row + row], params.seqlen - 1u);
  var quad = x[source * QUADS + index % QUADS];
  if IS_UNIT { quad = encode(decode(quad) * inverse[source]); }
  gathered[index] = quad;
}
