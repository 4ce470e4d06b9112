// A bit for each block that is seen. The table holds rows and keys of a block, the words from one sequence, head and
// row of blocks to the next, then the words: 32 blocks along the keys each, the first in the lowest bit.
fn sees_blocks(cell: Cell) -> vec4<bool> {
  let table = tables[TABLE_blocks];
  // Rows and keys outside the tensors are hidden anyway.
  let row = min(cell.i, params.seqlen_q - 1u) / tables[table];
  let last = vec4<u32>(params.seqlen_kv - 1u);
  let block = min(vec4<u32>(cell.key) + vec4<u32>(0u, 1u, 2u, 3u), last) / vec4<u32>(tables[table + 1u]);
  let at = vec4<u32>(table + 5u + cell.batch * tables[table + 2u] + cell.head * tables[table + 3u]
    + row * tables[table + 4u]) + block / vec4<u32>(32u);
  let words = vec4<u32>(tables[at.x], tables[at.y], tables[at.z], tables[at.w]);
  return ((words >> (block % vec4<u32>(32u))) & vec4<u32>(1u)) != vec4<u32>(0u);
}
