// Linformer: keys and values are projected along the sequence, a chunk of tokens at a time.
//
//     parts[0, c][r, :] = Σ_j E[r, j] · k_j
//     parts[1, c][r, :] = Σ_j E[r, j] · v_j        over the tokens j of chunk c
//
// k, v: [KV heads of all sequences, seqlen, HEAD_DIM]. e: [seqlen, ROWS] in f32, E with its dimensions exchanged.
// parts: [2, num_chunks, KV heads, ROWS, HEAD_DIM] in f32. A workgroup makes TILE rows of one chunk. ROWS is a multiple
// of 4.

struct Params {
  seqlen: u32,
  chunk_len: u32,
  num_chunks: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> k: array<Quad>;
@group(0) @binding(2) var<storage, read> v: array<Quad>;
@group(0) @binding(3) var<storage, read> e: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read_write> parts: array<vec4<f32>>;

const ROW_QUADS = ROWS / 4u;

@compute @workgroup_size(INVOCATIONS)
fn main(
  @builtin(workgroup_id) workgroup: vec3<u32>,
  @builtin(num_workgroups) workgroups: vec3<u32>,
  @builtin(local_invocation_index) invocation: u32,
) {
  let chunk = workgroup.x;
  let first_row = workgroup.y * TILE;
  let head = workgroup.z;
  let row_group = invocation / COLUMNS;
  let column = invocation % COLUMNS;
  let first_token = chunk * params.chunk_len;
  let end_token = min(first_token + params.chunk_len, params.seqlen);

  var keys = Sums();
  var values = Sums();
  for (var token = first_token; token < end_token; token += SLICE) {
    let depth = min(SLICE, end_token - token);
    workgroupBarrier();
    for (var i = invocation; i < depth * LEFT_QUADS; i += INVOCATIONS) {
      let quad = first_row / 4u + i % LEFT_QUADS;
      let factors = e[(token + i / LEFT_QUADS) * ROW_QUADS + min(quad, ROW_QUADS - 1u)];
      left[i] = select(Numbers(0.0), factors, quad < ROW_QUADS);
    }
    let first = (head * params.seqlen + token) * DIM_QUADS;
    for (var i = invocation; i < depth * DIM_QUADS; i += INVOCATIONS) {
      right[i / DIM_QUADS * COLUMNS + i % DIM_QUADS] = decode(k[first + i]);
    }
    workgroupBarrier();
    add_products(&keys, 0u, depth, row_group, min(column, DIM_QUADS - 1u));
    workgroupBarrier();
    for (var i = invocation; i < depth * DIM_QUADS; i += INVOCATIONS) {
      right[i / DIM_QUADS * COLUMNS + i % DIM_QUADS] = decode(v[first + i]);
    }
    workgroupBarrier();
    add_products(&values, 0u, depth, row_group, min(column, DIM_QUADS - 1u));
  }

  let heads = workgroups.z;
  for (var r = 0u; r < 8u; r++) {
    let row = first_row + 8u * row_group + r;
    if row < ROWS && column < DIM_QUADS {
      let at = ((chunk * heads + head) * ROWS + row) * DIM_QUADS + column;
      parts[at] = row_of(keys, r);
      parts[params.num_chunks * heads * ROWS * DIM_QUADS + at] = row_of(values, r);
    }
  }
}
