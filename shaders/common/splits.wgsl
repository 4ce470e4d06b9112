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
