// The dropout of a Q tile and a KV tile in workgroup memory. One draw serves four keys of a row, and every invocation
// that needs one of them. Each row and quad of keys has a bit for each key that is kept.

const KEY_QUADS = TILE_KV / 4u;

var<workgroup> keep_tile: array<u32, TILE_Q * KEY_QUADS>;

// Head, row and key are those of the whole problem.
fn place_keep(batch: u32, head: u32, first_row: u32, first_key: u32, invocation: u32) {
  for (var index = invocation; index < TILE_Q * KEY_QUADS; index += INVOCATIONS) {
    let keep = kept(batch, head, first_row + index / KEY_QUADS, first_key + index % KEY_QUADS * 4u);
    let bits = select(vec4<u32>(0u), vec4<u32>(1u, 2u, 4u, 8u), keep);
    keep_tile[index] = bits.x | bits.y | bits.z | bits.w;
  }
}

// Row and key are counted from those of the tiles.
fn keeps(row: u32, key: u32) -> bool {
  return ((keep_tile[row * KEY_QUADS + key / 4u] >> (key % 4u)) & 1u) != 0u;
}
