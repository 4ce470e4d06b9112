// Where a key lies, in pages that all sequences share.
struct KeyPlace {
  page: u32,
  row: u32,
}

@group(0) @binding(BINDING_page_table) var<storage, read> page_table: array<u32>;

// The place of a key of a sequence, which is counted from the first of this dispatch. Whatever key and table are, it is
// a place in the tensor.
fn place_of_key(batch: u32, key: u32) -> KeyPlace {
  let entry = (params.batch_first + batch) * params.max_pages + min(key / params.page_size, params.max_pages - 1u);
  return KeyPlace(min(page_table[params.page_table_offset + entry], params.num_pages - 1u), key % params.page_size);
}
