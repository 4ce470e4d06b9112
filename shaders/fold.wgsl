// The fold of partial results into a running one, in place: attention over the keys so far becomes attention over
// more.
//
// Reads O_s[num_splits, batch, seqlen_q, num_heads, head_dim_v], LSE_s[num_splits, batch, num_heads, seqlen_q]. Reads
// and writes O[batch, seqlen_q, num_heads, head_dim_v], LSE[batch, num_heads, seqlen_q]. All are f32.
//
//   for each row, over the running result and its parts s:
//     m   = max(LSE, LSE_s)
//     l   = exp(LSE − m) + Σ exp(LSE_s − m)
//     O   = (exp(LSE − m) · O + Σ exp(LSE_s − m) · O_s) / l,   LSE = m + ln l
//
// What sees nothing of a row has LSE = −∞, and its O is not read. So a running result starts with LSE = −∞.
//
// Who owns what: a workgroup owns a row, an invocation four dimensions of it. All read LSE before one writes it.

@group(0) @binding(BINDING_o) var<storage, read_write> o: array<f32>;
@group(0) @binding(BINDING_lse_parts) var<storage, read> lse_parts: array<f32>;
@group(0) @binding(BINDING_lse) var<storage, read_write> lse: array<f32>;

// LSE without −∞, which WGSL compilers may assume that there is none of.
fn finite_lse(value: f32) -> f32 { return select(value, MASKED, bitcast<u32>(value) == 0xff800000u); }

@compute @workgroup_size(FOLD_INVOCATIONS)
fn main(
  @builtin(workgroup_id) workgroup_id: vec3<u32>,
  @builtin(local_invocation_index) invocation: u32,
) {
  let index = workgroup_id.y * params.grid_width + workgroup_id.x;
  let row = index % params.row_count;
  let head = index / params.row_count % params.head_count;
  let batch = index / params.row_count / params.head_count;
  if batch >= params.batch_count { return; }
  let dim = invocation * 4u;
  let at = params.lse_offset + batch * params.lse_stride_batch + head * params.lse_stride_head + row;
  let first = params.o_offset + batch * params.o_stride_batch + head * params.o_stride_head + row * params.o_stride_row;
  let lse_first = params.lse_parts_offset + batch * params.lse_parts_stride_batch + head * params.lse_parts_stride_head
    + row;
  let o_first = params.o_parts_offset + batch * params.o_parts_stride_batch + head * params.o_parts_stride_head
    + row * params.o_parts_stride_row + dim;

  // m = max(LSE, LSE_s)
  let running = finite_lse(lse[at]);
  var m = running;
  for (var split = 0u; split < params.num_splits; split++) {
    let lse_s = finite_lse(lse_parts[lse_first + split * params.lse_parts_stride_split]);
    if lse_s > m { m = lse_s; }
  }
  storageBarrier();

  // l = Σ exp(LSE_s − m), O = Σ exp(LSE_s − m) · O_s, first of the running result. As in combine.wgsl, NaN is kept.
  var l = 0.0;
  var sum = vec4<f32>(0.0);
  if !(running == MASKED) {
    let weight = exp2((running - m) * LOG2_E);
    l = weight;
    if dim < HEAD_DIM_V { sum = weight * load_o(first + dim, HEAD_DIM_V - dim); }
  }
  for (var split = 0u; split < params.num_splits; split++) {
    let lse_s = finite_lse(lse_parts[lse_first + split * params.lse_parts_stride_split]);
    if !(lse_s == MASKED) {
      let weight = exp2((lse_s - m) * LOG2_E);
      l += weight;
      if dim < HEAD_DIM_V {
        let part = load_part(o_first + split * params.o_parts_stride_split, HEAD_DIM_V - dim);
        sum = fma(vec4<f32>(weight), part, sum);
      }
    }
  }

  // O = O / l, LSE = m + ln l; a row that nothing sees gives 0 and −∞
  let empty = l == 0.0;
  if dim < HEAD_DIM_V { store_o(first + dim, HEAD_DIM_V - dim, select(sum / l, vec4<f32>(0.0), empty)); }
  if dim == 0u { lse[at] = select(m + log(l), params.negative_infinity, empty); }
}

fn load_o(index: u32, valid: u32) -> vec4<f32> {
  let last = valid - 1u;
  return vec4<f32>(o[index], o[index + min(1u, last)], o[index + min(2u, last)], o[index + min(3u, last)]);
}

fn store_o(index: u32, valid: u32, value: vec4<f32>) {
  o[index] = value.x;
  if valid > 1u { o[index + 1u] = value.y; }
  if valid > 2u { o[index + 2u] = value.z; }
  if valid > 3u { o[index + 3u] = value.w; }
}
