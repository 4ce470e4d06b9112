// Rows of new tokens: rotated, converted, and written where they belong. K and V go to a cache, Q to another tensor or
// to its own place.
//
// Reads ROWS[batch, seqlen_q, heads, DIM], or [total, heads, DIM] of packed tokens. Writes TARGET: a cache
// [pages, page_size, heads, DIM], where a sequence with its positions side by side is a page, or rows like ROWS.
//
//   for each head of each new token i of each sequence b:           ROW_QUADS invocations, four dimensions each
//     x = ROWS[b, i, head]
//     (x_m, y_m) = (x_m · cos − y_m · sin, x_m · sin + y_m · cos), for the pairs m that are rotated
//     TARGET[place of b and i, head] = x, in the type of TARGET
//
// Lengths, tables and slots may hold anything: what has no place in TARGET is not written.

const ROW_QUADS = (DIM + 3u) / 4u;
const WORKGROUP_ROWS = APPEND_INVOCATIONS / ROW_QUADS;

// An entry of a row, rotated.
fn entry_of(token: Token, dim: u32) -> f32 { return rotated(row_of(token), min(dim, DIM - 1u), token); }

@compute @workgroup_size(APPEND_INVOCATIONS)
fn main(
  @builtin(workgroup_id) workgroup_id: vec3<u32>,
  @builtin(local_invocation_index) invocation: u32,
) {
  let row = invocation / ROW_QUADS;
  let dim = invocation % ROW_QUADS * 4u;
  let index = (workgroup_id.y * params.grid_width + workgroup_id.x) * WORKGROUP_ROWS + row;
  let batch = index / num_heads() / params.row_count;
  let found = Token(batch, index / num_heads() % params.row_count, index % num_heads());
  let exists = row < WORKGROUP_ROWS && batch < params.batch_count;
  // The folded grid may be larger. What does not exist reads what the first token has.
  var token = Token(0u, 0u, 0u);
  if exists { token = found; }

  // x, rotated
  let value = vec4<f32>(
    entry_of(token, dim), entry_of(token, dim + 1u), entry_of(token, dim + 2u), entry_of(token, dim + 3u));
  let inside = vec4<u32>(dim) + vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(DIM);

  // TARGET = x. Rows that are their own target have been read by all by now.
  storageBarrier();
  let place = place_of(token);
  let stored = exists && is_token(token) && place.exists;
  store_row(place.first, dim, select(vec4<f32>(0.0), value, inside), stored, invocation);
}
