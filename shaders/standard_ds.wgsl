// Standard attention, backward: from S and dP to dropout(P) and dS, in place.
//
// Reads S[batch, num_heads, seqlen_q, seqlen_kv], dP of the same shape, LSE and D [batch, num_heads,
// seqlen_q, 2]. Writes P and dS in their places.
//
//   for each row:                                        one workgroup
//     P = exp(S − LSE)
//     dS = P ∘ (dropout(dP) − D)
//     P = dropout(P)                                     its factor is applied to dV
//
// S is in units of log2(e).

@group(0) @binding(BINDING_s) var<storage, read_write> s: array<vec4<f32>>;
@group(0) @binding(BINDING_dp) var<storage, read_write> dp: array<vec4<f32>>;

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
  // unroll EXTENT in EXTENT_OF_SEQUENCE, ATQ in AT_Q {
    let stats = stats_of_row(ATQ * params.lse_stride_batch + head * params.lse_stride_head, row, EXTENT.row_count);
  // }

  // The keys that the other kernels visit for this row's Q tile.
  let tile_row = row / TILE_Q * TILE_Q;
  // unroll EXTENT in EXTENT_OF_SEQUENCE {
    let last_row = min(tile_row + TILE_Q, EXTENT.row_count) - 1u;
  // }
  let range = block_range(params.batch_first + batch, params.row_first + tile_row, params.row_first + last_row);
  let first = index * (params.s_stride_row / 4u);

  for (
    var quad = range.first * (TILE_KV / 4u) + invocation;
    quad < range.end * (TILE_KV / 4u);
    quad += SOFTMAX_INVOCATIONS
  ) {
    let scores = s[first + quad];
    let masked = (scores == vec4<f32>(MASKED)) | vec4<bool>(stats.x == -MASKED);
    // P = exp(S − LSE)
    // unroll PLAIN in PLAIN_SCORES {
      var p = exp2(scores - vec4<f32>(stats.x));
    // }
    // unroll MODIFIED in MODIFIED_SCORES {
      let cell = cell_at(batch, head, row, quad * 4u);
      var p = exp2(scored_if_seen(scores, cell) - vec4<f32>(stats.x));
    // }
    var gradient = dp[first + quad];
    if HAS_DROPOUT {
      let keep = kept(params.batch_first + batch, params.head_first + head, i, quad * 4u);
      gradient = select(vec4<f32>(0.0), gradient * params.dropout_scale, keep);
      // P = dropout(P)
      s[first + quad] = select(vec4<f32>(0.0), p, keep & !masked);
    } else {
      s[first + quad] = select(p, vec4<f32>(0.0), masked);
    }
    // dS = P ∘ (dropout(dP) − D)
    // unroll PLAIN in PLAIN_SCORES {
      dp[first + quad] = select(p * (gradient - vec4<f32>(stats.y)), vec4<f32>(0.0), masked);
    // }
    // unroll MODIFIED in MODIFIED_SCORES {
      let ds = score_gradient(p * (gradient - vec4<f32>(stats.y)), scores, cell);
      dp[first + quad] = select(ds, vec4<f32>(0.0), masked);
    // }
  }
}
