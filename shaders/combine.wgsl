// The merge of partial results: attention over parts of the keys becomes attention over all of them. Each part has the
// weight of its softmax sum.
//
// Reads O_s[num_splits, batch, seqlen_q, num_heads, head_dim_v], LSE_s[num_splits, batch, num_heads, seqlen_q]. Writes
// O[batch, seqlen_q, num_heads, head_dim_v], LSE[batch, num_heads, seqlen_q].
//
//   for each row, over its parts s:
//     m   = max LSE_s
//     l   = Σ exp(LSE_s − m)
//     O   = Σ exp(LSE_s − m) · O_s / l,   LSE = m + ln l
//
// A sink, if there is one, joins l and has no value.
// A part that sees nothing of a row has LSE_s = −∞, and its O_s is not read.
//
// Who owns what: an invocation owns four dimensions of one row.

@group(0) @binding(BINDING_lse_parts) var<storage, read> lse_parts: array<f32>;
@group(0) @binding(BINDING_lse) var<storage, read_write> lse: array<f32>;

const ROW_QUADS = (HEAD_DIM_V + 3u) / 4u;

// LSE_s. Its bits show −∞, because WGSL compilers may assume that there are no infinities.
fn load_lse(index: u32) -> f32 {
  let value = lse_parts[index];
  return select(value, MASKED, bitcast<u32>(value) == 0xff800000u);
}

@compute @workgroup_size(COMBINE_INVOCATIONS)
fn main(
  @builtin(workgroup_id) workgroup_id: vec3<u32>,
  @builtin(local_invocation_index) invocation: u32,
) {
  let index = (workgroup_id.y * params.grid_width + workgroup_id.x) * COMBINE_INVOCATIONS + invocation;
  let dim = index % ROW_QUADS * 4u;
  let row = index / ROW_QUADS % params.row_count;
  let head = index / ROW_QUADS / params.row_count % params.head_count;
  let batch = index / ROW_QUADS / params.row_count / params.head_count;
  if batch >= params.batch_count { return; }
  // unroll PACKED in PACKED_SEQUENCES {
    let sequence = sequence_of(batch);
    if row >= sequence.row_count { return; }
  // }
  let lse_first = params.lse_parts_offset + batch * params.lse_parts_stride_batch + head * params.lse_parts_stride_head
    + row;
  let o_first = params.o_parts_offset + batch * params.o_parts_stride_batch + head * params.o_parts_stride_head
    + row * params.o_parts_stride_row + dim;

  // m = max LSE_s
  var m = MASKED;
  for (var split = 0u; split < params.num_splits; split++) {
    let lse_s = load_lse(lse_first + split * params.lse_parts_stride_split);
    if lse_s > m { m = lse_s; }
  }

  // l = Σ exp(LSE_s − m), O = Σ exp(LSE_s − m) · O_s
  var l = 0.0;
  var o = vec4<f32>(0.0);
  for (var split = 0u; split < params.num_splits; split++) {
    let lse_s = load_lse(lse_first + split * params.lse_parts_stride_split);
    // Not `lse_s > MASKED`: naga compiles that to a comparison that is false for NaN, and the NaN would be lost.
    if !(lse_s == MASKED) {
      let weight = exp2((lse_s - m) * LOG2_E);
      l += weight;
      o = fma(vec4<f32>(weight), load_part(o_first + split * params.o_parts_stride_split, HEAD_DIM_V - dim), o);
    }
  }

  // O = O / l, LSE = m + ln l; a row that no part sees gives 0 and −∞
  let empty = l == 0.0;
  let end = row_end(cell_at(batch, head, row, 0u), select(m * LOG2_E, MASKED, empty), l);
  // unroll ATQ in AT_Q {
    let first = params.o_offset + ATQ * params.o_stride_batch + head * params.o_stride_head + row * params.o_stride_row;
  // }
  store_o(first + dim, HEAD_DIM_V - dim, select(o * end.share, vec4<f32>(0.0), empty));
  if dim == 0u {
    // unroll ATQ in AT_Q {
      let at = params.lse_offset + ATQ * params.lse_stride_batch + head * params.lse_stride_head + row;
    // }
    lse[at] = end.lse;
  }
}
