// The position of a token, in the page that the table says. All of the cache is bound.
@group(0) @binding(BINDING_page_table) var<storage, read> page_table: array<u32>;

// unroll TENSOR in TARGET {
  fn place_of(token: Token) -> Place {
    let position = position_of(token);
    let entry = (params.batch_first + token.batch) * params.max_pages
      + min(position / params.page_size, params.max_pages - 1u);
    let page = page_table[params.page_table_offset + entry];
    let first = params.TENSOR_offset + page * params.TENSOR_stride_batch
      + position % params.page_size * params.TENSOR_stride_row
      + (first_head() + token.head) * params.TENSOR_stride_head;
    return Place(first, position < params.seqlen_kv && page < params.num_pages);
  }
// }
