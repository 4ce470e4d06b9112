// Linear attention: what a chunk of keys adds to the state.
//
//     S_c[f, :] = Σ_j φ(k_j)[f] · [v_j, 1]        over the keys j of chunk c
//
// k, v: [KV heads of all sequences, seqlen, HEAD_DIM]. states: [KV heads, num_chunks, HEAD_DIM, 4 · COLUMNS] in f32.
// A workgroup makes TILE features of one chunk; its keys pass through workgroup memory, SLICE at a time.

struct Params {
  seqlen: u32,
  chunk_len: u32,
  num_chunks: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> k: array<Quad>;
@group(0) @binding(2) var<storage, read> v: array<Quad>;
@group(0) @binding(3) var<storage, read_write> states: array<vec4<f32>>;

@compute @workgroup_size(INVOCATIONS)
fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) invocation: u32) {
  let chunk = workgroup.x;
  let first_quad = workgroup.y * LEFT_QUADS;
  let head = workgroup.z;
  let row_group = invocation / COLUMNS;
  let column = invocation % COLUMNS;
  let first_key = chunk * params.chunk_len;
  let end_key = min(first_key + params.chunk_len, params.seqlen);

  var sums = Sums();
  for (var key = first_key; key < end_key; key += SLICE) {
    let depth = min(SLICE, end_key - key);
    let first = (head * params.seqlen + key) * DIM_QUADS;
    workgroupBarrier();
    for (var i = invocation; i < depth * LEFT_QUADS; i += INVOCATIONS) {
      let quad = first_quad + i % LEFT_QUADS;
      var features = Numbers(0.0);
      if quad < DIM_QUADS {
        features = feature(decode(k[first + i / LEFT_QUADS * DIM_QUADS + quad]));
      }
      left[i] = features;
    }
    values_to_right(head, key, depth, invocation);
    workgroupBarrier();
    add_products(&sums, 0u, depth, row_group, column);
  }

  let first_feature = 4u * first_quad + 8u * row_group;
  let base = (head * params.num_chunks + chunk) * HEAD_DIM * COLUMNS;
  for (var r = 0u; r < 8u; r++) {
    if first_feature + r < HEAD_DIM {
      states[base + (first_feature + r) * COLUMNS + column] = row_of(sums, r);
    }
  }
}
