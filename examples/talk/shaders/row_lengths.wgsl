// 1 / ‖x‖ of each row of x[rows, HEAD_DIM]; 0 where x is 0. Writes inverse[rows].
//
// Who owns what: an invocation owns a row.

struct Params {
  rows: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<Quad>;
@group(0) @binding(2) var<storage, read_write> inverse: array<f32>;

const QUADS = HEAD_DIM / 4u;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>) {
  let row = id.y * grid.x * 64u + id.x;
  if row >= params.rows { return; }
  var sum = 0.0;
  for (var quad = 0u; quad < QUADS; quad++) {
    let of_row = decode(x[row * QUADS + quad]);
    sum += dot(of_row, of_row);
  }
  var length = 0.0;
  if sum > 0.0 { length = 1.0 / sqrt(sum); }
  inverse[row] = length;
}
