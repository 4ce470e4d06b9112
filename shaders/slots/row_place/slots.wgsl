// The slot of a token: pages and their rows, counted through. Where a sequence has its positions side by side, it
// counts as a page. All of the cache is bound.
@group(0) @binding(BINDING_slot_mapping) var<storage, read> slot_mapping: array<u32>;

// unroll TENSOR in TARGET {
  fn place_of(token: Token) -> Place {
    let slot = slot_mapping[params.slot_mapping_offset + number_of(token)];
    let page = slot / params.page_size;
    let first = params.TENSOR_offset + page * params.TENSOR_stride_batch
      + slot % params.page_size * params.TENSOR_stride_row + (first_head() + token.head) * params.TENSOR_stride_head;
    return Place(first, slot != 0xffffffffu && page < params.num_pages);
  }
// }
