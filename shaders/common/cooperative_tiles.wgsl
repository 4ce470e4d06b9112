// The tiles of flash attention on cooperative matrices, and K and V on their way there. Head dimensions are padded with
// 0 to whole chunks, and so are rows. As in flash_tiles.wgsl, loads are never under a branch.

// Lanes beside each other have quads beside each other, so that a subgroup reads and writes without bank conflicts.
const HIGH = CHUNK_LANES * 4u;
const S_STRIDE = P_STRIDE;
fn scale_of_row(largest: f32) -> f32 { return row_scale(largest, 1u, CHUNK_LANES); }

// unroll PART in PARTS, W in WIDTHS, TENSOR in WALKED_W {
  var<workgroup> TENSOR_tile_PART: array<vec4<f16>, TILE_KV * W_STRIDE + 2u>;
// }

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

// The steps between the two barriers of a turn: fetched tiles are placed, and P or rowmax(S) is taken.
const PLACES_place = true;
const PLACES_take = false;

// P times the units of the rows of V passes through f16 in a unit of its row of P, v_gain: the largest unit of V that
// the row has seen becomes V_UNIT_GOAL with it, and may then grow up to V_UNIT_MOST. P is at most 2⁸.
const V_UNIT_GOAL = 4.0;
const V_UNIT_MOST = 128.0;
const FIRST_V_GAIN = select(1.0, 8.507059173023462e37, HAS_UNITS); // 2¹²⁶

// A share of an invocation of the K or of the V tiles, a quad of a row, or several of a wide row that has a unit: what
// stays the same from tile to tile. `place` and `unit_place` are the quad's in workgroup memory and that of its row's
// unit, behind the tile where there is none; `first` is the quad's place in the tensor in the tile of key 0, `last` the
// one in the row of the last key, where `valid` elements of a row are left, at least 1.
struct Share {
  row: u32,
  place: u32,
  unit_place: u32,
  first: u32,
  last: u32,
  valid: u32,
  is_inside: bool,
  // unroll PACKED in PACKED_SEQUENCES {
    sequence: Sequence,
  // }
}

// unroll W in WIDTHS, TENSOR in WALKED_W {
  // Whether rows are whole chunks, so that no dimension lies outside.
  const W_IS_WHOLE = HEAD_DIM_W == W_ROW_QUADS * 4u;
  // Rows of a tile that a workgroup loads at a time: W_FETCH_LANES invocations share a row, W_FETCH_PARTS quads each,
  // W_FETCH_LANES apart. Where that is not exact, some load what others load too, or for nothing.
  const W_FETCH_ROWS = INVOCATIONS / W_FETCH_LANES;
  const W_ROWS_ARE_EXACT = W_FETCH_LANES * W_FETCH_PARTS == W_ROW_QUADS;
  const W_FETCHES_ARE_EXACT = W_FETCHES * INVOCATIONS == TILE_KV * W_FETCH_LANES && W_ROWS_ARE_EXACT;
  struct W_Fetched {
    // unroll P in W_FETCH_PARTS {
      part_P: Loaded,
    // }
  }

  // Where a fragment starts: the key fragment (chunk and place in it), then the fragment of head dimensions.
  fn TENSOR_fragment(key_chunk: u32, key_place: u32, chunk: u32, place: u32) -> u32 {
    let key = (key_chunk * CHUNK_FRAGMENTS + key_place) * MATRIX_SIDE;
    return key * W_STRIDE + chunk * CHUNK_QUADS + place * MATRIX_QUADS;
  }

  fn TENSOR_share(tile: QTile, invocation: u32) -> Share {
    let row = invocation / W_FETCH_LANES;
    let quad = invocation % W_FETCH_LANES;
    let place = select(TILE_KV * W_STRIDE, row * W_STRIDE + quad, quad < W_ROW_QUADS);
    let unit_place = select(TILE_KV, row, quad == 0u);
    let dim = min(quad * 4u, (HEAD_DIM_W - 1u) / 4u * 4u);
    // unroll ORDER in ROWS_IN_ORDER, EXTENT in EXTENT_OF_TILE, ATK in AT_K {
      let head = TENSOR_head(tile.ATK, tile.head_kv);
      let last = head + dim + (EXTENT.seqlen_kv - 1u) * params.TENSOR_stride_row;
      let first = head + dim + row * params.TENSOR_stride_row;
    // }
    // unroll PLACE in PLACES_OF_KEYS {
      // Keys in pages are found one by one: `first` is the quad's place in row 0 of page 0, `last` the sequence.
      let first = TENSOR_head(0u, tile.head_kv) + dim;
      let last = tile.batch;
    // }
    // unroll DENSE in DENSE_SEQUENCES {
      return Share(row, place, unit_place, first, last, HEAD_DIM_W - dim, quad * 4u < HEAD_DIM_W);
    // }
    // unroll PACKED in PACKED_SEQUENCES {
      return Share(row, place, unit_place, first, last, HEAD_DIM_W - dim, quad * 4u < HEAD_DIM_W, tile.sequence);
    // }
  }

  // Past the last key it is that key again (or, where indices wrap, another): what it gives is masked.
  fn fetch_TENSOR(share: Share, tile: u32, fetch: u32) -> W_Fetched {
    // unroll ORDER in ROWS_IN_ORDER {
      let index = min(share.first + (tile * TILE_KV + fetch * W_FETCH_ROWS) * params.TENSOR_stride_row, share.last);
    // }
    // unroll PLACE in PLACES_OF_KEYS, EXTENT in EXTENT_OF_SHARE {
      let key = tile * TILE_KV + fetch * W_FETCH_ROWS + share.row;
      let PLACE = place_of_key(share.last, min(key, EXTENT.seqlen_kv - 1u));
      let index = share.first + PLACE.page * params.TENSOR_stride_batch + PLACE.row * params.TENSOR_stride_row;
    // }
    var fetched = W_Fetched();
    // unroll P in W_FETCH_PARTS {
      // Past the last quad it is that one again.
      let distance_P = min(P * W_FETCH_LANES * 4u, (share.valid - 1u) / 4u * 4u);
      fetched.part_P = load_TENSOR(index + distance_P, share.valid - distance_P);
    // }
    return fetched;
  }

  // Without a branch, like everything in the loop over tiles: a row behind the tile goes to a place behind it. V is 0
  // past the last key, since 0 (its P) times a number that is none would reach O.
  fn place_TENSOR(share: Share, tile: u32, are_keys: bool, fetch: u32, fetched: W_Fetched) {
    // unroll EXTENT in EXTENT_OF_SHARE {
      let is_key = are_keys || tile * TILE_KV + fetch * W_FETCH_ROWS + share.row < EXTENT.seqlen_kv;
    // }
    var largest = 0.0;
    // unroll P in W_FETCH_PARTS {
      let value_P = operand_W(fetched.part_P);
      largest = max(largest, largest_of_loaded(value_P));
    // }
    let scale = row_scale(largest, 1u, W_FETCH_LANES);
    set_TENSOR_unit(min(share.unit_place + fetch * W_FETCH_ROWS, TILE_KV), inverse(scale));
    // unroll P in W_FETCH_PARTS {
      // The first part has its own place and says itself whether it is inside.
      let is_in_row_P = P == 0 || W_ROWS_ARE_EXACT || share.place % W_STRIDE + P * W_FETCH_LANES < W_ROW_QUADS;
      let place_P = share.place + fetch * W_FETCH_ROWS * W_STRIDE + P * W_FETCH_LANES;
      let within_P = select(min(place_P, TILE_KV * W_STRIDE), place_P, W_FETCHES_ARE_EXACT);
      let exact_place_P = select(TILE_KV * W_STRIDE, within_P, is_in_row_P);
      let is_valid_P = select(P * W_FETCH_LANES * 4u < share.valid, share.is_inside, P == 0);
      let is_inside_P = is_key && (W_IS_WHOLE || is_valid_P);
      // unroll PART in PARTS {
        TENSOR_tile_PART[exact_place_P] = select(vec4<f16>(), to_PART(value_P, scale), is_inside_P);
      // }
    // }
  }
// }

// Whether this invocation's part of the V tile is free of infinities and NaNs; the lanes of a subgroup see all of it.
fn v_tile_is_finite(lane: u32) -> bool {
  var is_finite = true;
  for (var index = lane; index < TILE_KV * V_ROW_QUADS; index += LANES) {
    let value = vec4<f32>(v_tile_half[index / V_ROW_QUADS * V_STRIDE + index % V_ROW_QUADS]);
    is_finite = is_finite && all(are_finite(value));
  }
  return is_finite;
}

// A row of a chunk lies in CHUNK_LANES neighbouring lanes.
fn row_max(value: f32) -> f32 {
  var result = value;
  for (var step = 1u; step < CHUNK_LANES; step *= 2u) { result = max(result, subgroupShuffleXor(result, step)); }
  return result;
}
fn row_sum(value: f32) -> f32 {
  var result = value;
  for (var step = 1u; step < CHUNK_LANES; step *= 2u) { result += subgroupShuffleXor(result, step); }
  return result;
}

// What stands in the scratch for sums.
fn sums_of(mine: Mine) -> Sums {
  scratch_barrier();
  var chunk = Sums();
  // unroll G in CHUNK_FRAGMENTS {
    chunk[G] = coopLoadT<MatrixC>(&s_tile[mine.s_scratch + G * MATRIX_QUADS], S_STRIDE);
  // }
  scratch_barrier();
  return chunk;
}

fn rescaled(mine: Mine, o: Sums, factor: f32) -> Sums {
  store_sums(mine, o);
  s_tile[mine.s] *= factor;
  s_tile[mine.s + CHUNK_LANES] *= factor;
  return sums_of(mine);
}

// O + P V of a chunk of keys and one of dimensions, by plain arithmetic, which leaves out the keys that the row, with
// these visible keys, does not see. `cell` is the first of the row in the tile. P is in the scratch.
fn add_seen_keys(mine: Mine, o: Sums, visible: vec2<i32>, cell: Cell, key_chunk: u32, chunk: u32) -> Sums {
  store_sums(mine, o);
  let p_row = mine.p - mine.quad;
  for (var key = 0u; key < CHUNK_QUADS * 4u; key++) {
    let at = (key_chunk * CHUNK_QUADS * 4u + key) * V_STRIDE + chunk * CHUNK_QUADS + mine.quad;
    var p = f32(p_tile_half[p_row + key / 4u][key % 4u]);
    var v = Eight(vec4<f32>(v_tile_half[at]), vec4<f32>(v_tile_half[at + CHUNK_LANES]));
    // unroll REST in REST_PARTS {
      p += f32(p_tile_REST[p_row + key / 4u][key % 4u]);
      v.low += vec4<f32>(v_tile_REST[at]);
      v.high += vec4<f32>(v_tile_REST[at + CHUNK_LANES]);
    // }
    let quad_key = cell.key + key_chunk * CHUNK_QUADS * 4u + key / 4u * 4u;
    let is_seen = sees(visible, Cell(cell.batch, cell.head, cell.i, quad_key))[key % 4u];
    s_tile[mine.s] = add_seen(is_seen, p, v.low, s_tile[mine.s]);
    s_tile[mine.s + CHUNK_LANES] = add_seen(is_seen, p, v.high, s_tile[mine.s + CHUNK_LANES]);
  }
  return sums_of(mine);
}

// rowsum(P) of an invocation.
fn sum_of(p: Eight) -> f32 {
  let sum = p.low + p.high;
  return (sum.x + sum.y) + (sum.z + sum.w);
}

// P, 0 where S is masked.
fn without_masked(p: Eight, s: Eight) -> Eight {
  let masked = vec4<f32>(MASKED);
  return only(Which(!(s.low == masked), !(s.high == masked)), p, 0.0);
}

// P in units of the rows of V, at most V_UNIT_MOST where the row sees them.
fn in_v_units(p: Eight, key: u32, v_gain: f32) -> Eight {
  let units = scaled(v_units_of(key), v_gain);
  return times(p, Eight(min(units.low, vec4<f32>(V_UNIT_MOST)), min(units.high, vec4<f32>(V_UNIT_MOST))));
}

// The largest unit of V that a row with these visible keys sees in the tile whose first cell in the row is `at`.
fn largest_v_unit(mine: Mine, visible: vec2<i32>, at: Cell, is_seen_whole: bool) -> f32 {
  let whole = every(is_seen_whole);
  var largest = 0.0;
  // unroll E in KEY_CHUNKS {
    let seen_E = seen(visible, cell_of(at, first_of(mine, E)));
    let which_E = Which(whole.low | seen_E.low, whole.high | seen_E.high);
    largest = max(largest, largest_of_eight(only(which_E, v_units_of(first_of(mine, E)), 0.0)));
  // }
  return row_max(largest);
}
