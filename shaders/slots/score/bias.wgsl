// S → S + bias, with an entry for each sequence, query head, row and key. What is repeated has a stride of 0.

@group(0) @binding(BINDING_bias) var<storage, read> bias: array<u32>;

fn score_bias_of_head(batch: u32, head: u32) -> vec2<f32> { return vec2<f32>(0.0); }

fn score_bias(score: vec4<f32>, cell: Cell) -> vec4<f32> {
  // Rows and keys outside the tensors are hidden: any of their own entries will do.
  let row = min(cell.i, params.seqlen_q - 1u);
  let keys = min(vec4<u32>(cell.key) + vec4<u32>(0u, 1u, 2u, 3u), vec4<u32>(params.seqlen_kv - 1u));
  let of_row = params.bias_offset + cell.batch * params.bias_stride_batch + cell.head * params.bias_stride_head
    + row * params.bias_stride_row;
  let at = vec4<u32>(of_row) + keys * params.bias_stride_key;
  return score + vec4<f32>(bias_entry(at.x), bias_entry(at.y), bias_entry(at.z), bias_entry(at.w));
}

fn score_bias_gradient(gradient: vec4<f32>, score: vec4<f32>, cell: Cell) -> vec4<f32> { return gradient; }
