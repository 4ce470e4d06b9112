// A workgroup visits all keys that its rows see. Its result is the answer.

@group(0) @binding(BINDING_lse) var<storage, read_write> lse: array<f32>;

fn num_splits() -> u32 { return 1u; }

fn keys_of(range: BlockRange, split: u32) -> BlockRange { return range; }

// Where a row of O starts. Sequence, head and row are counted from the first of this dispatch.
fn o_row(split: u32, batch: u32, head: u32, row: u32) -> u32 {
  return params.o_offset + batch * params.o_stride_batch + head * params.o_stride_head + row * params.o_stride_row;
}

// Four dimensions of the row that starts at `first`, from `dim` on.
fn write_o(first: u32, dim: u32, value: vec4<f32>) { store_o(first + dim, HEAD_DIM_V - dim, value); }

fn write_lse(split: u32, batch: u32, head: u32, row: u32, value: f32) {
  lse[params.lse_offset + batch * params.lse_stride_batch + head * params.lse_stride_head + row] = value;
}
