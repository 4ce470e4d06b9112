// S → S + bias, with an entry for each sequence, query head, row and key. What is repeated has a stride of 0.

fn score_bias_of_head(batch: u32, head: u32) -> vec2<f32> { return vec2<f32>(0.0); }

fn score_bias(score: vec4<f32>, cell: Cell) -> vec4<f32> {
  // Rows and keys outside the tensors are hidden: any entries will do.
  let row = min(cell.i, params.seqlen_q - 1u);
  let of_row = params.bias_offset + cell.batch * params.bias_stride_batch + cell.head * params.bias_stride_head
    + row * params.bias_stride_row;
  return score + bias_at(of_row, cell.key);
}

fn score_bias_gradient(gradient: vec4<f32>, score: vec4<f32>, cell: Cell) -> vec4<f32> { return gradient; }
