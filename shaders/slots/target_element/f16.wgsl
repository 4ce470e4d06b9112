// Round to nearest, ties to even; a NaN stays one. WGSL does not say how pack2x16float rounds, and GPUs differ.
fn target_half(value: f32) -> u32 {
  let bits = bitcast<u32>(value);
  let magnitude = bits & 0x7fffffffu;
  // Exponents from 2⁻¹⁴ on: 13 bits of the significand go.
  let normal = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13u) & 1u)) >> 13u;
  // Below, halves are multiples of 2⁻²⁴: shift the significand, with its leading 1, to that place.
  let shift = min(126u - min(magnitude >> 23u, 126u), 31u);
  let significand = (magnitude & 0x7fffffu) | 0x800000u;
  let kept = significand >> shift;
  let rest = significand & ((1u << shift) - 1u);
  let middle = 1u << (max(shift, 1u) - 1u);
  let subnormal = kept + select(0u, 1u, rest > middle || (rest == middle && (kept & 1u) == 1u));
  var half = select(subnormal, normal, magnitude >= 0x38800000u);
  // From 65520 on, the nearest half is infinite.
  half = select(half, 0x7c00u, magnitude >= 0x477ff000u);
  half = select(half, 0x7e00u, magnitude > 0x7f800000u);
  return half | ((bits >> 16u) & 0x8000u);
}
