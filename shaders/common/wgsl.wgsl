// What functions in the caller's own WGSL have in common. Each of their loops takes from `wgsl_turns_left` and ends its
// function when nothing is left.
var<private> wgsl_turns_left: u32 = 0u;
var<private> wgsl_is_spent: bool = false;

// Before each call of one.
fn start_wgsl(turns: u32) {
  wgsl_turns_left = turns;
  wgsl_is_spent = false;
}

// NaN instead of the result of a call that wanted more turns. (The condition is never true; a constant NaN is refused.)
fn unless_spent(value: f32) -> f32 {
  let not_a_number = bitcast<f32>(select(0x7fc00000u, 0u, params.grid_width == 0u));
  return select(value, not_a_number, wgsl_is_spent);
}

// The key of a cell's score, and the row, inside the tensors: what lies outside is hidden.
// unroll KEY in WGSL_KEY, ROW in WGSL_ROW {
  fn wgsl_key(cell: Cell, score: u32) -> u32 { return KEY; }

  fn wgsl_row(cell: Cell) -> u32 { return ROW; }
// }
