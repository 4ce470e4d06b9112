// The position of a token, in a cache where each sequence has its positions side by side. This dispatch binds the
// sequences and heads that it covers.
// unroll TENSOR in TARGET {
  fn place_of(token: Token) -> Place {
    let position = position_of(token);
    let first = params.TENSOR_offset + token.batch * params.TENSOR_stride_batch + position * params.TENSOR_stride_row
      + token.head * params.TENSOR_stride_head;
    return Place(first, position < params.seqlen_kv);
  }
// }
