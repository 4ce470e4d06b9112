// A workgroup visits one split of the keys that its rows see. Its result is a part, in f32, which combine.wgsl merges.

@group(0) @binding(BINDING_o_parts) var<storage, read_write> o_parts: array<vec4<f32>>;
@group(0) @binding(BINDING_lse_parts) var<storage, read_write> lse_parts: array<f32>;

fn num_splits() -> u32 { return params.num_splits; }

// The tiles of a range that one split of the keys owns: as many as every other split, or one more.
fn keys_of(range: BlockRange, split: u32) -> BlockRange {
  let tiles = range.end - range.first;
  let least = tiles / num_splits();
  let rest = tiles % num_splits();
  var part = range;
  part.first = range.first + split * least + min(split, rest);
  part.end = part.first + least + select(0u, 1u, split < rest);
  return part;
}

// Where a row of O starts. Sequence, head and row are counted from the first of this dispatch.
fn o_row(split: u32, batch: u32, head: u32, row: u32) -> u32 {
  return params.o_parts_offset + split * params.o_parts_stride_split + batch * params.o_parts_stride_batch
    + head * params.o_parts_stride_head + row * params.o_parts_stride_row;
}

// Four dimensions of the row that starts at `first`, from `dim` on.
fn write_o(first: u32, dim: u32, value: vec4<f32>) { o_parts[(first + dim) / 4u] = value; }

fn write_lse(split: u32, batch: u32, head: u32, row: u32, value: f32) {
  let first = params.lse_parts_offset + split * params.lse_parts_stride_split;
  lse_parts[first + batch * params.lse_parts_stride_batch + head * params.lse_parts_stride_head + row] = value;
}
