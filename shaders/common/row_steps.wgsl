// A step of a workgroup: it visits a Q tile of one of the query heads that share its KV head. Heads are counted from
// the first of them. The whole tiles of all heads come first.
struct Step {
  head: u32,
  visit: u32,
  row_tile: u32,
}

// The Q tiles that the owner of a KV tile visits, for each of those heads.
fn q_tiles_of(tile: KvTile) -> BlockRange {
  let head_kv = (params.head_first + tile.head) / params.heads_per_kv;
  return q_tiles(params.batch_first + tile.batch, head_kv, tile.first_key, tile.last_key);
}

// Without a branch, like tile_at.
fn step_at(visits: Visits, step: u32) -> Step {
  let whole_steps = visits.num_whole * params.heads_per_kv;
  let is_whole_step = step < whole_steps;
  let tiles = max(select(visits.count - visits.num_whole, visits.num_whole, is_whole_step), 1u);
  let in_kind = select(step - whole_steps, step, is_whole_step);
  let visit = in_kind % tiles + select(visits.num_whole, 0u, is_whole_step);
  return Step(in_kind / tiles, visit, tile_at(visits, visit));
}

// unroll ATQ in AT_Q {
  // Whether a row of the whole tiles, of any head that shares the keys, is empty: of those that this invocation looks
  // at.
  fn has_empty_row(visits: Visits, tile: KvTile, invocation: u32) -> bool {
    let rows = max(visits.num_whole * TILE_Q, 1u);
    var found = false;
    for (var index = invocation; index < visits.num_whole * TILE_Q * params.heads_per_kv; index += INVOCATIONS) {
      let head_at = tile.ATQ * params.lse_stride_batch + (tile.head + index / rows) * params.lse_stride_head;
      found = found || is_empty_row(head_at, row_of_whole(visits.range, index % rows));
    }
    return found;
  }
// }

// The keys that row i of a sequence sees; none if it lies outside the tensors, or is empty.
fn visible_keys_unless_empty(batch: u32, i: u32, stats: vec2<f32>) -> vec2<i32> {
  return select(visible_keys(batch, i), vec2<i32>(0), stats.x == -MASKED);
}

// A quad of Q of a row that may be empty: all P and dS of such a row are 0, and 0 times an infinity must not make NaN
// of dK. (Finite quads stay, so that a key of −∞ still gives a score of −∞.)
fn live_q(value: Loaded, is_empty: bool) -> Loaded {
  return select(value, Loaded(), is_empty && !all(are_finite(decode(value))));
}
