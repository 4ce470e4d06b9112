// K or V: the heads are KV heads.

fn num_heads() -> u32 { return params.head_count / params.heads_per_kv; }

fn first_head() -> u32 { return params.head_first / params.heads_per_kv; }

// unroll TENSOR in ROWS {
  fn row_of(token: Token) -> u32 {
    return row_in(token, first_head(), params.TENSOR_offset, params.TENSOR_stride_batch, params.TENSOR_stride_row,
      params.TENSOR_stride_head);
  }
// }
