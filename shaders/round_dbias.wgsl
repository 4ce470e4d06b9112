// Backward: the gradient of a bias in 16 bits, from its sums.
//
// Reads the sums of all entries in f32. Writes dBias, two entries in a word.

@group(0) @binding(BINDING_dbias) var<storage, read_write> dbias: array<u32>;
@group(0) @binding(BINDING_dbias_sums) var<storage, read> dbias_sums: array<f32>;

@compute @workgroup_size(ROUND_INVOCATIONS)
fn main(
  @builtin(workgroup_id) workgroup_id: vec3<u32>,
  @builtin(local_invocation_index) invocation: u32,
) {
  let word = (workgroup_id.y * params.grid_width + workgroup_id.x) * ROUND_INVOCATIONS + invocation;
  let num_entries = arrayLength(&dbias_sums);
  if word >= (num_entries + 1u) / 2u { return; }
  // The last word may hold one entry; its other half belongs to nothing.
  let low = encode_half(dbias_sums[2u * word]);
  let high = encode_half(dbias_sums[min(2u * word + 1u, num_entries - 1u)]);
  dbias[params.dbias_offset / 2u + word] = low | (high << 16u);
}
