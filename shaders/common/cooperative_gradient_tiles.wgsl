// The tiles of the backward pass on cooperative matrices, in f16. A workgroup owns rows of one pair of tensors (K and V, or
// Q and dO), as fragments in registers, and walks over tiles of the other pair in workgroup memory. Head dimensions are
// padded with 0 to whole fragments, and so are rows outside the tensors. As in flash_tiles.wgsl, loads are never under a
// branch.

// Quads in a row of a fragment.
const MATRIX_QUADS = MATRIX_SIDE / 4u;

// Rows in workgroup memory, in quads: multiples of 16 bytes, which the widest loads of matrices need, and for matrices of
// side 16 an odd number of them, which spreads rows over the banks.
const K_ROW_QUADS = K_FRAGMENTS * MATRIX_QUADS;
const V_ROW_QUADS = V_FRAGMENTS * MATRIX_QUADS;
const K_STRIDE = K_ROW_QUADS + 2u;
const V_STRIDE = V_ROW_QUADS + 2u;
const P_STRIDE = MATRIX_QUADS + 2u;

// For each subgroup, a fragment on its way between matrix and plain values: S and dP in f32, P and dS in f16.
var<workgroup> s_tile: array<vec4<f32>, ROW_LANES * MATRIX_SIDE * S_STRIDE>;
var<workgroup> p_tile: array<vec4<f16>, ROW_LANES * MATRIX_SIDE * P_STRIDE>;

// Rows of the walked tile that hold an infinity or a NaN: the number of the tile, from 1, in which it was found.
var<workgroup> poisoned: array<atomic<u32>, TILE_ROWS>;

const LAST_QUAD = (HEAD_DIM - 1u) / 4u * 4u;
const LAST_QUAD_V = (HEAD_DIM_V - 1u) / 4u * 4u;

// P is at most 1, and often close to 1 / seqlen_kv, where f16 has few bits: it is scaled by 2¹⁴ on its way through f16.
const P_GAIN = 16384.0;

// dS in f16 is scaled too, by a power of two that follows the largest |dS| so far: gradients are as small or as large as
// the loss makes them. A scaled dS may grow to DS_MOST, and is brought down to DS_GOAL when it does.
const DS_MOST = 16384.0;
const DS_GOAL = 10.0;

// The scale that brings `largest` to 2^DS_GOAL.
fn gain_for(largest: f32) -> f32 { return exp2(clamp(DS_GOAL - ceil(log2(largest)), -125.0, 100.0)); }

// The largest absolute value, of those that are finite.
fn largest_of(value: vec4<f32>) -> f32 {
  let size = abs(value);
  let finite = select(vec4<f32>(0.0), size, size < vec4<f32>(1e38));
  return max(max(finite.x, finite.y), max(finite.z, finite.w));
}

// Orders a subgroup's accesses to its scratch; see cooperative_tiles.wgsl.
fn scratch_barrier() {
  if !IN_LOCKSTEP { subgroupBarrier(); }
}

// Told by the exponent's bits: WGSL compilers may assume that all is finite.
fn is_finite(value: vec4<f16>) -> bool {
  let exponents = bitcast<vec4<u32>>(vec4<f32>(value)) & vec4<u32>(0x7f800000u);
  return all(exponents != vec4<u32>(0x7f800000u));
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

// Quad `index` of the tile that starts at `first_row` of the head at `head_at`, which has `count` rows.
fn fetch_WALKED(head_at: u32, first_row: u32, count: u32, index: u32) -> Loaded {
  let row = first_row + index / K_ROW_QUADS;
  let dim = index % K_ROW_QUADS * 4u;
  let inside_dim = min(dim, LAST_QUAD);
  let value = load_WALKED(head_at + min(row, count - 1u) * params.WALKED_stride_row + inside_dim, HEAD_DIM - inside_dim);
  return select(Loaded(), value, row < count && dim < HEAD_DIM);
}

// In tiles where some rows see less than others (`guarded`), a product with 0 must not make NaN of what is not seen: rows
// that are not finite become 0, and are marked.
fn place_WALKED(index: u32, value: Loaded, guarded: bool, number: u32) {
  if index < TILE_ROWS * K_ROW_QUADS {
    var half = to_half(value);
    if guarded && !is_finite(half) {
      half = vec4<f16>();
      atomicStore(&poisoned[index / K_ROW_QUADS], number);
    }
    WALKED_tile[index / K_ROW_QUADS * K_STRIDE + index % K_ROW_QUADS] = half;
  }
}
// }

// unroll WALKED in WALKED_V {
var<workgroup> WALKED_tile: array<vec4<f16>, TILE_ROWS * V_STRIDE>;

fn fetch_WALKED(head_at: u32, first_row: u32, count: u32, index: u32) -> Loaded {
  let row = first_row + index / V_ROW_QUADS;
  let dim = index % V_ROW_QUADS * 4u;
  let inside_dim = min(dim, LAST_QUAD_V);
  let value = load_WALKED(head_at + min(row, count - 1u) * params.WALKED_stride_row + inside_dim, HEAD_DIM_V - inside_dim);
  return select(Loaded(), value, row < count && dim < HEAD_DIM_V);
}

fn place_WALKED(index: u32, value: Loaded, guarded: bool, number: u32) {
  if index < TILE_ROWS * V_ROW_QUADS {
    var half = to_half(value);
    if guarded && !is_finite(half) {
      half = vec4<f16>();
      atomicStore(&poisoned[index / V_ROW_QUADS], number);
    }
    WALKED_tile[index / V_ROW_QUADS * V_STRIDE + index % V_ROW_QUADS] = half;
  }
}
// }

// unroll OWNED in OWNED_K {
// Quad `quad` of a row of the head at `head_at`, which has `count` rows.
fn fetch_OWNED(head_at: u32, row: u32, count: u32, quad: u32) -> vec4<f16> {
  let inside_dim = min(quad * 4u, LAST_QUAD);
  let value = load_OWNED(head_at + min(row, count - 1u) * params.OWNED_stride_row + inside_dim, HEAD_DIM - inside_dim);
  return select(vec4<f16>(), to_half(value), quad * 4u < HEAD_DIM && row < count);
}
// }

// unroll OWNED in OWNED_V {
fn fetch_OWNED(head_at: u32, row: u32, count: u32, quad: u32) -> vec4<f16> {
  let inside_dim = min(quad * 4u, LAST_QUAD_V);
  let value = load_OWNED(head_at + min(row, count - 1u) * params.OWNED_stride_row + inside_dim, HEAD_DIM_V - inside_dim);
  return select(vec4<f16>(), to_half(value), quad * 4u < HEAD_DIM_V && row < count);
}
// }
