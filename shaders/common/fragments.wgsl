// Cooperative matrices and plain values. A subgroup holds fragments, matrices of MATRIX_SIDE × MATRIX_SIDE elements,
// which cannot be reached. They change to plain values and back in its scratch in workgroup memory, a chunk at a time:
// so many fragments side by side that each invocation has eight elements, two quads of one row, HIGH elements apart.
// What factors and sums of products are is in slot matrix_parts.

// Quads in a row of a fragment and of a chunk; invocations that share such a row.
const MATRIX_QUADS = MATRIX_SIDE / 4u;
const CHUNK_QUADS = CHUNK_FRAGMENTS * MATRIX_QUADS;
const CHUNK_LANES = CHUNK_QUADS / 2u;

// Rows in workgroup memory, in quads: of the tiles that pass by, and of left factors in a scratch. 16 bytes of padding
// (32 in f32) spread them over the banks: without it matrices load at less than half the speed. All are multiples of 16
// bytes, which the widest loads of matrices need.
const HEAD_DIM_K = HEAD_DIM;
// unroll W in WIDTHS {
  const W_ROW_QUADS = W_CHUNKS * CHUNK_QUADS;
  const W_STRIDE = W_ROW_QUADS + 2u;
// }
const P_STRIDE = CHUNK_QUADS + 2u;

// The scratch of each subgroup: for sums, in f32, and for left factors.
var<workgroup> s_tile: array<vec4<f32>, ROW_LANES * MATRIX_SIDE * S_STRIDE>;
// unroll PART in PARTS {
  var<workgroup> p_tile_PART: array<vec4<f16>, ROW_LANES * MATRIX_SIDE * P_STRIDE>;
// }

// Orders a subgroup's accesses to its scratch. Some of these stand under conditions that hold for one subgroup and not
// for another. lavapipe (Mesa 26.1) takes any barrier for one of the whole workgroup and goes astray there; its
// subgroups run in lockstep and need none.
fn scratch_barrier() { if !IN_LOCKSTEP { subgroupBarrier(); } }

// An invocation's row in a chunk and its first quad there; where its subgroup's scratch for sums starts, and that quad
// in it; the same for left factors.
struct Mine { row: u32, quad: u32, s_scratch: u32, s: u32, p_scratch: u32, p: u32 }
fn mine_at(subgroup: u32, row: u32, quad: u32) -> Mine {
  let s_scratch = subgroup * MATRIX_SIDE * S_STRIDE;
  let p_scratch = subgroup * MATRIX_SIDE * P_STRIDE;
  let s = s_scratch + row * S_STRIDE + quad;
  return Mine(row, quad, s_scratch, s, p_scratch, p_scratch + row * P_STRIDE + quad);
}

// The first element of a whole row that an invocation has in a chunk.
fn first_of(mine: Mine, chunk: u32) -> u32 { return (chunk * CHUNK_QUADS + mine.quad) * 4u; }

// The eight elements of an invocation, and what holds for each.
struct Eight { low: vec4<f32>, high: vec4<f32> }
struct Which { low: vec4<bool>, high: vec4<bool> }
fn times(a: Eight, b: Eight) -> Eight { return Eight(a.low * b.low, a.high * b.high); }
fn scaled(a: Eight, factor: f32) -> Eight { return Eight(a.low * factor, a.high * factor); }
fn largest_of_eight(a: Eight) -> f32 { return largest_of_four(max(a.low, a.high)); }
fn every(holds: bool) -> Which { return Which(vec4<bool>(holds), vec4<bool>(holds)); }
fn only(which: Which, a: Eight, otherwise: f32) -> Eight {
  let other = vec4<f32>(otherwise);
  return Eight(select(other, a.low, which.low), select(other, a.high, which.high));
}

// exp(factor · S − m), in powers of two.
fn probabilities(s: Eight, factor: f32, m: f32) -> Eight {
  let f = vec4<f32>(factor);
  return Eight(exp2(fma(s.low, f, vec4<f32>(-m))), exp2(fma(s.high, f, vec4<f32>(-m))));
}

// Of eight scores from a cell on: which a row with these visible keys sees, which dropout keeps, what modifiers make.
fn cell_of(at: Cell, further: u32) -> Cell { return Cell(at.batch, at.head, at.i, at.key + further); }
fn seen(visible: vec2<i32>, at: Cell) -> Which {
  return Which(sees(visible, cell_of(at, 0u)), sees(visible, cell_of(at, HIGH)));
}
fn kept_of(at: Cell) -> Which {
  return Which(kept(at.batch, at.head, at.i, at.key), kept(at.batch, at.head, at.i, at.key + HIGH));
}
// unroll MODIFIED in MODIFIED_SCORES {
  fn natural_eight(s: Eight, at: Cell) -> Eight {
    return Eight(scored_natural(s.low, cell_of(at, 0u)), scored_natural(s.high, cell_of(at, HIGH)));
  }
// }

// The left factors of a chunk: their way into the scratch, and out of it.
alias Lefts = array<Left, CHUNK_FRAGMENTS>;
fn place(mine: Mine, value: Eight) {
  // unroll PART in PARTS {
    p_tile_PART[mine.p] = as_PART(value.low);
    p_tile_PART[mine.p + HIGH / 4u] = as_PART(value.high);
  // }
}

fn lefts(mine: Mine) -> Lefts {
  scratch_barrier();
  var chunk = Lefts();
  // unroll G in CHUNK_FRAGMENTS {
    chunk[G] = left_by_rows(mine.p_scratch + G * MATRIX_QUADS);
  // }
  scratch_barrier();
  return chunk;
}

fn lefts_of(mine: Mine, value: Eight) -> Lefts {
  place(mine, value);
  return lefts(mine);
}

// The sums of a chunk: the way into the scratch, and out of it. naga wants names for what it stores.
alias Sums = array<MatrixC, CHUNK_FRAGMENTS>;
fn store_sums(mine: Mine, chunk: Sums) {
  let stride = S_STRIDE;
  // unroll G in CHUNK_FRAGMENTS {
    let at_G = mine.s_scratch + G * MATRIX_QUADS;
    let sum_G = chunk[G];
    coopStoreT(sum_G, &s_tile[at_G], stride);
  // }
  scratch_barrier();
}

fn stored(mine: Mine) -> Eight { return Eight(s_tile[mine.s], s_tile[mine.s + HIGH / 4u]); }

fn plain(mine: Mine, chunk: Sums) -> Eight {
  store_sums(mine, chunk);
  let values = stored(mine);
  scratch_barrier();
  return values;
}

// What a subgroup owns, as left factors: a fragment's rows of a head, MATRIX_SIDE of them, each times its scale. The
// scale is that of a row whose largest element is at least `least`.
// unroll W in WIDTHS, TENSOR in OWNED_W {
  struct W_Rows { scale: f32, chunks: array<Lefts, W_CHUNKS> }
  fn TENSOR_rows(mine: Mine, head_at: u32, row: u32, count: u32, least: f32, is_negative: bool) -> W_Rows {
    var largest = least;
    // unroll M in W_CHUNKS {
      let low_M = operand_W(TENSOR_quad(head_at, row, count, first_of(mine, M), HEAD_DIM_W));
      let high_M = operand_W(TENSOR_quad(head_at, row, count, first_of(mine, M) + HIGH, HEAD_DIM_W));
      largest = max(largest, max(largest_of_loaded(low_M), largest_of_loaded(high_M)));
    // }
    var rows = W_Rows();
    rows.scale = scale_of_row(largest);
    // unroll M in W_CHUNKS {
      // unroll PART in PARTS {
        p_tile_PART[mine.p] = signed(to_PART(low_M, rows.scale), is_negative);
        p_tile_PART[mine.p + HIGH / 4u] = signed(to_PART(high_M, rows.scale), is_negative);
      // }
      rows.chunks[M] = lefts(mine);
    // }
    return rows;
  }
// }
fn signed(value: vec4<f16>, is_negative: bool) -> vec4<f16> { return select(value, -value, is_negative); }

// The units of rows that pass by.
// unroll TENSOR in WALKED {
  fn TENSOR_units_of(row: u32) -> Eight { return Eight(TENSOR_units(row), TENSOR_units(row + HIGH)); }
// }
