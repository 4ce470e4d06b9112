// All sequences have the lengths of the call.

fn seqlen_kv_of(batch: u32) -> u32 { return params.seqlen_kv; }
fn seqlen_q_of(batch: u32) -> u32 { return params.seqlen_q; }
fn mask_offset_of(batch: u32) -> i32 { return params.mask_offset; }

// Rows and keys of a tile that lie outside the tensors are never stored.
fn has_row(batch: u32, i: u32) -> bool { return true; }
fn has_key(batch: u32, j: u32) -> bool { return true; }
