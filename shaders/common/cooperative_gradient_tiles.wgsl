// The tiles of the backward pass on cooperative matrices, in f16. A workgroup owns rows of one pair of tensors (K and
// V, or Q and dO), as fragments in registers, and walks over tiles of the other pair in workgroup memory. Head
// dimensions are padded with 0 to whole fragments, and so are rows outside the tensors. As in flash_tiles.wgsl, loads
// are never under a branch. Elements that f16 cannot hold pass as slots/matrix_operand/ says: rows in units of their
// own, and what is left of f32 behind f16 as a second part, the rest.

// Quads in a row of a fragment.
const MATRIX_QUADS = MATRIX_SIDE / 4u;

// Rows in workgroup memory, in quads: multiples of 16 bytes, which the widest loads of matrices need, and for matrices
// of side 16 an odd number of them, which spreads rows over the banks.
const K_ROW_QUADS = K_FRAGMENTS * MATRIX_QUADS;
const V_ROW_QUADS = V_FRAGMENTS * MATRIX_QUADS;
const K_STRIDE = K_ROW_QUADS + 2u;
const V_STRIDE = V_ROW_QUADS + 2u;
const P_STRIDE = MATRIX_QUADS + 2u;

// For each subgroup, a fragment on its way between matrix and plain values: S and dP in f32, P and dS in f16.
var<workgroup> s_tile: array<vec4<f32>, ROW_LANES * MATRIX_SIDE * S_STRIDE>;
var<workgroup> p_tile: array<vec4<f16>, ROW_LANES * MATRIX_SIDE * P_STRIDE>;
// unroll REST in REST_PARTS {
  var<workgroup> p_tile_REST: array<vec4<f16>, ROW_LANES * MATRIX_SIDE * P_STRIDE>;
// }

// Rows of the walked tile that hold an infinity or a NaN: the number of the tile, from 1, in which it was found.
var<workgroup> poisoned: array<atomic<u32>, TILE_ROWS>;

const LAST_QUAD = (HEAD_DIM - 1u) / 4u * 4u;
const LAST_QUAD_V = (HEAD_DIM_V - 1u) / 4u * 4u;

// P and dS pass through f16 times a power of two. P is at most 1, and often close to 1 / seqlen_kv, where f16 has few
// bits: it is scaled by 2¹⁴. The scale of dS, and that of P where it is in units of the rows of dO, follows the largest
// so far: gradients are as small or as large as the loss makes them. What is scaled may grow to GAIN_MOST, and is
// brought down to GAIN_GOAL when it does.
const GAIN_MOST = 16384.0;
const GAIN_GOAL = 10.0;
const FIRST_GAIN = 1e38;
const FIRST_P_GAIN = select(16384.0, FIRST_GAIN, HAS_UNITS);

// The scale that brings `largest` to 2^GAIN_GOAL, but no more than the one so far.
fn gain_for(largest: f32, gain: f32) -> f32 {
  return min(gain, exp2(clamp(GAIN_GOAL - ceil(log2(largest)), -125.0, 100.0)));
}

// The largest absolute value, of those that are finite.
fn largest_of(value: vec4<f32>) -> f32 {
  let size = abs(value);
  return largest_of_four(select(vec4<f32>(0.0), size, size < vec4<f32>(1e38)));
}

// Orders a subgroup's accesses to its scratch; see cooperative_tiles.wgsl.
fn scratch_barrier() {
  if !IN_LOCKSTEP { subgroupBarrier(); }
}

// Not a number: WGSL has no literal for it.
fn not_a_number() -> f32 { return bitcast<f32>(select(0x7fc00000u, 0u, params.grid_width == 0u)); }

// Which of four neighbouring rows of the walked tile are marked.
fn are_poisoned(row: u32, number: u32) -> vec4<bool> {
  return vec4<bool>(
    atomicLoad(&poisoned[row]) == number,
    atomicLoad(&poisoned[row + 1u]) == number,
    atomicLoad(&poisoned[row + 2u]) == number,
    atomicLoad(&poisoned[row + 3u]) == number,
  );
}

// unroll WALKED in WALKED_K {
  var<workgroup> WALKED_tile: array<vec4<f16>, TILE_ROWS * K_STRIDE>;
  // unroll REST in REST_PARTS {
    var<workgroup> WALKED_tile_REST: array<vec4<f16>, TILE_ROWS * K_STRIDE>;
  // }

  // A quad of the tile that starts at `first_row` of the head at `head_at`, which has `count` rows: of every row,
  // K_FETCH_LANES invocations fetch K_FETCH_PARTS quads each. `index` counts them over the rows.
  fn fetch_WALKED(head_at: u32, first_row: u32, count: u32, index: u32, part: u32) -> Loaded {
    let row = first_row + index / K_FETCH_LANES;
    let dim = (index % K_FETCH_LANES + part * K_FETCH_LANES) * 4u;
    let inside_dim = min(dim, LAST_QUAD);
    let value = load_WALKED(head_at + min(row, count - 1u) * params.WALKED_stride_row + inside_dim,
      HEAD_DIM - inside_dim);
    return select(Loaded(), value, row < count && dim < HEAD_DIM);
  }

  // In tiles where some rows see less than others (`guarded`), a product with 0 must not make NaN of what is not seen:
  // rows that are not finite become 0, and are marked.
  fn place_WALKED(index: u32, part: u32, value: Loaded, scale: f32, guarded: bool, number: u32) {
    let row = index / K_FETCH_LANES;
    let quad = index % K_FETCH_LANES + part * K_FETCH_LANES;
    if row < TILE_ROWS && (K_FETCH_LANES * K_FETCH_PARTS == K_ROW_QUADS || quad < K_ROW_QUADS) {
      var half = to_half(value, scale);
      let is_poison = guarded && !all(are_finite(decode(value)));
      if is_poison {
        half = vec4<f16>();
        atomicStore(&poisoned[row], number);
      }
      WALKED_tile[row * K_STRIDE + quad] = half;
      // unroll REST in REST_PARTS {
        WALKED_tile_REST[row * K_STRIDE + quad] = select(to_rest(value, scale), vec4<f16>(), is_poison);
      // }
      if quad == 0u { set_WALKED_unit(row, inverse(scale)); }
    }
  }
// }

// unroll WALKED in WALKED_V {
  var<workgroup> WALKED_tile: array<vec4<f16>, TILE_ROWS * V_STRIDE>;
  // unroll REST in REST_PARTS {
    var<workgroup> WALKED_tile_REST: array<vec4<f16>, TILE_ROWS * V_STRIDE>;
  // }

  fn fetch_WALKED(head_at: u32, first_row: u32, count: u32, index: u32, part: u32) -> Loaded {
    let row = first_row + index / V_FETCH_LANES;
    let dim = (index % V_FETCH_LANES + part * V_FETCH_LANES) * 4u;
    let inside_dim = min(dim, LAST_QUAD_V);
    let value = load_WALKED(head_at + min(row, count - 1u) * params.WALKED_stride_row + inside_dim,
      HEAD_DIM_V - inside_dim);
    return select(Loaded(), value, row < count && dim < HEAD_DIM_V);
  }

  fn place_WALKED(index: u32, part: u32, value: Loaded, scale: f32, guarded: bool, number: u32) {
    let row = index / V_FETCH_LANES;
    let quad = index % V_FETCH_LANES + part * V_FETCH_LANES;
    if row < TILE_ROWS && (V_FETCH_LANES * V_FETCH_PARTS == V_ROW_QUADS || quad < V_ROW_QUADS) {
      var half = to_half(value, scale);
      let is_poison = guarded && !all(are_finite(decode(value)));
      if is_poison {
        half = vec4<f16>();
        atomicStore(&poisoned[row], number);
      }
      WALKED_tile[row * V_STRIDE + quad] = half;
      // unroll REST in REST_PARTS {
        WALKED_tile_REST[row * V_STRIDE + quad] = select(to_rest(value, scale), vec4<f16>(), is_poison);
      // }
      if quad == 0u { set_WALKED_unit(row, inverse(scale)); }
    }
  }
// }

// unroll OWNED in OWNED_K {
  // Quad `quad` of a row of the head at `head_at`, which has `count` rows.
  fn fetch_OWNED(head_at: u32, row: u32, count: u32, quad: u32) -> Loaded {
    let inside_dim = min(quad * 4u, LAST_QUAD);
    let value = load_OWNED(head_at + min(row, count - 1u) * params.OWNED_stride_row + inside_dim,
      HEAD_DIM - inside_dim);
    return select(Loaded(), value, quad * 4u < HEAD_DIM && row < count);
  }
// }

// unroll OWNED in OWNED_V {
  fn fetch_OWNED(head_at: u32, row: u32, count: u32, quad: u32) -> Loaded {
    let inside_dim = min(quad * 4u, LAST_QUAD_V);
    let value = load_OWNED(head_at + min(row, count - 1u) * params.OWNED_stride_row + inside_dim,
      HEAD_DIM_V - inside_dim);
    return select(Loaded(), value, quad * 4u < HEAD_DIM_V && row < count);
  }
// }
