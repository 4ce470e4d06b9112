// How long the sequences of a call are, and where they lie among packed rows: the first pass where a call says so.
//
// Reads seqlens_q, seqlens_kv[batch], cu_seqlens_q, cu_seqlens_kv[batch + 1], those of them that the problem has.
// Writes their numbers into the table of the lengths (slot lengths), for the other passes.
//
//   for each sequence b, for the rows of Q and those of K and V:       one invocation
//     first  = cu_seqlens[b], or 0 where the tensors are padded
//     length = cu_seqlens[b + 1] − first, or the largest length; at most seqlens[b]
//
// The caller's numbers may be anything, so each is brought inside the tensors. Negative ones, of i32, count as 0.

@group(0) @binding(BINDING_tables) var<storage, read_write> tables: array<u32>;

// unroll SIDE in SIDES_AT_CALL {
  // unroll NUMBERS in SEQLENS_SIDE {
    @group(0) @binding(BINDING_NUMBERS) var<storage, read> NUMBERS: array<u32>;
  // }
  // unroll NUMBERS in SUMS_SIDE {
    @group(0) @binding(BINDING_NUMBERS) var<storage, read> NUMBERS: array<u32>;
  // }
// }

// Where numbers of each sequence begin, in the table; behind those the rows of the packed tensors.
fn seqlens_at_q() -> u32 { return tables[TABLE_lengths] + 2u; }
fn seqlens_at_kv() -> u32 { return seqlens_at_q() + num_sequences(); }
fn firsts_at_q() -> u32 { return seqlens_at_q() + 2u * num_sequences(); }
fn firsts_at_kv() -> u32 { return seqlens_at_q() + 3u * num_sequences(); }
fn total_q() -> u32 { return tables[seqlens_at_q() + 4u * num_sequences()]; }
fn total_kv() -> u32 { return tables[seqlens_at_q() + 4u * num_sequences() + 1u]; }

// A number of the caller's, from 0 to `most`.
fn clamped(number: u32, most: u32) -> u32 { return select(min(number, most), 0u, number > 0x7fffffffu); }

@compute @workgroup_size(SEQUENCES_INVOCATIONS)
fn main(
  @builtin(workgroup_id) workgroup_id: vec3<u32>,
  @builtin(local_invocation_index) invocation: u32,
) {
  let index = workgroup_id.y * params.grid_width + workgroup_id.x;
  let batch = index * SEQUENCES_INVOCATIONS + invocation;
  if batch >= params.batch_count { return; }
  // unroll SIDE in SIDES_AT_CALL {
    var length_SIDE = params.seqlen_SIDE;
    // unroll SUMS in SUMS_SIDE {
      let first_SIDE = clamped(SUMS[batch], total_SIDE());
      let end_SIDE = clamped(SUMS[batch + 1u], total_SIDE());
      length_SIDE = min(length_SIDE, max(end_SIDE, first_SIDE) - first_SIDE);
      tables[firsts_at_SIDE() + batch] = first_SIDE;
    // }
    // unroll SEQLENS in SEQLENS_SIDE {
      length_SIDE = clamped(SEQLENS[batch], length_SIDE);
    // }
    tables[seqlens_at_SIDE() + batch] = length_SIDE;
  // }
}
