// Q: each row goes to its own place in another tensor, or in the same one.

fn num_heads() -> u32 { return params.head_count; }

// unroll TENSOR in ROWS {
  fn row_of(token: Token) -> u32 {
    return row_in(token, params.head_first, params.TENSOR_offset, params.TENSOR_stride_batch,
      params.TENSOR_stride_row, params.TENSOR_stride_head);
  }
// }

// unroll TENSOR in TARGET {
  fn place_of(token: Token) -> Place {
    let first = row_in(token, params.head_first, params.TENSOR_offset, params.TENSOR_stride_batch,
      params.TENSOR_stride_row, params.TENSOR_stride_head);
    return Place(first, true);
  }
// }
