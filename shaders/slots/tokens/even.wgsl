// Each sequence has seqlen_q new tokens.

fn num_tokens(batch: u32) -> u32 { return params.seqlen_q; }

fn is_token(token: Token) -> bool { return true; }

// Its number among the new tokens of the whole problem, [batch, token_rows].
fn number_of(token: Token) -> u32 {
  return (params.batch_first + token.batch) * params.token_rows + params.row_first + token.i;
}

// Where a row starts in a tensor of which this dispatch binds its own part.
fn row_in(token: Token, head_first: u32, offset: u32, stride_batch: u32, stride_row: u32, stride_head: u32) -> u32 {
  return offset + token.batch * stride_batch + token.i * stride_row + token.head * stride_head;
}
