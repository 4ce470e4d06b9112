// Products of tokens and columns: a workgroup of 256 invocations owns 64 tokens and goes over columns, 64 at a time. An
// invocation has 4 × 4 products: tokens `token_lane` + 0, 16, 32, 48, columns `column_lane` + 0, 16, 32, 48.
//
// x is a tensor [batch, heads, seqlen, HEAD_DIM]; columns are [sets, columns, HEAD_DIM] in f32. `params` has seqlen and
// columns.

const QUADS = HEAD_DIM / 4u;
const SIDE = 64u;
const LANES = 16u;
// Quads of head dimensions that pass through workgroup memory at a time.
const DEPTH = 4u;

@group(0) @binding(1) var<storage, read> x: array<Quad>;
@group(0) @binding(2) var<storage, read> columns: array<vec4<f32>>;

var<workgroup> x_tile: array<vec4<f32>, 256>;
var<workgroup> column_tile: array<vec4<f32>, 256>;

// Of each token the products with four columns.
struct Products {
  token_0: vec4<f32>,
  token_1: vec4<f32>,
  token_2: vec4<f32>,
  token_3: vec4<f32>,
}

// `head` counts heads of all sequences of x. All arguments are uniform but `invocation`.
fn products(head: u32, first_token: u32, column_set: u32, first_column: u32, invocation: u32) -> Products {
  let token_lane = invocation % LANES;
  let column_lane = invocation / LANES;
  let own_row = invocation / DEPTH;
  let own_quad = invocation % DEPTH;
  let token = first_token + own_row;
  let column = first_column + own_row;
  var token_0 = vec4<f32>(0.0);
  var token_1 = vec4<f32>(0.0);
  var token_2 = vec4<f32>(0.0);
  var token_3 = vec4<f32>(0.0);
  for (var first = 0u; first < QUADS; first += DEPTH) {
    let quad = first + own_quad;
    var of_token = vec4<f32>(0.0);
    var of_column = vec4<f32>(0.0);
    if quad < QUADS && token < params.seqlen { of_token = decode(x[(head * params.seqlen + token) * QUADS + quad]); }
    if quad < QUADS && column < params.columns {
      of_column = columns[(column_set * params.columns + column) * QUADS + quad];
    }
    workgroupBarrier();
    x_tile[own_quad * SIDE + own_row] = of_token;
    column_tile[own_quad * SIDE + own_row] = of_column;
    workgroupBarrier();
    for (var depth = 0u; depth < DEPTH; depth++) {
      let x_at = depth * SIDE + token_lane;
      let c_at = depth * SIDE + column_lane;
      let x_0 = x_tile[x_at];
      let x_1 = x_tile[x_at + 16u];
      let x_2 = x_tile[x_at + 32u];
      let x_3 = x_tile[x_at + 48u];
      let c_0 = column_tile[c_at];
      let c_1 = column_tile[c_at + 16u];
      let c_2 = column_tile[c_at + 32u];
      let c_3 = column_tile[c_at + 48u];
      token_0 += vec4<f32>(dot(x_0, c_0), dot(x_0, c_1), dot(x_0, c_2), dot(x_0, c_3));
      token_1 += vec4<f32>(dot(x_1, c_0), dot(x_1, c_1), dot(x_1, c_2), dot(x_1, c_3));
      token_2 += vec4<f32>(dot(x_2, c_0), dot(x_2, c_1), dot(x_2, c_2), dot(x_2, c_3));
      token_3 += vec4<f32>(dot(x_3, c_0), dot(x_3, c_1), dot(x_3, c_2), dot(x_3, c_3));
    }
  }
  return Products(token_0, token_1, token_2, token_3);
}
