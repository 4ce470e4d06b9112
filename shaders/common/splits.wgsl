// The tiles of a range that one split of the keys owns: as many as every other split, or one more.
fn split_of(range: BlockRange, split: u32) -> BlockRange {
  let tiles = range.end - range.first;
  let least = tiles / num_splits();
  let rest = tiles % num_splits();
  var part = range;
  part.first = range.first + split * least + min(split, rest);
  part.end = part.first + least + select(0u, 1u, split < rest);
  return part;
}

// Whether a row with these visible keys sees none within a range.
fn sees_none(visible: vec2<i32>, range: BlockRange) -> bool {
  return max(visible.x, i32(range.first * TILE_KV)) >= min(visible.y, i32(range.end * TILE_KV));
}
