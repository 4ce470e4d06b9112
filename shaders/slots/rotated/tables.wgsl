// Rotary embeddings of the first ROTARY_DIM dimensions, by tables with a row of ROTARY_DIM / 2 for each position or
// token.

@group(0) @binding(BINDING_rotary_cos) var<storage, read> rotary_cos: array<f32>;
@group(0) @binding(BINDING_rotary_sin) var<storage, read> rotary_sin: array<f32>;

// Dimension `dim` of the row that starts at `first`.
fn rotated(first: u32, dim: u32, token: Token) -> f32 {
  let own = source_at(first + dim);
  if dim >= ROTARY_DIM { return own; }
  let partner = source_at(first + partner_of(dim));
  let at = angles_of(token) * (ROTARY_DIM / 2u) + pair_of(dim);
  let sine = rotary_sin[params.rotary_sin_offset + at];
  // x · cos − y · sin, or y · cos + x · sin
  return fma(own, rotary_cos[params.rotary_cos_offset + at], partner * select(-sine, sine, is_second(dim)));
}
