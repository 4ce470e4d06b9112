// A bit for each entry, 1 where the row may attend to the key: words of 32 keys, the first in the lowest bit. Where
// key_mask_stride_key is 0, all keys of a row have one bit.

@group(0) @binding(BINDING_key_mask) var<storage, read> key_mask: array<u32>;

fn sees_boolean(cell: Cell) -> vec4<bool> {
  // Rows and keys outside the tensors are hidden anyway.
  let row = min(cell.i, params.seqlen_q - 1u);
  let key = min(cell.key, params.seqlen_kv - 1u) * params.key_mask_stride_key;
  let at = params.key_mask_offset + cell.batch * params.key_mask_stride_batch
    + cell.head * params.key_mask_stride_head + row * params.key_mask_stride_row;
  let bits = key_mask[at + key / 32u] >> (key % 32u);
  let steps = vec4<u32>(0u, 1u, 2u, 3u) * params.key_mask_stride_key;
  return ((vec4<u32>(bits) >> steps) & vec4<u32>(1u)) != vec4<u32>(0u);
}
