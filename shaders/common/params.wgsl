// What changes from dispatch to dispatch. The same struct in Rust is `plan::Params`. A test compares names, offsets
// and size, which must be a multiple of 16 bytes. All fields are 4-byte scalars, so Rust, WGSL and every backend agree
// on the layout without padding rules.
struct Params {
  // Lengths of this call; heads of Q and O per head of K and V; heads of the whole problem.
  seqlen_q: u32,
  seqlen_kv: u32,
  heads_per_kv: u32,
  num_heads: u32,
  // The part of the problem that this dispatch covers.
  batch_first: u32,
  batch_count: u32,
  head_first: u32,
  head_count: u32,
  row_first: u32,
  row_count: u32,
  // Workgroups along x: the grid is folded, because one dimension stops at 65,535.
  grid_width: u32,
  // Row i sees the keys i + mask_offset − window_left ..= i + mask_offset + window_right.
  mask_offset: i32,
  window_left: i32,
  window_right: i32,
  // softmax_scale · log2(e): the softmax works in powers of two.
  softmax_scale_log2: f32,
  // A random word below the threshold drops its entry; kept ones are scaled.
  dropout_threshold: u32,
  dropout_scale: f32,
  philox_seed_low: u32,
  philox_seed_high: u32,
  philox_offset: u32,
  // WGSL has no literal for −∞, which is the LSE of a row that sees nothing.
  negative_infinity: f32,
  // Where the tensors lie, in elements from the start of their bindings.
  q_offset: u32,
  q_stride_batch: u32,
  q_stride_row: u32,
  q_stride_head: u32,
  k_offset: u32,
  k_stride_batch: u32,
  k_stride_row: u32,
  k_stride_head: u32,
  v_offset: u32,
  v_stride_batch: u32,
  v_stride_row: u32,
  v_stride_head: u32,
  o_offset: u32,
  o_stride_batch: u32,
  o_stride_row: u32,
  o_stride_head: u32,
  lse_offset: u32,
  lse_stride_batch: u32,
  lse_stride_head: u32,
  // Elements from one row of the score matrix to the next (standard attention), or of probabilities.
  s_stride_row: u32,
  // The keys that this dispatch covers; all of them but where a workgroup owns keys.
  key_first: u32,
  key_count: u32,
  // Backward. LSE, its gradient and D have the same strides.
  has_d_lse: u32,
  d_lse_offset: u32,
  row_stats_offset: u32,
  d_o_offset: u32,
  d_o_stride_batch: u32,
  d_o_stride_row: u32,
  d_o_stride_head: u32,
  dq_offset: u32,
  dq_stride_batch: u32,
  dq_stride_row: u32,
  dq_stride_head: u32,
  dk_offset: u32,
  dk_stride_batch: u32,
  dk_stride_row: u32,
  dk_stride_head: u32,
  dv_offset: u32,
  dv_stride_batch: u32,
  dv_stride_row: u32,
  dv_stride_head: u32,
  // Partial results: how many there are for each row, and where they lie.
  num_splits: u32,
  o_parts_offset: u32,
  o_parts_stride_split: u32,
  o_parts_stride_batch: u32,
  o_parts_stride_row: u32,
  o_parts_stride_head: u32,
  lse_parts_offset: u32,
  lse_parts_stride_split: u32,
  lse_parts_stride_batch: u32,
  lse_parts_stride_head: u32,
  // Entries of a bias, in elements; of a mask in words, but for the keys of a row, which are bits.
  bias_offset: u32,
  bias_stride_batch: u32,
  bias_stride_head: u32,
  bias_stride_row: u32,
  bias_stride_key: u32,
  key_mask_offset: u32,
  key_mask_stride_batch: u32,
  key_mask_stride_head: u32,
  key_mask_stride_row: u32,
  key_mask_stride_key: u32,
  // One f32 for each query head.
  sink_offset: u32,
  dsink_offset: u32,
  // Entries of the gradient of a bias. What is repeated has a stride of 0.
  dbias_offset: u32,
  dbias_stride_batch: u32,
  dbias_stride_head: u32,
  dbias_stride_row: u32,
  dbias_stride_key: u32,
  // Probabilities, in rows of s_stride_row.
  probabilities_offset: u32,
  probabilities_stride_batch: u32,
  probabilities_stride_head: u32,
  // Appends. The caches, whose batches are pages where there are pages, and the rotated Q.
  k_cache_offset: u32,
  k_cache_stride_batch: u32,
  k_cache_stride_row: u32,
  k_cache_stride_head: u32,
  v_cache_offset: u32,
  v_cache_stride_batch: u32,
  v_cache_stride_row: u32,
  v_cache_stride_head: u32,
  q_rotated_offset: u32,
  q_rotated_stride_batch: u32,
  q_rotated_stride_row: u32,
  q_rotated_stride_head: u32,
  // Positions of a page, pages, and entries of the page table for a sequence. A sequence whose positions lie side by
  // side counts as a page.
  page_size: u32,
  num_pages: u32,
  max_pages: u32,
  // Rows of the rotary tables; of new tokens, for each sequence or (packed) for all.
  rotary_positions: u32,
  token_rows: u32,
  // Words or f32.
  cache_seqlens_offset: u32,
  page_table_offset: u32,
  slot_mapping_offset: u32,
  cu_seqlens_new_offset: u32,
  rotary_cos_offset: u32,
  rotary_sin_offset: u32,
  new_cache_seqlens_offset: u32,
  // Where this problem stands in a larger one: what sequence, query head, row and key 0 are there. num_heads and
  // mask_offset are those of the larger problem too.
  first_batch: u32,
  first_head: u32,
  first_row: u32,
  first_key: u32,
}

@group(0) @binding(BINDING_params) var<uniform> params: Params;

const LN_2 = 0.6931471805599453;
const LOG2_E = 1.4426950408889634;

// Stands for −∞ inside the kernels: WGSL compilers may assume that there are no infinities.
const MASKED = -3.0e38;

// LANES neighbouring invocations share each row, of a Q tile or (where a workgroup owns keys) of a KV tile.
const INVOCATIONS = LANES * ROW_LANES;

// A sum of n terms that are all alike may drift by n · 2⁻²⁵ of itself, since they round the same way again and again.
// So a long sum is a sum of sums: so many tiles of `side` terms are added up before their sum joins the total. They
// hold 256 terms or, of very many, about as many as there are sums.
fn tiles_of_a_sum(num_tiles: u32, side: u32) -> u32 {
  return max(256u, u32(sqrt(f32(num_tiles) * f32(side)))) / side;
}

// How far m may lag behind the maximum before O is rescaled, in powers of two: P stays below 2⁸, which f16 holds too.
const MAX_GROWTH = 8.0;
