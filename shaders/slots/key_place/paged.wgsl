// Where a key lies, in pages that all sequences share.
struct KeyPlace {
  page: u32,
  row: u32,
}

@group(0) @binding(BINDING_page_table) var<storage, read> page_table: array<u32>;

// The place of a key, of those that the tensor can hold, of a sequence counted from the first of this dispatch. The table
// may hold anything.
fn place_of_key(batch: u32, key: u32) -> KeyPlace {
  let entry = (params.batch_first + batch) * params.max_pages + key / params.page_size;
  return KeyPlace(min(page_table[params.page_table_offset + entry], params.num_pages - 1u), key % params.page_size);
}
