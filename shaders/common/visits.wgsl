// The KV tiles in the order in which flash attention visits them. Tiles that every row sees whole come first; their
// loop needs no mask. Then come the others. An online softmax may take its tiles in any order.
struct Visits {
  range: BlockRange,
  num_whole: u32,
  count: u32,
}

// Loops over whole tiles, over the others, and over all of them: whether they may have to mask, and where they end.
const IS_MASKED_whole = false;
const IS_MASKED_partial = true;
const IS_MASKED_any = true;
fn until_whole(visits: Visits) -> u32 { return visits.num_whole; }
fn until_partial(visits: Visits) -> u32 { return visits.count; }
fn until_any(visits: Visits) -> u32 { return visits.count; }

fn visits_of(range: BlockRange) -> Visits {
  // A split of the keys may hold none of the whole tiles.
  var clipped = range;
  clipped.whole_first = clamp(range.whole_first, range.first, range.end);
  clipped.whole_end = clamp(range.whole_end, clipped.whole_first, range.end);
  if NEAREST_FIRST {
    clipped.nearest = clamp(range.nearest, clipped.whole_first, max(clipped.whole_end, clipped.whole_first + 1u) - 1u);
  }
  return Visits(clipped, clipped.whole_end - clipped.whole_first, range.end - range.first);
}

// The tile of a visit; past the last visit some tile that need not exist. Without a branch: in the middle of the loop
// over tiles one costs a fifth of the speed on matrices, because compilers move nothing across it.
fn tile_at(visits: Visits, visit: u32) -> u32 {
  let range = visits.range;
  // Those before the whole ones come behind them.
  let partial = range.first + visit - visits.num_whole;
  let is_behind = visits.num_whole > 0u && partial >= range.whole_first;
  var whole = range.whole_first + visit;
  // From the nearest down, then up from it: where near keys have the highest scores, the maximum need not grow again.
  if NEAREST_FIRST {
    let is_below = visit <= range.nearest - range.whole_first;
    whole = select(whole, range.nearest - visit, is_below);
  }
  return listed(range, select(partial + select(0u, visits.num_whole, is_behind), whole, visit < visits.num_whole));
}
