// The KV tiles that the owner of a Q tile visits.
fn kv_tiles_of(tile: QTile) -> BlockRange {
  return kv_tiles(params.batch_first + tile.batch, params.head_first + tile.head, tile.first_row, tile.last_row);
}
