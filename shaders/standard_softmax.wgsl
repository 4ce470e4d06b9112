// Standard attention, second kernel: P = dropout(softmax(S)) in place, and LSE.
//
// Reads S[batch, num_heads, seqlen_q, seqlen_kv]. Writes P in the place of S, LSE[batch, num_heads, seqlen_q].
//
//   for each row:                                        one workgroup
//     m = rowmax(S), l = rowsum(exp(S − m))              one pass, online; each invocation has a part of the row
//     P = dropout(exp(S − m) / l), LSE = m + ln l        a second pass
//
// S is in units of log2(e).

@group(0) @binding(BINDING_s) var<storage, read_write> s: array<vec4<f32>>;
@group(0) @binding(BINDING_lse) var<storage, read_write> lse: array<f32>;

var<workgroup> maxima: array<f32, SOFTMAX_INVOCATIONS>;
var<workgroup> sums: array<f32, SOFTMAX_INVOCATIONS>;

@compute @workgroup_size(SOFTMAX_INVOCATIONS)
fn main(
  @builtin(workgroup_id) workgroup_id: vec3<u32>,
  @builtin(local_invocation_index) invocation: u32,
) {
  let index = workgroup_id.y * params.grid_width + workgroup_id.x;
  let row = index % params.row_count;
  let head = index / params.row_count % params.head_count;
  let batch = index / params.row_count / params.head_count;
  if batch >= params.batch_count { return; }
  // unroll PACKED in PACKED_SEQUENCES {
    let sequence = sequence_of(batch);
    if row >= sequence.row_count { return; }
  // }
  let i = params.row_first + row;
  // unroll MODIFIED in MODIFIED_SCORES {
    enter_head(batch, head);
  // }

  // The keys that the other two kernels visit for this row's Q tile.
  let tile_row = row / TILE_Q * TILE_Q;
  // unroll EXTENT in EXTENT_OF_SEQUENCE {
    let last_row = min(tile_row + TILE_Q, EXTENT.row_count) - 1u;
  // }
  let range = block_range(params.batch_first + batch, params.row_first + tile_row, params.row_first + last_row);
  let first = index * (params.s_stride_row / 4u);

  // m = rowmax(S), l = rowsum(exp(S − m))
  var m = MASKED;
  var l = 0.0;
  for (
    var quad = range.first * (TILE_KV / 4u) + invocation;
    quad < range.end * (TILE_KV / 4u);
    quad += SOFTMAX_INVOCATIONS
  ) {
    // unroll PLAIN in PLAIN_SCORES {
      let scores = s[first + quad];
    // }
    // unroll MODIFIED in MODIFIED_SCORES {
      // Kept for the second pass: computed once more it might be rounded otherwise, and P would not add up to 1.
      let scores = scored_if_seen(s[first + quad], cell_at(batch, head, row, quad * 4u));
      s[first + quad] = scores;
    // }
    let m_new = max(m, max(max(scores.x, scores.y), max(scores.z, scores.w)));
    let p = select(exp2(scores - vec4<f32>(m_new)), vec4<f32>(0.0), scores == vec4<f32>(MASKED));
    l = fma(exp2(m - m_new), l, (p.x + p.y) + (p.z + p.w));
    m = m_new;
  }
  maxima[invocation] = m;
  sums[invocation] = l;
  for (var distance = SOFTMAX_INVOCATIONS / 2u; distance > 0u; distance /= 2u) {
    workgroupBarrier();
    if invocation < distance {
      let m_other = maxima[invocation + distance];
      let m_new = max(m, m_other);
      l = exp2(m - m_new) * l + exp2(m_other - m_new) * sums[invocation + distance];
      m = m_new;
      maxima[invocation] = m;
      sums[invocation] = l;
    }
  }
  workgroupBarrier();
  m = maxima[0];
  l = sums[0];

  // P = dropout(exp(S − m) / l), LSE = m + ln l; a row that sees nothing, or only scores of −∞, gives 0 and −∞
  let empty = l == 0.0;
  let end = row_end(cell_at(batch, head, row, 0u), m, l);
  let factor = select(params.dropout_scale * end.share, 0.0, empty);
  for (
    var quad = range.first * (TILE_KV / 4u) + invocation;
    quad < range.end * (TILE_KV / 4u);
    quad += SOFTMAX_INVOCATIONS
  ) {
    let scores = s[first + quad];
    var p = select(exp2(scores - vec4<f32>(m)) * factor, vec4<f32>(0.0), scores == vec4<f32>(MASKED));
    // A row with NaN is NaN, even if all that it sees is dropped.
    if HAS_DROPOUT { p = dropout(p, params.batch_first + batch, params.head_first + head, i, quad * 4u); }
    if HAS_DROPOUT && is_nan(l) { p = vec4<f32>(l); }
    s[first + quad] = p;
  }
  if invocation == 0u {
    // unroll ATQ in AT_Q {
      let lse_index = params.lse_offset + ATQ * params.lse_stride_batch + head * params.lse_stride_head + row;
    // }
    lse[lse_index] = end.lse;
  }
}
