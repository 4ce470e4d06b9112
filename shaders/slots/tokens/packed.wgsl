// The new tokens of a sequence are those from cu_seqlens_new[b] to cu_seqlens_new[b + 1]. Whatever these hold, there
// are at most token_rows for all sequences and seqlen_q for one.

@group(0) @binding(BINDING_cu_seqlens_new) var<storage, read> cu_seqlens_new: array<u32>;

fn start_of(batch: u32) -> u32 {
  return min(cu_seqlens_new[params.cu_seqlens_new_offset + params.batch_first + batch], params.token_rows);
}

fn num_tokens(batch: u32) -> u32 {
  let start = start_of(batch);
  return min(max(start_of(batch + 1u), start) - start, params.seqlen_q);
}

fn is_token(token: Token) -> bool { return params.row_first + token.i < num_tokens(token.batch); }

// Its number among the new tokens of all sequences; where there is no such token, that of one that exists.
fn number_of(token: Token) -> u32 {
  return min(start_of(token.batch) + params.row_first + token.i, params.token_rows - 1u);
}

// Where a row starts in a tensor, all of which is bound.
fn row_in(token: Token, head_first: u32, offset: u32, stride_batch: u32, stride_row: u32, stride_head: u32) -> u32 {
  return offset + number_of(token) * stride_row + (head_first + token.head) * stride_head;
}
