// FlashAttention, backward: the gradient of a bias.
//
// Reads Q[batch, seqlen_q, num_heads, head_dim], K[batch, seqlen_kv, num_heads_kv, head_dim],
// V[batch, seqlen_kv, num_heads_kv, head_dim_v], dO[batch, seqlen_q, num_heads, head_dim_v],
// LSE and D [batch, num_heads, seqlen_q, 2]. Writes dBias[batch or 1, num_heads or 1, seqlen_q or 1, seqlen_kv or 1] in
// f32; of a bias in 16 bits it writes the sums that round_dbias.wgsl rounds.
//
//   for each tile of entries:                            one workgroup
//     dBias = 0
//     for each tile of scores, rows i and keys j, that these entries are added to:
//       P     = exp(S_ij − LSE_i), masked
//       dP    = dropout(dO_i V_jᵀ)
//       dBias = dBias + P ∘ (dP − D_i), back through what comes after the bias
//     dBias = sum of dBias over the rows, or keys, that share an entry
//
// Where dBias has a stride of 0, all sequences, heads, rows or keys share an entry. A workgroup visits them all, always
// in the same order. Of the others, each has its own workgroup. An invocation owns THREAD_ROWS rows by four
// neighbouring keys. If a sum is divided among dispatches, each adds to what the last one wrote.
// S and LSE are in units of log2(e).

// unroll SUM in SUM {
  @group(0) @binding(BINDING_SUM) var<storage, read_write> SUM: array<f32>;
// }

const ROW_STRIDE = CHUNK_QUADS | 1u;
const K_DIM = HEAD_DIM;
const V_DIM = HEAD_DIM_V;

var<workgroup> row_tile: array<vec4<f32>, TILE_Q * ROW_STRIDE>;
var<workgroup> key_tile: array<vec4<f32>, TILE_KV * ROW_STRIDE>;
var<workgroup> sums: array<vec4<f32>, INVOCATIONS>;

// A tile of scores: sequence, heads, first row and first key, counted from the first of this dispatch.
struct ScoreTile {
  batch: u32,
  head: u32,
  head_kv: u32,
  row: u32,
  key: u32,
  // unroll PACKED in PACKED_SEQUENCES {
    sequence: Sequence,
  // }
}

// Sequences, heads, tiles of rows and tiles of keys of this dispatch.
fn num_tiles() -> vec4<u32> {
  let row_tiles = (params.row_count + TILE_Q - 1u) / TILE_Q;
  let key_tiles = (params.key_count + TILE_KV - 1u) / TILE_KV;
  return vec4<u32>(params.batch_count, params.head_count, row_tiles, key_tiles);
}

// Of these four, which share an entry.
fn is_shared() -> vec4<bool> {
  let to_row_and_key = vec2<u32>(params.dbias_stride_row, params.dbias_stride_key);
  return vec4<u32>(params.dbias_stride_batch, params.dbias_stride_head, to_row_and_key) == vec4<u32>(0u);
}

fn product_of(counts: vec4<u32>) -> u32 { return counts.x * counts.y * counts.z * counts.w; }

// The place of number `index` among so many; the last dimension is the fastest.
fn place_among(counts: vec4<u32>, index: u32) -> vec4<u32> {
  let of_head = index / counts.w;
  let of_batch = of_head / counts.z;
  return vec4<u32>(of_batch / counts.y, of_batch % counts.y, of_head % counts.z, index % counts.w);
}

fn score_tile_at(place: vec4<u32>) -> ScoreTile {
  let head_kv = (params.head_first + place.y) / params.heads_per_kv - params.head_first / params.heads_per_kv;
  // unroll DENSE in DENSE_SEQUENCES {
    return ScoreTile(place.x, place.y, head_kv, place.z * TILE_Q, place.w * TILE_KV);
  // }
  // unroll PACKED in PACKED_SEQUENCES {
    return ScoreTile(place.x, place.y, head_kv, place.z * TILE_Q, place.w * TILE_KV, sequence_of(place.x));
  // }
}

// A chunk of dimensions of the rows and keys of a tile, and the products of all dimensions: Q Kᵀ and dO Vᵀ.
// unroll W in WIDTHS, LEFT in OWNED_W, RIGHT in WALKED_W, EXTENT in EXTENT_OF_TILE, ATQ in AT_Q, ATK in AT_K {
  fn load_chunk_W(tile: ScoreTile, chunk: u32, invocation: u32, factor: f32) {
    let rows_at = LEFT_head(tile.ATQ, tile.head);
    for (var index = invocation; index < TILE_Q * CHUNK_QUADS; index += INVOCATIONS) {
      let row = index / CHUNK_QUADS;
      let dim = (chunk * CHUNK_QUADS + index % CHUNK_QUADS) * 4u;
      let value = decode(LEFT_quad(rows_at, tile.row + row, EXTENT.row_count, dim, W_DIM));
      row_tile[row * ROW_STRIDE + index % CHUNK_QUADS] = value * factor;
    }
    let keys_at = RIGHT_head(tile.ATK, tile.head_kv);
    for (var index = invocation; index < TILE_KV * CHUNK_QUADS; index += INVOCATIONS) {
      let key = index / CHUNK_QUADS;
      let dim = (chunk * CHUNK_QUADS + index % CHUNK_QUADS) * 4u;
      // The four keys of an invocation lie LANES rows apart, so that neighbours read neighbouring rows.
      let place = key % 4u * LANES + key / 4u;
      let value = decode(RIGHT_quad(keys_at, tile.key + key, EXTENT.key_count, dim, W_DIM));
      key_tile[place * ROW_STRIDE + index % CHUNK_QUADS] = value;
    }
  }

  // Of each of this invocation's rows, the products with its four keys.
  fn products_W(tile: ScoreTile, invocation: u32, factor: f32) -> array<vec4<f32>, THREAD_ROWS> {
    let lane = invocation % LANES;
    let row_lane = invocation / LANES;
    // unroll N in THREAD_ROWS {
      var s_N = vec4<f32>(0.0);
    // }
    for (var chunk = 0u; chunk < W_CHUNKS; chunk++) {
      workgroupBarrier(); // the last chunk is read
      load_chunk_W(tile, chunk, invocation, factor);
      workgroupBarrier(); // the chunk is in place
      for (var d = 0u; d < CHUNK_QUADS; d++) {
        let k_0 = key_tile[lane * ROW_STRIDE + d];
        let k_1 = key_tile[(lane + LANES) * ROW_STRIDE + d];
        let k_2 = key_tile[(lane + 2u * LANES) * ROW_STRIDE + d];
        let k_3 = key_tile[(lane + 3u * LANES) * ROW_STRIDE + d];
        // unroll N in THREAD_ROWS {
          let q_N = row_tile[(row_lane + N * ROW_LANES) * ROW_STRIDE + d];
          s_N = vec4<f32>(dot_add(q_N, k_0, s_N.x), dot_add(q_N, k_1, s_N.y), dot_add(q_N, k_2, s_N.z),
            dot_add(q_N, k_3, s_N.w));
        // }
      }
    }
    var result = array<vec4<f32>, THREAD_ROWS>();
    // unroll N in THREAD_ROWS {
      result[N] = s_N;
    // }
    return result;
  }
// }

// The sum over the rows, and over the keys, that share an entry; the first of those who share it get it.
fn sum_of_shared(value: vec4<f32>, shared_rows: bool, shared_keys: bool, invocation: u32) -> vec4<f32> {
  var sum = value;
  if shared_keys { sum = vec4<f32>((value.x + value.y) + (value.z + value.w), 0.0, 0.0, 0.0); }
  workgroupBarrier(); // the last sums are read
  sums[invocation] = sum;
  if shared_rows {
    for (var distance = INVOCATIONS / 2u; distance >= LANES; distance /= 2u) {
      workgroupBarrier();
      if invocation < distance { sums[invocation] += sums[invocation + distance]; }
    }
  }
  if shared_keys {
    for (var distance = LANES / 2u; distance > 0u; distance /= 2u) {
      workgroupBarrier();
      if invocation % LANES < distance { sums[invocation] += sums[invocation + distance]; }
    }
  }
  return sums[invocation];
}

// Writes the entries of a row and four keys, counted from the first of this dispatch, or adds to them.
fn write_entries(place: vec4<u32>, row: u32, key: u32, value: vec4<f32>) {
  let firsts = vec4<u32>(params.batch_first, params.head_first, params.row_first, params.key_first);
  let adds = any(is_shared() & (firsts > vec4<u32>(0u)));
  let of_row = params.dbias_offset + (params.batch_first + place.x) * params.dbias_stride_batch
    + (params.head_first + place.y) * params.dbias_stride_head + (params.row_first + row) * params.dbias_stride_row;
  // unroll E in KEYS {
    if key + E < select(params.key_count, 1u, params.dbias_stride_key == 0u) {
      let at_E = of_row + (params.key_first + key + E) * params.dbias_stride_key;
      // unroll SUM in SUM {
        var before_E = 0.0;
        if adds { before_E = SUM[at_E]; }
        SUM[at_E] = before_E + value[E];
      // }
    }
  // }
}

// Tiles of scores whose terms are added up before their sum joins the total.
const TILES_ADDED_AT_ONCE = 64u;

@compute @workgroup_size(INVOCATIONS)
fn main(
  @builtin(workgroup_id) workgroup_id: vec3<u32>,
  @builtin(local_invocation_index) invocation: u32,
) {
  let index = workgroup_id.y * params.grid_width + workgroup_id.x;
  let shared_by_all = is_shared();
  let owned_tiles = select(num_tiles(), vec4<u32>(1u), shared_by_all);
  let visited_tiles = select(vec4<u32>(1u), num_tiles(), shared_by_all);
  if index >= product_of(owned_tiles) { return; }
  let place = place_among(owned_tiles, index);
  let num_visits = product_of(visited_tiles);

  // dBias = 0
  // unroll N in THREAD_ROWS {
    let row_N = invocation / LANES + N * ROW_LANES;
    var dbias_N = vec4<f32>(0.0);
  // }

  // for each tile of scores that these entries are added to, a few at a time, so that long sums do not drift:
  for (var first = 0u; first < num_visits; first += TILES_ADDED_AT_ONCE) {
    // unroll N in THREAD_ROWS {
      var part_N = vec4<f32>(0.0);
    // }
    for (var visit = first; visit < min(first + TILES_ADDED_AT_ONCE, num_visits); visit++) {
      let tile = score_tile_at(place + place_among(visited_tiles, visit));
      let first_row = params.row_first + tile.row;
      // unroll PACKED in PACKED_SEQUENCES {
        if tile.row >= tile.sequence.row_count || tile.key >= tile.sequence.key_count { continue; }
      // }
      // unroll EXTENT in EXTENT_OF_TILE {
        let last_row = params.row_first + min(tile.row + TILE_Q, EXTENT.row_count) - 1u;
      // }
      let range = block_range(params.batch_first + tile.batch, first_row, last_row);
      let j = (params.key_first + tile.key) / TILE_KV;
      if first_row >= params.seqlen_q || j < range.first || j >= range.end { continue; }
      let whole = is_whole(range, j);

      // S, dP
      let scores = products_K(tile, invocation, params.softmax_scale_log2);
      let gradients = products_V(tile, invocation, 1.0);

      // dBias = dBias + P ∘ (dropout(dP) − D_i), back through what comes after the bias
      enter_head(tile.batch, tile.head);
      // unroll ATQ in AT_Q {
        let head_at = tile.ATQ * params.lse_stride_batch + tile.head * params.lse_stride_head;
      // }
      let key = tile.key + invocation % LANES * 4u;
      // unroll N in THREAD_ROWS, EXTENT in EXTENT_OF_TILE {
        let cell_N = cell_at(tile.batch, tile.head, tile.row + row_N, params.key_first + key);
        let stats_N = stats_of_row(head_at, tile.row + row_N, EXTENT.row_count);
        let p_N = exp2(scored(scores[N], cell_N) - vec4<f32>(stats_N.x));
        var gradient_N = gradients[N];
        if HAS_DROPOUT {
          let keep_N = kept(cell_N.batch, cell_N.head, cell_N.i, cell_N.key);
          gradient_N = select(vec4<f32>(0.0), gradient_N * params.dropout_scale, keep_N);
        }
        // SCORE_MODS_BACK ends at the bias here.
        let ds_N = score_gradient(p_N * (gradient_N - vec4<f32>(stats_N.y)), scores[N], cell_N);
        // A row that is empty, or that this call does not have, has no gradient.
        var seen_N = vec4<bool>(!(stats_N.x == -MASKED) & (cell_N.i < EXTENT.seqlen_q));
        if !whole { seen_N = seen_N & sees(visible_keys(cell_N.batch, cell_N.i), cell_N); }
        part_N += select(vec4<f32>(0.0), ds_N, seen_N);
      // }
    }
    // unroll N in THREAD_ROWS {
      dbias_N += part_N;
    // }
  }

  // dBias = sum of dBias over the rows, or keys, that share an entry
  let key = place.w * TILE_KV + invocation % LANES * 4u;
  let is_writer = !shared_by_all.w || invocation % LANES == 0u;
  if shared_by_all.z {
    var of_rows = vec4<f32>(0.0);
    // unroll N in THREAD_ROWS {
      of_rows += dbias_N;
    // }
    of_rows = sum_of_shared(of_rows, true, shared_by_all.w, invocation);
    if is_writer && invocation < LANES { write_entries(place, 0u, key, of_rows); }
  } else {
    // unroll N in THREAD_ROWS {
      if shared_by_all.w { dbias_N = sum_of_shared(dbias_N, false, true, invocation); }
      let entry_row_N = place.z * TILE_Q + row_N;
      if is_writer && entry_row_N < params.row_count { write_entries(place, entry_row_N, key, dbias_N); }
    // }
  }
}
