@group(0) @binding(BINDING_cache_seqlens) var<storage, read> cache_seqlens: array<u32>;

// Positions that a sequence has before its new tokens.
fn length_of(batch: u32) -> u32 {
  return min(cache_seqlens[params.cache_seqlens_offset + params.batch_first + batch], params.seqlen_kv);
}

// The position of a new token.
fn position_of(token: Token) -> u32 { return length_of(token.batch) + params.row_first + token.i; }
