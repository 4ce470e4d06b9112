// Sequences are packed: one lies behind the other in the rows of Q, O and LSE, and in those of K and V where these are
// packed too. The table holds whether the diagonal is tied to the last row and key, the number of sequences, their
// seqlen_q, their seqlen_kv, their first rows in Q, and those in K and V. Batches count in the whole problem.
//
// Where a tensor is packed, its stride from one sequence to the next is that from one row to the next, and a sequence
// has the number of its first row: at_q, at_k. Tiles hold that of their sequence.

// What a dispatch covers of a sequence.
struct Sequence {
  // The first row and key of the sequence in the tensors, plus the first row and key of the dispatch.
  at_q: u32,
  at_k: u32,
  // Rows and keys that have a place, counted from the first of the dispatch. They may be none.
  row_count: u32,
  key_count: u32,
  // The lengths of the sequence.
  seqlen_q: u32,
  seqlen_kv: u32,
}

fn num_sequences() -> u32 { return tables[tables[TABLE_lengths] + 1u]; }
fn first_seqlen_q() -> u32 { return tables[TABLE_lengths] + 2u; }
fn first_seqlen_kv() -> u32 { return first_seqlen_q() + num_sequences(); }
fn seqlen_q_of(batch: u32) -> u32 { return min(tables[first_seqlen_q() + batch], params.seqlen_q); }
fn seqlen_kv_of(batch: u32) -> u32 { return min(tables[first_seqlen_kv() + batch], params.seqlen_kv); }

// The sequence with a number that is counted from the first of this dispatch.
fn sequence_of(number: u32) -> Sequence {
  let batch = params.batch_first + number;
  let seqlen_q = seqlen_q_of(batch);
  let seqlen_kv = seqlen_kv_of(batch);
  // Where K and V are padded, keys past the length have a place, and a gradient of 0.
  let num_keys = select(seqlen_kv, params.seqlen_kv, HAS_LENGTHS);
  let at = first_seqlen_kv() + num_sequences() + batch;
  return Sequence(
    tables[at] + params.row_first,
    tables[at + num_sequences()] + params.key_first,
    min(params.row_count, max(seqlen_q, params.row_first) - params.row_first),
    min(params.key_count, max(num_keys, params.key_first) - params.key_first),
    seqlen_q,
    seqlen_kv,
  );
}

fn mask_offset_of(batch: u32) -> i32 {
  let is_bottom_right = tables[tables[TABLE_lengths]] != 0u;
  return select(0, i32(seqlen_kv_of(batch)) - i32(seqlen_q_of(batch)), is_bottom_right);
}

fn has_row(batch: u32, i: u32) -> bool { return i < seqlen_q_of(batch); }
fn has_key(batch: u32, j: u32) -> bool { return j < seqlen_kv_of(batch); }
