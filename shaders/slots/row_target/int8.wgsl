// Rows of signed bytes: a word with their scale, the row's largest magnitude / 127, then four bytes in a word.

// The bits of the largest magnitude of each quad, which compare as numbers do.
var<workgroup> magnitudes: array<u32, APPEND_INVOCATIONS>;

// The smallest scale, and the smallest number that no GPU takes for 0. A row with less is a row of zeros.
const LEAST_SCALE = 1.1754943508222875e-38;
const INFINITE = 0x7f800000u;
const NOT_A_NUMBER = 0x7fc00000u;

// unroll TENSOR in TARGET {
  @group(0) @binding(BINDING_TENSOR) var<storage, read_write> TENSOR: array<u32>;

  // Four dimensions, from `dim` on, of the row that starts at `first`. All invocations of the workgroup come here.
  fn store_row(first: u32, dim: u32, value: vec4<f32>, stored: bool, invocation: u32) {
    let bits = bitcast<vec4<u32>>(value) & vec4<u32>(0x7fffffffu);
    magnitudes[invocation] = max(max(bits.x, bits.y), max(bits.z, bits.w));
    workgroupBarrier();
    var largest = 0u;
    for (var quad = 0u; quad < ROW_QUADS; quad++) {
      largest = max(largest, magnitudes[min(invocation - dim / 4u + quad, APPEND_INVOCATIONS - 1u)]);
    }
    let is_finite = largest < INFINITE;
    let scale = bitcast<f32>(select(0u, largest, is_finite)) / 127.0;
    let has_bytes = scale >= LEAST_SCALE;
    // To the nearest, ties to even.
    let quotients = round(select(vec4<f32>(0.0), value, vec4<bool>(has_bytes)) / select(1.0, scale, has_bytes));
    let bytes = bitcast<vec4<u32>>(vec4<i32>(clamp(quotients, vec4<f32>(-127.0), vec4<f32>(127.0)))) & vec4<u32>(0xffu);
    let word = bytes.x | (bytes.y << 8u) | (bytes.z << 16u) | (bytes.w << 24u);
    if stored { TENSOR[first + 1u + dim / 4u] = word; }
    if stored && dim == 0u {
      TENSOR[first] = select(NOT_A_NUMBER, select(0u, bitcast<u32>(scale), has_bytes), is_finite);
    }
  }
// }
