// Backward: the gradient of the sinks.
//
// Reads LSE and D[batch, num_heads, seqlen_q, 2], sink[num_heads]. Writes dsink[num_heads].
//
//   for each head h:                                     one workgroup
//     dsink_h = −Σ exp(sink_h − LSE_i) · D_i             over the rows i of all sequences
//
// exp(sink_h − LSE_i) is the share of the sink in the sum of row i. The invocations share the rows of a sequence.
// Where sequences are in several dispatches, each adds to what the last one wrote.

@group(0) @binding(BINDING_row_stats) var<storage, read> row_stats: array<vec2<f32>>;
@group(0) @binding(BINDING_dsink) var<storage, read_write> dsink: array<f32>;

var<workgroup> sums: array<f32, SINK_INVOCATIONS>;

@compute @workgroup_size(SINK_INVOCATIONS)
fn main(
  @builtin(workgroup_id) workgroup_id: vec3<u32>,
  @builtin(local_invocation_index) invocation: u32,
) {
  let head = workgroup_id.y * params.grid_width + workgroup_id.x;
  if head >= params.head_count { return; }
  let logit = sink_of(params.head_first + head);

  // Σ exp(sink_h − LSE_i) · D_i, a few rows at a time, so that long sums do not drift
  var sum = 0.0;
  for (var batch = 0u; batch < params.batch_count; batch++) {
    // unroll PACKED in PACKED_SEQUENCES {
      let sequence = sequence_of(batch);
    // }
    // unroll EXTENT in EXTENT_OF_SEQUENCE, ATQ in AT_Q {
      let head_at = params.row_stats_offset + ATQ * params.lse_stride_batch + head * params.lse_stride_head;
      for (var first = invocation; first < EXTENT.row_count; first += SINK_INVOCATIONS * ROWS_ADDED_AT_ONCE) {
        let end = min(first + SINK_INVOCATIONS * ROWS_ADDED_AT_ONCE, EXTENT.row_count);
        var part = 0.0;
        for (var row = first; row < end; row += SINK_INVOCATIONS) {
          let stats = row_stats[head_at + row];
          part = fma(exp2(logit - stats.x), stats.y, part);
        }
        sum += part;
      }
    // }
  }
  sums[invocation] = sum;
  for (var distance = SINK_INVOCATIONS / 2u; distance > 0u; distance /= 2u) {
    workgroupBarrier();
    if invocation < distance { sums[invocation] += sums[invocation + distance]; }
  }

  // dsink_h
  if invocation == 0u {
    let at = params.dsink_offset + params.head_first + head;
    var before = 0.0;
    if params.batch_first > 0u { before = dsink[at]; }
    dsink[at] = before - sums[0];
  }
}
