// The tiles of flash attention on cooperative matrices, in f16, and Q, K and V on their way there. Head dimensions are
// padded with 0 to whole chunks, and so are rows. As in flash_tiles.wgsl, loads are never under a branch. Elements that
// f16 cannot hold pass as slots/row_units/ and slots/matrix_operand/ say: rows in units of their own, and what is left
// of f32 behind f16 as a second part, the rest.

// Quads in a row of a fragment and of a chunk; lanes that share a row of a chunk, each with two quads of it.
const MATRIX_QUADS = MATRIX_SIDE / 4u;
const CHUNK_QUADS = CHUNK_FRAGMENTS * MATRIX_QUADS;
const CHUNK_LANES = CHUNK_QUADS / 2u;

// Rows in workgroup memory, in quads. 16 bytes of padding (32 in f32) spread them over the banks: without it matrices
// load at less than half the speed. All are multiples of 16 bytes, which the widest loads of matrices need.
const K_ROW_QUADS = K_CHUNKS * CHUNK_QUADS;
const V_ROW_QUADS = V_CHUNKS * CHUNK_QUADS;
const K_STRIDE = K_ROW_QUADS + 2u;
const V_STRIDE = V_ROW_QUADS + 2u;
const CHUNK_STRIDE = CHUNK_QUADS + 2u;

var<workgroup> k_tile: array<vec4<f16>, TILE_KV * K_STRIDE + 2u>;
var<workgroup> v_tile: array<vec4<f16>, TILE_KV * V_STRIDE + 2u>;
// unroll REST in REST_PARTS {
  var<workgroup> k_tile_REST: array<vec4<f16>, TILE_KV * K_STRIDE + 2u>;
  var<workgroup> v_tile_REST: array<vec4<f16>, TILE_KV * V_STRIDE + 2u>;
  var<workgroup> p_tile_REST: array<vec4<f16>, ROW_LANES * MATRIX_SIDE * CHUNK_STRIDE>;
// }
var<workgroup> s_tile: array<vec4<f32>, ROW_LANES * MATRIX_SIDE * CHUNK_STRIDE>;
var<workgroup> p_tile: array<vec4<f16>, ROW_LANES * MATRIX_SIDE * CHUNK_STRIDE>;

// In x: the last visit at whose tile a row's maximum had grown too far. Subgroups that write it write the same. As
// large as 16 bytes because a driver (NVIDIA 580) loads matrices wrongly from arrays that smaller variables shift.
var<workgroup> grew_at: vec4<u32>;
const NEVER = 0xffffffffu;

// Loops over the first tile, over whole ones and over the others, and where they end: the last goes one turn further.
const IS_FIRST_first = true;
const IS_FIRST_whole = false;
const IS_FIRST_partial = false;
const IS_MASKED_first = true;

fn end_first(visits: Visits) -> u32 { return min(visits.count, 1u); }
fn end_whole(visits: Visits) -> u32 { return visits.num_whole; }
fn end_partial(visits: Visits) -> u32 { return select(0u, visits.count + 1u, visits.count > 0u); }

const LAST_QUAD = (HEAD_DIM - 1u) / 4u * 4u;
const LAST_QUAD_V = (HEAD_DIM_V - 1u) / 4u * 4u;

// Whether rows are whole chunks, so that no dimension lies outside.
const K_IS_WHOLE = HEAD_DIM == K_ROW_QUADS * 4u;
const V_IS_WHOLE = HEAD_DIM_V == V_ROW_QUADS * 4u;

// Where a fragment starts: key fragment (chunk and place in it), then fragment of head dimensions, likewise.
fn k_fragment(key_chunk: u32, key_place: u32, chunk: u32, place: u32) -> u32 {
  let key = (key_chunk * CHUNK_FRAGMENTS + key_place) * MATRIX_SIDE;
  return key * K_STRIDE + chunk * CHUNK_QUADS + place * MATRIX_QUADS;
}

fn v_fragment(key_chunk: u32, key_place: u32, chunk: u32, place: u32) -> u32 {
  let key = (key_chunk * CHUNK_FRAGMENTS + key_place) * MATRIX_SIDE;
  return key * V_STRIDE + chunk * CHUNK_QUADS + place * MATRIX_QUADS;
}

// P times the units of the rows of V passes through f16 in a unit that each row of P has for itself, its v_gain: with
// it the largest unit of V that the row has seen is V_UNIT_GOAL, or has grown since up to V_UNIT_MOST. P is at most 2⁸.
const V_UNIT_GOAL = 4.0;
const V_UNIT_MOST = 128.0;
const FIRST_V_GAIN = select(1.0, 8.507059173023462e37, HAS_UNITS); // 2¹²⁶

// A quad of Q.
fn fetch_q(tile: QTile, row: u32, quad: u32) -> Loaded {
  let first = params.q_offset + tile.batch * params.q_stride_batch + tile.head * params.q_stride_head;
  let inside_row = min(row, params.row_count - 1u);
  let inside_dim = min(quad * 4u, LAST_QUAD);
  let value = load_q(first + inside_row * params.q_stride_row + inside_dim, HEAD_DIM - inside_dim);
  let inside = quad * 4u < HEAD_DIM && row < params.row_count;
  return select(Loaded(), value, inside);
}

// The scale is applied to S, in f32; only its sign is here, so that the greatest S stays the greatest.
fn signed(half: vec4<f16>) -> vec4<f16> { return select(half, -half, params.softmax_scale_log2 < 0.0); }

// Rows of a K tile, and of a V tile, that the invocations of a workgroup load at a time, a quad each: K_FETCH_LANES of
// them share a row. Where they are no multiple of that, some load what others load too; where a row has fewer quads,
// some load for nothing.
const K_FETCH_ROWS = INVOCATIONS / K_FETCH_LANES;
const V_FETCH_ROWS = INVOCATIONS / V_FETCH_LANES;
const K_FETCHES_ARE_EXACT = K_FETCHES * INVOCATIONS == TILE_KV * K_FETCH_LANES && K_FETCH_LANES == K_ROW_QUADS;
const V_FETCHES_ARE_EXACT = V_FETCHES * INVOCATIONS == TILE_KV * V_FETCH_LANES && V_FETCH_LANES == V_ROW_QUADS;

// An invocation's share of the K or of the V tiles: a quad of a row in the tile. All that stays the same from tile to
// tile is computed once.
struct Share {
  row: u32,
  // Where the quad lies in workgroup memory, and where the row's unit; where there is none of them, behind the tile.
  place: u32,
  unit_place: u32,
  // Where it lies in the tensor in the tile of key 0, and in the row of the last key.
  first: u32,
  last: u32,
  // Elements from the quad on that its row has, at least 1; whether the quad is in the row at all.
  valid: u32,
  is_inside: bool,
}

fn k_share(tile: QTile, invocation: u32) -> Share {
  let row = invocation / K_FETCH_LANES;
  let quad = invocation % K_FETCH_LANES;
  let place = select(TILE_KV * K_STRIDE, row * K_STRIDE + quad, quad < K_ROW_QUADS);
  let unit_place = select(TILE_KV, row, quad == 0u);
  let dim = min(quad * 4u, LAST_QUAD);
  let first = params.k_offset + tile.batch * params.k_stride_batch + tile.head_kv * params.k_stride_head + dim;
  let last = first + (params.seqlen_kv - 1u) * params.k_stride_row;
  return Share(row, place, unit_place, first + row * params.k_stride_row, last, HEAD_DIM - dim, quad * 4u < HEAD_DIM);
}

fn v_share(tile: QTile, invocation: u32) -> Share {
  let row = invocation / V_FETCH_LANES;
  let quad = invocation % V_FETCH_LANES;
  let place = select(TILE_KV * V_STRIDE, row * V_STRIDE + quad, quad < V_ROW_QUADS);
  let unit_place = select(TILE_KV, row, quad == 0u);
  let dim = min(quad * 4u, LAST_QUAD_V);
  let first = params.v_offset + tile.batch * params.v_stride_batch + tile.head_kv * params.v_stride_head + dim;
  let last = first + (params.seqlen_kv - 1u) * params.v_stride_row;
  return Share(row, place, unit_place, first + row * params.v_stride_row, last, HEAD_DIM_V - dim,
    quad * 4u < HEAD_DIM_V);
}

// Past the last key it is that key again (or, where indices wrap, another): what it gives is masked.
fn fetch_k(share: Share, tile: u32, fetch: u32) -> Loaded {
  let index = share.first + (tile * TILE_KV + fetch * K_FETCH_ROWS) * params.k_stride_row;
  return load_k(min(index, share.last), share.valid);
}

fn fetch_v(share: Share, tile: u32, fetch: u32) -> Loaded {
  let index = share.first + (tile * TILE_KV + fetch * V_FETCH_ROWS) * params.v_stride_row;
  return load_v(min(index, share.last), share.valid);
}

// Without a branch, like everything in the loop over tiles: a row behind the tile goes to a place behind it.
fn place_k(share: Share, fetch: u32, fetched: Loaded) {
  let value = score_operand(fetched);
  let place = share.place + fetch * K_FETCH_ROWS * K_STRIDE;
  let exact_place = select(min(place, TILE_KV * K_STRIDE), place, K_FETCHES_ARE_EXACT);
  let is_inside = K_IS_WHOLE || share.is_inside;
  let scale = row_scale(largest_of_loaded(value), 1u, K_FETCH_LANES);
  set_k_unit(min(share.unit_place + fetch * K_FETCH_ROWS, TILE_KV), inverse(scale));
  k_tile[exact_place] = select(vec4<f16>(), to_half(value, scale), is_inside);
  // unroll REST in REST_PARTS {
    k_tile_REST[exact_place] = select(vec4<f16>(), to_rest(value, scale), is_inside);
  // }
}

// Past the last key V is 0, since 0 (its P) times a number that is none would reach O.
fn place_v(share: Share, tile: u32, is_whole: bool, fetch: u32, value: Loaded) {
  let place = share.place + fetch * V_FETCH_ROWS * V_STRIDE;
  let exact_place = select(min(place, TILE_KV * V_STRIDE), place, V_FETCHES_ARE_EXACT);
  let is_key = is_whole || tile * TILE_KV + fetch * V_FETCH_ROWS + share.row < params.seqlen_kv;
  let is_inside = is_key && (V_IS_WHOLE || share.is_inside);
  let scale = row_scale(largest_of_loaded(value), 1u, V_FETCH_LANES);
  set_v_unit(min(share.unit_place + fetch * V_FETCH_ROWS, TILE_KV), inverse(scale));
  v_tile[exact_place] = select(vec4<f16>(), to_half(value, scale), is_inside);
  // unroll REST in REST_PARTS {
    v_tile_REST[exact_place] = select(vec4<f16>(), to_rest(value, scale), is_inside);
  // }
}

// Whether this invocation's part of the V tile is free of infinities and NaNs; the lanes of a subgroup see all of it.
fn v_tile_is_finite(lane: u32) -> bool {
  var is_finite = true;
  for (var index = lane; index < TILE_KV * V_ROW_QUADS; index += LANES) {
    let value = vec4<f32>(v_tile[index / V_ROW_QUADS * V_STRIDE + index % V_ROW_QUADS]);
    is_finite = is_finite && all(are_finite(value));
  }
  return is_finite;
}

// Orders a subgroup's accesses to its scratch. Some of these stand under conditions that hold for one subgroup and not
// for another. lavapipe (Mesa 26.1) takes any barrier for one of the whole workgroup and goes astray there; its
// subgroups run in lockstep and need none.
fn scratch_barrier() {
  if !IN_LOCKSTEP { subgroupBarrier(); }
}

// A row of a chunk lies in CHUNK_LANES neighbouring lanes.
fn row_max(value: f32) -> f32 {
  var result = value;
  for (var distance = 1u; distance < CHUNK_LANES; distance *= 2u) {
    result = max(result, subgroupShuffleXor(result, distance));
  }
  return result;
}

fn row_sum(value: f32) -> f32 {
  var result = value;
  for (var distance = 1u; distance < CHUNK_LANES; distance *= 2u) {
    result += subgroupShuffleXor(result, distance);
  }
  return result;
}
