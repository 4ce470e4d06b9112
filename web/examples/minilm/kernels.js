// The four kernels of a BERT encoder that are not attention, in plain WGSL. Sizes are pipeline constants.

/** X = word[id] + position[place in the sentence] + type 0. */
const EMBED = `
override SEQLEN: u32;
override SIZE: u32;
@group(0) @binding(0) var<storage, read> ids: array<u32>;
@group(0) @binding(1) var<storage, read> words: array<f32>;
@group(0) @binding(2) var<storage, read> positions: array<f32>;
@group(0) @binding(3) var<storage, read> types: array<f32>;
@group(0) @binding(4) var<storage, read_write> x: array<f32>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let token = group.x;
  for (var i = lane; i < SIZE; i += 64u) {
    x[token * SIZE + i] = words[ids[token] * SIZE + i] + positions[token % SEQLEN * SIZE + i] + types[i];
  }
}`;

/** Y = X Wᵀ + b, with GELU or without, in tiles of 16 × 16. */
const LINEAR = `
override INPUTS: u32;
override OUTPUTS: u32;
override GELU: bool;
@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read> weight: array<f32>;
@group(0) @binding(2) var<storage, read> bias: array<f32>;
@group(0) @binding(3) var<storage, read_write> y: array<f32>;
var<workgroup> x_tile: array<f32, 256>;
var<workgroup> w_tile: array<f32, 256>;

// Abramowitz and Stegun, 7.1.26: right to 1.5e-7.
fn erf(value: f32) -> f32 {
  let t = 1.0 / (1.0 + 0.3275911 * abs(value));
  let sum = ((((1.061405429 * t - 1.453152027) * t + 1.421413741) * t - 0.284496736) * t + 0.254829592) * t;
  return sign(value) * (1.0 - sum * exp(-value * value));
}

@compute @workgroup_size(16, 16)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_id) local: vec3<u32>) {
  let rows = arrayLength(&x) / INPUTS;
  let row = group.y * 16u + local.y;
  let column = group.x * 16u + local.x;
  let w_row = group.x * 16u + local.y;
  var sum = 0.0;
  for (var first = 0u; first < INPUTS; first += 16u) {
    let i = first + local.x;
    x_tile[local.y * 16u + local.x] = select(0.0, x[min(row, rows - 1u) * INPUTS + min(i, INPUTS - 1u)], row < rows && i < INPUTS);
    w_tile[local.y * 16u + local.x] = select(0.0, weight[min(w_row, OUTPUTS - 1u) * INPUTS + min(i, INPUTS - 1u)], w_row < OUTPUTS && i < INPUTS);
    workgroupBarrier();
    for (var k = 0u; k < 16u; k++) {
      sum += x_tile[local.y * 16u + k] * w_tile[local.x * 16u + k];
    }
    workgroupBarrier();
  }
  if (row < rows && column < OUTPUTS) {
    let value = sum + bias[column];
    y[row * OUTPUTS + column] = select(value, 0.5 * value * (1.0 + erf(value * 0.70710678)), GELU);
  }
}`;

/** Adds up what the 64 lanes of a workgroup have. */
const SUM = `
var<workgroup> sums: array<f32, 64>;

fn sum_of_lanes(lane: u32, value: f32) -> f32 {
  sums[lane] = value;
  workgroupBarrier();
  for (var step = 32u; step > 0u; step /= 2u) {
    if (lane < step) { sums[lane] += sums[lane + step]; }
    workgroupBarrier();
  }
  let sum = sums[0];
  workgroupBarrier();
  return sum;
}`;

/** Y = layer norm of A + B. */
const NORM = `
override SIZE: u32;
@group(0) @binding(0) var<storage, read> a: array<f32>;
@group(0) @binding(1) var<storage, read> b: array<f32>;
@group(0) @binding(2) var<storage, read> weight: array<f32>;
@group(0) @binding(3) var<storage, read> bias: array<f32>;
@group(0) @binding(4) var<storage, read_write> y: array<f32>;
${SUM}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let first = group.x * SIZE;
  var sum = 0.0;
  for (var i = lane; i < SIZE; i += 64u) { sum += a[first + i] + b[first + i]; }
  let mean = sum_of_lanes(lane, sum) / f32(SIZE);
  var squares = 0.0;
  for (var i = lane; i < SIZE; i += 64u) {
    let distance = a[first + i] + b[first + i] - mean;
    squares += distance * distance;
  }
  let scale = inverseSqrt(sum_of_lanes(lane, squares) / f32(SIZE) + 1e-12);
  for (var i = lane; i < SIZE; i += 64u) {
    y[first + i] = (a[first + i] + b[first + i] - mean) * scale * weight[i] + bias[i];
  }
}`;

/** The mean of a sentence's tokens, as a vector of length 1. */
const POOL = `
override SEQLEN: u32;
override SIZE: u32;
@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read> lengths: array<u32>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;
${SUM}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let sentence = group.x;
  var squares = 0.0;
  for (var i = lane; i < SIZE; i += 64u) {
    var mean = 0.0;
    for (var token = 0u; token < lengths[sentence]; token++) { mean += x[(sentence * SEQLEN + token) * SIZE + i]; }
    mean /= f32(lengths[sentence]);
    y[sentence * SIZE + i] = mean;
    squares += mean * mean;
  }
  let scale = inverseSqrt(sum_of_lanes(lane, squares));
  for (var i = lane; i < SIZE; i += 64u) { y[sentence * SIZE + i] *= scale; }
}`;

const TEXTS = { embed: EMBED, linear: LINEAR, norm: NORM, pool: POOL };

/** Pipelines of these kernels, each compiled once for its constants. */
export class Kernels {
  #device;
  #pipelines = new Map();

  constructor(device) {
    this.#device = device;
  }

  /** Records a kernel on buffers in the order of their bindings. */
  run(pass, name, constants, buffers, [x, y = 1]) {
    const key = `${name} ${JSON.stringify(constants)}`;
    if (!this.#pipelines.has(key)) {
      const module = this.#device.createShaderModule({ label: name, code: TEXTS[name] });
      this.#pipelines.set(key, this.#device.createComputePipeline({ label: name, layout: 'auto', compute: { module, constants } }));
    }
    const pipeline = this.#pipelines.get(key);
    const entries = buffers.map((buffer, binding) => ({ binding, resource: { buffer } }));
    pass.setPipeline(pipeline);
    pass.setBindGroup(0, this.#device.createBindGroup({ layout: pipeline.getBindGroupLayout(0), entries }));
    pass.dispatchWorkgroups(x, y);
  }
}
