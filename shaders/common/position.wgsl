// Where row i of a sequence stands among its keys: the last row at the last key.
fn position_of(batch: u32, i: u32) -> i32 { return i32(i) + i32(seqlen_kv_of(batch)) - i32(seqlen_q_of(batch)); }

// The keys of a cell.
fn keys_of_cell(cell: Cell) -> vec4<i32> { return vec4<i32>(i32(cell.key)) + vec4<i32>(0, 1, 2, 3); }
