// The elements are f16 and go to matrices without change: all units are 1.
const HAS_UNITS = false;
const LARGEST_OF_ROW = 1.0;

fn largest_of_loaded(loaded: Loaded) -> f32 { return 0.0; }
fn row_scale(largest: f32, first_distance: u32, end_distance: u32) -> f32 { return 1.0; }
fn inverse(power: f32) -> f32 { return 1.0; }
fn units_of_rows(unit: f32, first: u32) -> vec4<f32> { return vec4<f32>(1.0); }

// unroll TENSOR in WALKED {
  fn set_TENSOR_unit(row: u32, unit: f32) {}
  fn TENSOR_unit(row: u32) -> f32 { return 1.0; }
  fn TENSOR_units(row: u32) -> vec4<f32> { return vec4<f32>(1.0); }
// }
