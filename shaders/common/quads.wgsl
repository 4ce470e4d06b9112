// Where a head starts; the quad from `dim` on of a row of it, which has `count` rows, and 0 outside.
// unroll TENSOR in INPUTS {
  fn TENSOR_head(batch: u32, head: u32) -> u32 {
    return params.TENSOR_offset + batch * params.TENSOR_stride_batch + head * params.TENSOR_stride_head;
  }
  fn TENSOR_quad(head_at: u32, row: u32, count: u32, dim: u32, head_dim: u32) -> Loaded {
    let inside_dim = min(dim, (head_dim - 1u) / 4u * 4u);
    let at = head_at + min(row, count - 1u) * params.TENSOR_stride_row + inside_dim;
    return select(Loaded(), load_TENSOR(at, head_dim - inside_dim), dim < head_dim && row < count);
  }
// }
