// The tiles of the backward pass on cooperative matrices. A workgroup owns rows of one pair of tensors (K and V, or Q
// and dO), as fragments in registers, and walks over tiles of the other pair in workgroup memory. Head dimensions are
// padded with 0 to whole fragments, and so are rows. As in flash_tiles.wgsl, loads are never under a branch. Chunks are
// single fragments.

// Rows of the walked tile that hold an infinity or a NaN: the number of the tile, from 1, in which it was found.
var<workgroup> poisoned: array<atomic<u32>, TILE_ROWS>;

// P and dS pass through f16 times a power of two: P, at most 1 and often close to 1 / seqlen_kv, where f16 has few
// bits, times 2¹⁴. The scale of dS, and that of P where it is in units of the rows of dO, follows the largest so far,
// since gradients are as small or large as the loss makes them: what is scaled may grow to GAIN_MOST, and is then
// brought down to GAIN_GOAL. The inverse of the largest scale is a normal number of f32. Results are divided by their
// scale first: 1 / scale times another small factor may be 0.
const GAIN_MOST = 16384.0;
const GAIN_GOAL = 10.0;
const LARGEST_GAIN = 124.0;
const FIRST_GAIN = exp2(LARGEST_GAIN);
const FIRST_P_GAIN = select(16384.0, FIRST_GAIN, HAS_UNITS);

// The scale that brings `largest` to 2^GAIN_GOAL, but no more than the one so far, which stays where all is 0.
fn gain_for(largest: f32, gain: f32) -> f32 {
  let wanted = exp2(clamp(GAIN_GOAL - ceil(log2(largest)), -LARGEST_GAIN, LARGEST_GAIN));
  return select(gain, min(gain, wanted), largest > 0.0);
}

// The largest absolute value, of those that are finite.
fn largest_size(value: Eight) -> f32 {
  let low = abs(value.low);
  let high = abs(value.high);
  return largest_of_eight(only(Which(low < vec4<f32>(1e38), high < vec4<f32>(1e38)), Eight(low, high), 0.0));
}

// Not a number: WGSL has no literal for it.
fn not_a_number() -> f32 { return bitcast<f32>(select(0x7fc00000u, 0u, params.grid_width == 0u)); }

// Which of four neighbouring rows of the walked tile are not marked.
fn are_sound(row: u32, number: u32) -> vec4<bool> {
  let low = vec2<u32>(atomicLoad(&poisoned[row]), atomicLoad(&poisoned[row + 1u]));
  let high = vec2<u32>(atomicLoad(&poisoned[row + 2u]), atomicLoad(&poisoned[row + 3u]));
  return vec4<u32>(low, high) != vec4<u32>(number);
}

// The tensors whose tiles pass by: one of width K, one of width V.
// unroll W in WIDTHS, TENSOR in WALKED_W {
  // unroll PART in PARTS {
    var<workgroup> TENSOR_tile_PART: array<vec4<f16>, TILE_ROWS * W_STRIDE>;
  // }

  // A tile that starts at `first_row` of the head at `head_at`, which has `count` rows: of every row, W_FETCH_LANES
  // invocations fetch W_FETCH_PARTS quads each. `index` counts them over the rows.
  alias W_Fetched = array<Loaded, W_FETCH_PARTS>;
  fn fetch_TENSOR(head_at: u32, first_row: u32, count: u32, index: u32) -> W_Fetched {
    var fetched = W_Fetched();
    // unroll P in W_FETCH_PARTS {
      let dim_P = (index % W_FETCH_LANES + P * W_FETCH_LANES) * 4u;
      fetched[P] = TENSOR_quad(head_at, first_row + index / W_FETCH_LANES, count, dim_P, HEAD_DIM_W);
    // }
    return fetched;
  }

  // In tiles where some rows see less than others (`guarded`), a product with 0 must not make NaN of what is not seen:
  // rows that are not finite become 0, and are marked. An empty row is 0 too: its dO may be anything.
  fn place_TENSOR(index: u32, fetched: W_Fetched, is_empty: bool, guarded: bool, number: u32) {
    var largest = 0.0;
    // unroll P in W_FETCH_PARTS {
      let value_P = select(operand_W(fetched[P]), Loaded(), is_empty);
      largest = max(largest, largest_of_loaded(value_P));
    // }
    let scale = row_scale(largest, 1u, W_FETCH_LANES);
    let row = index / W_FETCH_LANES;
    // unroll P in W_FETCH_PARTS {
      let quad_P = index % W_FETCH_LANES + P * W_FETCH_LANES;
      if row < TILE_ROWS && (W_FETCH_LANES * W_FETCH_PARTS == W_ROW_QUADS || quad_P < W_ROW_QUADS) {
        let is_poison = guarded && !all(are_finite(decode(value_P)));
        if is_poison { atomicStore(&poisoned[row], number); }
        // unroll PART in PARTS {
          TENSOR_tile_PART[row * W_STRIDE + quad_P] = select(to_PART(value_P, scale), vec4<f16>(), is_poison);
        // }
        if quad_P == 0u { set_TENSOR_unit(row, inverse(scale)); }
      }
    // }
  }
// }

// An invocation's elements of a row of a gradient, from `dim` on.
// unroll W in WIDTHS, TENSOR in GRADIENT_W {
  fn write_TENSOR(batch: u32, head: u32, row: u32, dim: u32, value: Eight) {
    let at = params.TENSOR_offset + batch * params.TENSOR_stride_batch + head * params.TENSOR_stride_head
      + row * params.TENSOR_stride_row + dim;
    if dim < HEAD_DIM_W { store_TENSOR(at, HEAD_DIM_W - dim, value.low); }
    if dim + HIGH < HEAD_DIM_W { store_TENSOR(at + HIGH, HEAD_DIM_W - dim - HIGH, value.high); }
  }
// }

fn less(a: Eight, b: f32) -> Eight { return Eight(a.low - vec4<f32>(b), a.high - vec4<f32>(b)); }

// P = exp(factor · S − LSE), and the gradient of factor · S. Both take factor · S first: modifiers run once.
// unroll PLAIN in PLAIN_SCORES {
  fn p_of(s: Eight, factor: f32, lse: f32, at: Cell) -> Eight { return probabilities(s, factor, lse); }
  fn unmodified(ds: Eight, s: Eight, factor: f32, at: Cell) -> Eight { return ds; }
// }
// unroll MODIFIED in MODIFIED_SCORES {
  fn p_of(s: Eight, factor: f32, lse: f32, at: Cell) -> Eight {
    let exponent = less(scaled(natural_eight(scaled(scaled(s, factor), LN_2), at), LOG2_E), lse);
    return Eight(exp2(exponent.low), exp2(exponent.high));
  }
  fn unmodified(ds: Eight, s: Eight, factor: f32, at: Cell) -> Eight {
    let low = score_gradient(ds.low, s.low * factor, cell_of(at, 0u));
    return Eight(low, score_gradient(ds.high, s.high * factor, cell_of(at, HIGH)));
  }
// }
