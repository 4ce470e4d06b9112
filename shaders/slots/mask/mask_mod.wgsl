// mask_mod, a function in the caller's own WGSL. Its names begin with wgsl_mask_ here.

fn sees_mask_mod(cell: Cell) -> vec4<bool> {
  return vec4<bool>(
    one_mask_mod(cell, 0u), one_mask_mod(cell, 1u), one_mask_mod(cell, 2u), one_mask_mod(cell, 3u),
  );
}

// A call that wanted more turns hides the key.
fn one_mask_mod(cell: Cell, of_cell: u32) -> bool {
  start_wgsl(MASK_TURNS);
  // unroll BATCH in WGSL_BATCH, HEAD in WGSL_HEAD {
    let is_seen = wgsl_mask_mask_mod(BATCH, HEAD, wgsl_row(cell), wgsl_key(cell, of_cell));
  // }
  return is_seen && !wgsl_is_spent;
}
