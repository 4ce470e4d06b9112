// A step of a workgroup's walk: a visit of a Q tile of one of the query heads that share its KV head, counted from the
// first of them. The whole tiles of all heads come first.
struct Step {
  head: u32,
  visit: u32,
  row_tile: u32,
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
