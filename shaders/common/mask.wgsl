// The keys that row i (of the whole problem) sees, as first and end; nothing is seen where end ≤ first.
fn visible_keys(i: u32) -> vec2<i32> {
  let diagonal = i32(i) + params.mask_offset;
  let first = max(diagonal - params.window_left, 0);
  return vec2<i32>(first, min(diagonal + params.window_right + 1, i32(params.seqlen_kv)));
}

// Which of the four keys from `key` on the row with these visible keys sees.
fn sees(visible: vec2<i32>, key: u32) -> vec4<bool> {
  let keys = vec4<i32>(i32(key)) + vec4<i32>(0, 1, 2, 3);
  return (keys >= vec4<i32>(visible.x)) & (keys < vec4<i32>(visible.y));
}

// The rows that see key j (both of the whole problem), as first and end; none where end ≤ first.
fn seeing_rows(j: u32) -> vec2<i32> {
  let diagonal = i32(j) - params.mask_offset;
  let first = max(diagonal - params.window_right, 0);
  return vec2<i32>(first, min(diagonal + params.window_left + 1, i32(params.seqlen_q)));
}
