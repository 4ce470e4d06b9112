// Philox4x32-10 (Salmon et al. 2011): four random words from a counter and a key. It has no state, so every kernel
// draws the same dropout mask with any tiles.

// The upper word of a · b, from 16-bit halves: WGSL has no 64-bit product.
fn multiply_high(a: u32, b: u32) -> u32 {
  let a_low = a & 0xffffu;
  let a_high = a >> 16u;
  let b_low = b & 0xffffu;
  let b_high = b >> 16u;
  let carry = (a_low * b_low) >> 16u;
  let middle_1 = a_high * b_low + carry;
  let middle_2 = a_low * b_high + (middle_1 & 0xffffu);
  return a_high * b_high + (middle_1 >> 16u) + (middle_2 >> 16u);
}

fn philox4x32_10(key: vec2<u32>, counter: vec4<u32>) -> vec4<u32> {
  var k = key;
  var c = counter;
  for (var round = 0u; round < 10u; round++) {
    let high_0 = multiply_high(0xD2511F53u, c.x);
    let low_0 = 0xD2511F53u * c.x;
    let high_1 = multiply_high(0xCD9E8D57u, c.z);
    let low_1 = 0xCD9E8D57u * c.z;
    c = vec4<u32>(high_1 ^ c.y ^ k.x, low_1, high_0 ^ c.w ^ k.y, low_0);
    k += vec2<u32>(0x9E3779B9u, 0xBB67AE85u);
  }
  return c;
}

// Which of the probabilities of row i and the keys key, key + 1, key + 2, key + 3 (key is a multiple of 4) are kept.
// Head and row are those of the whole problem; the counter has those of a larger one, if this is a part of one.
fn kept(batch: u32, head: u32, i: u32, key: u32) -> vec4<bool> {
  let seed = vec2<u32>(params.philox_seed_low, params.philox_seed_high);
  // unroll QUAD in WHOLE_QUAD, ROW in WHOLE_ROW, HEAD in WHOLE_HEAD {
    let counter = vec4<u32>(QUAD, ROW, HEAD, params.philox_offset);
  // }
  return philox4x32_10(seed, counter) >= vec4<u32>(params.dropout_threshold);
}

// Zeroes the dropped ones of these probabilities.
fn dropout(p: vec4<f32>, batch: u32, head: u32, i: u32, key: u32) -> vec4<f32> {
  return select(vec4<f32>(0.0), p, kept(batch, head, i, key));
}
