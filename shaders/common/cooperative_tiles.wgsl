// The tiles of flash attention on cooperative matrices, in f16, and Q, K and V on their way there. Head dimensions are
// padded with 0 to whole fragments, and so are rows and keys outside the tensors. As in flash_tiles.wgsl, loads are never
// under a branch.

// Quads in a row of a fragment.
const MATRIX_QUADS = MATRIX_SIDE / 4u;

// Rows in workgroup memory, in quads; 16 bytes of padding spread them over the banks (without it matrices load at less
// than half the speed), and keep them multiples of 16 bytes.
const K_ROW_QUADS = K_FRAGMENTS * MATRIX_QUADS;
const V_ROW_QUADS = V_FRAGMENTS * MATRIX_QUADS;
const K_STRIDE = K_ROW_QUADS + 2u;
const V_STRIDE = V_ROW_QUADS + 2u;
const S_STRIDE = MATRIX_QUADS + 1u;
const P_STRIDE = MATRIX_QUADS + 1u;

var<workgroup> k_tile: array<vec4<f16>, TILE_KV * K_STRIDE>;
var<workgroup> v_tile: array<vec4<f16>, TILE_KV * V_STRIDE>;
var<workgroup> s_tile: array<vec4<f32>, TILE_Q * S_STRIDE>;
var<workgroup> p_tile: array<vec4<f16>, TILE_Q * P_STRIDE>;

const LAST_QUAD = (HEAD_DIM - 1u) / 4u * 4u;
const LAST_QUAD_V = (HEAD_DIM_V - 1u) / 4u * 4u;

// Whether rows are whole fragments, so that no dimension lies outside.
const K_IS_WHOLE = HEAD_DIM % MATRIX_SIDE == 0u;
const V_IS_WHOLE = HEAD_DIM_V % MATRIX_SIDE == 0u;

// A quad of Q. The scale is applied to S, in f32; only its sign is here, so that the greatest S stays the greatest.
fn fetch_q(tile: QTile, row: u32, quad: u32) -> vec4<f16> {
  let first = params.q_offset + tile.batch * params.q_stride_batch + tile.head * params.q_stride_head;
  let inside_row = min(tile.row + row, params.row_count - 1u);
  let inside_dim = min(quad * 4u, LAST_QUAD);
  let value = decode(load_q(first + inside_row * params.q_stride_row + inside_dim, HEAD_DIM - inside_dim));
  let inside = quad * 4u < HEAD_DIM && tile.row + row < params.row_count;
  let signed = select(value, -value, params.softmax_scale_log2 < 0.0);
  return vec4<f16>(select(vec4<f32>(0.0), signed, inside));
}

// Quad `index` of the K tile that starts at `key_first`.
fn fetch_k(tile: QTile, key_first: u32, index: u32) -> Loaded {
  let first = params.k_offset + tile.batch * params.k_stride_batch + tile.head_kv * params.k_stride_head;
  let key = key_first + index / K_ROW_QUADS;
  let dim = index % K_ROW_QUADS * 4u;
  let inside_dim = select(min(dim, LAST_QUAD), dim, K_IS_WHOLE);
  let value = load_k(first + min(key, params.seqlen_kv - 1u) * params.k_stride_row + inside_dim, HEAD_DIM - inside_dim);
  return select(Loaded(), value, key < params.seqlen_kv && (K_IS_WHOLE || dim < HEAD_DIM));
}

fn place_k(index: u32, value: Loaded) {
  if index < TILE_KV * K_ROW_QUADS {
    k_tile[index / K_ROW_QUADS * K_STRIDE + index % K_ROW_QUADS] = vec4<f16>(decode(value));
  }
}

fn fetch_v(tile: QTile, key_first: u32, index: u32) -> Loaded {
  let first = params.v_offset + tile.batch * params.v_stride_batch + tile.head_kv * params.v_stride_head;
  let key = key_first + index / V_ROW_QUADS;
  let dim = index % V_ROW_QUADS * 4u;
  let inside_dim = select(min(dim, LAST_QUAD_V), dim, V_IS_WHOLE);
  let value = load_v(first + min(key, params.seqlen_kv - 1u) * params.v_stride_row + inside_dim, HEAD_DIM_V - inside_dim);
  return select(Loaded(), value, key < params.seqlen_kv && (V_IS_WHOLE || dim < HEAD_DIM_V));
}

fn place_v(index: u32, value: Loaded) {
  if index < TILE_KV * V_ROW_QUADS {
    v_tile[index / V_ROW_QUADS * V_STRIDE + index % V_ROW_QUADS] = vec4<f16>(decode(value));
  }
}

// Whether this invocation's part of the V tile is free of infinities and NaNs; the lanes of a subgroup see all of it.
// Told by the exponent's bits: WGSL compilers may assume that there are none.
fn v_tile_is_finite(lane: u32) -> bool {
  var is_finite = true;
  for (var index = lane; index < TILE_KV * V_ROW_QUADS; index += LANES) {
    let value = vec4<f32>(v_tile[index / V_ROW_QUADS * V_STRIDE + index % V_ROW_QUADS]);
    let exponents = bitcast<vec4<u32>>(value) & vec4<u32>(0x7f800000u);
    is_finite = is_finite && all(exponents != vec4<u32>(0x7f800000u));
  }
  return is_finite;
}

// Orders a subgroup's accesses to its scratch. Some of these stand under conditions that hold for one subgroup and not
// for another. lavapipe (Mesa 26.1) takes any barrier for one of the whole workgroup and goes astray there; its
// subgroups run in lockstep and need none.
fn scratch_barrier() {
  if !IN_LOCKSTEP { subgroupBarrier(); }
}

// A row lies in the lanes that differ in their multiple of MATRIX_SIDE.
fn row_max(value: f32) -> f32 {
  var result = value;
  for (var distance = MATRIX_SIDE; distance < LANES; distance *= 2u) {
    result = max(result, subgroupShuffleXor(result, distance));
  }
  return result;
}

fn row_sum(value: f32) -> f32 {
  var result = value;
  for (var distance = MATRIX_SIDE; distance < LANES; distance *= 2u) { result += subgroupShuffleXor(result, distance); }
  return result;
}
