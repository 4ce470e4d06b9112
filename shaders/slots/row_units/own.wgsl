// The range of f32 and bf16 does not fit f16. So each row has a unit, a power of two. In this unit its largest element
// is at least 2¹² and less than 2¹³. With its rest, an f32 element is then off by at most 2⁻³⁷ of the row's largest
// (2⁻²² of itself). bf16 needs no rest, and is exact down to 2⁻²⁶ of the largest.
const HAS_UNITS = true;
const LARGEST_EXPONENT = 12;
const LARGEST_OF_ROW = 4096.0; // 2^LARGEST_EXPONENT: the largest element is at least that

// Infinities and NaNs are no measure for the elements beside them.
fn largest_of_loaded(loaded: Loaded) -> f32 {
  let value = decode(loaded);
  return largest_of_four(select(vec4<f32>(0.0), abs(value), are_finite(value)));
}

// What a row is multiplied with on its way into f16, from the largest of each lane that has a part of it: those whose
// numbers differ in the bits from `first_distance` to below `end_distance`.
fn row_scale(largest: f32, first_distance: u32, end_distance: u32) -> f32 {
  var row_largest = largest;
  for (var distance = first_distance; distance < end_distance; distance *= 2u) {
    row_largest = max(row_largest, subgroupShuffleXor(row_largest, distance));
  }
  let exponent = i32((bitcast<u32>(row_largest) >> 23u) & 0xffu);
  return bitcast<f32>(u32(clamp(254 + LARGEST_EXPONENT - exponent, 1, 253)) << 23u);
}

// 1 / power for a power of two, exactly: the unit that belongs to a scale, or the other way round.
fn inverse(power: f32) -> f32 { return bitcast<f32>(0x7f000000u - bitcast<u32>(power)); }

// The units of four neighbouring rows that the lanes from `first` on have.
fn units_of_rows(unit: f32, first: u32) -> vec4<f32> {
  let x = subgroupShuffle(unit, first);
  let y = subgroupShuffle(unit, first + 1u);
  let z = subgroupShuffle(unit, first + 2u);
  let w = subgroupShuffle(unit, first + 3u);
  return vec4<f32>(x, y, z, w);
}

// The units of the rows that pass through workgroup memory; of row TILE_ROWS anything.
// unroll TENSOR in WALKED {
  var<workgroup> unit_of_TENSOR: array<f32, TILE_ROWS + 4u>;

  fn set_TENSOR_unit(row: u32, unit: f32) { unit_of_TENSOR[row] = unit; }
  fn TENSOR_unit(row: u32) -> f32 { return unit_of_TENSOR[row]; }
  fn TENSOR_units(row: u32) -> vec4<f32> {
    return vec4<f32>(unit_of_TENSOR[row], unit_of_TENSOR[row + 1u], unit_of_TENSOR[row + 2u], unit_of_TENSOR[row + 3u]);
  }
// }
