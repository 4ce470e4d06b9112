// Where a key lies, in pages that all sequences share.
struct KeyPlace {
  page: u32,
  row: u32,
}

@group(0) @binding(BINDING_page_table) var<storage, read> page_table: array<u32>;

// The place of a key of a sequence, which is counted from the first of this dispatch. Whatever key and table are, it is
// a place in the tensor.
fn place_of_key(batch: u32, key: u32) -> KeyPlace {
  // Where pages are whole quads of keys, four keys share a page, and one look into the table.
  let first = select(key, key & 0xfffffffcu, PAGES_ARE_QUADS);
  let number = first / params.page_size;
  let entry = (params.batch_first + batch) * params.max_pages + min(number, params.max_pages - 1u);
  let page = min(page_table[params.page_table_offset + entry], params.num_pages - 1u);
  return KeyPlace(page, key - number * params.page_size);
}
