// Each sequence has lengths of its own; rows and keys past them do not exist. The table holds whether the diagonal is
// tied to the last row and key, the number of sequences, their seqlen_q, and their seqlen_kv. Batches count in the
// whole problem.

fn length_at(index: u32) -> u32 { return tables[tables[TABLE_lengths] + 1u + index]; }
fn num_sequences() -> u32 { return tables[tables[TABLE_lengths] + 1u]; }
fn seqlen_q_of(batch: u32) -> u32 { return min(length_at(1u + batch), params.seqlen_q); }
fn seqlen_kv_of(batch: u32) -> u32 { return min(length_at(1u + num_sequences() + batch), params.seqlen_kv); }

fn mask_offset_of(batch: u32) -> i32 {
  let is_bottom_right = tables[tables[TABLE_lengths]] != 0u;
  return select(0, i32(seqlen_kv_of(batch)) - i32(seqlen_q_of(batch)), is_bottom_right);
}

fn has_row(batch: u32, i: u32) -> bool { return i < seqlen_q_of(batch); }
fn has_key(batch: u32, j: u32) -> bool { return j < seqlen_kv_of(batch); }
