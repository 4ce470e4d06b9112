// The lengths of sequences after an append, at most the positions of the cache.
//
// Reads cache_seqlens[batch], writes new_cache_seqlens[batch]. An invocation owns a sequence.

@group(0) @binding(BINDING_new_cache_seqlens) var<storage, read_write> new_cache_seqlens: array<u32>;

@compute @workgroup_size(APPEND_INVOCATIONS)
fn main(
  @builtin(workgroup_id) workgroup_id: vec3<u32>,
  @builtin(local_invocation_index) invocation: u32,
) {
  let batch = (workgroup_id.y * params.grid_width + workgroup_id.x) * APPEND_INVOCATIONS + invocation;
  if batch >= params.batch_count { return; }
  let before = length_of(batch);
  let after = before + min(num_tokens(batch), params.seqlen_kv - before);
  new_cache_seqlens[params.new_cache_seqlens_offset + params.batch_first + batch] = after;
}
