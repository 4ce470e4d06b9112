// The KV tiles in the order in which flash attention on matrices visits them: first those that every row sees whole, whose
// loop needs no mask, then the others. An online softmax may take its tiles in any order.
struct Visits {
  range: BlockRange,
  // How many are whole.
  num_whole: u32,
  // Where the loop over the first tile, over whole ones and over the others ends; the last goes one turn further.
  end_first: u32,
  end_whole: u32,
  end_partial: u32,
}

const IS_FIRST_first = true;
const IS_FIRST_whole = false;
const IS_FIRST_partial = false;
const IS_MASKED_first = true;
const IS_MASKED_whole = false;
const IS_MASKED_partial = true;

fn visits_of(range: BlockRange) -> Visits {
  let count = range.end - range.first;
  let num_whole = select(0u, range.whole_end - range.whole_first, range.whole_end > range.whole_first);
  return Visits(range, num_whole, min(count, 1u), num_whole, select(0u, count + 1u, count > 0u));
}

// The tile of a visit; past the last visit some tile that need not exist. Without a branch: in the middle of the loop over
// tiles one costs a fifth of the speed, because compilers move nothing across it.
fn tile_at(visits: Visits, visit: u32) -> u32 {
  let range = visits.range;
  // Those before the whole ones come behind them.
  let partial = range.first + visit - visits.num_whole;
  let is_behind = visits.num_whole > 0u && partial >= range.whole_first;
  return select(partial + select(0u, visits.num_whole, is_behind), range.whole_first + visit, visit < visits.num_whole);
}
