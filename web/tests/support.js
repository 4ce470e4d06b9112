// What the cases have in common: assertions, inputs, and the comparison with f64.
import { FlashAttention, fromBf16, fromF16, toBf16, toF16 } from '../pkg/index.js';
import { largestError, sizes } from '../demo/reference.js';
import { backward as modifiedBackward, forward as modifiedForward } from './modifiers.js';

export function assert(condition, message) {
  if (!condition) throw new Error(message);
}

export function assertEqual(found, expected, message = '') {
  const [a, b] = [found, expected].map((value) => JSON.stringify(value));
  assert(a === b, `${message}: ${a}, expected ${b}`);
}

/** The same bits, NaN and −0 included. */
export function assertSameBits(a, b, message) {
  const bytes = (array) => new Uint8Array(array.buffer, array.byteOffset, array.byteLength);
  const [left, right] = [bytes(a), bytes(b)];
  assert(left.length === right.length && left.every((byte, index) => byte === right[index]), `${message}: other bits`);
}

/** Who prints an error prints the name of its class first: the message does not say that once more. Nor does it name what is Rust's. */
export function assertWords({ name, message }) {
  // Lines of the browser's own may follow.
  assert(!/\b[A-Z]\w+::|\bwith_[a-z]|--[a-z]/.test(message.split('\n')[0]), `the words are not this package's: ${message}`);
  assert(!/^(invalid|unsupported|not supported|out of( \w+)? memory|device lost|gpu error)\b/i.test(message), `${name} says it twice: ${message}`);
}

/** Awaits the error of a promise, of this class and with this text. */
export async function assertThrows(promise, type, text) {
  let error;
  try {
    await promise;
  } catch (thrown) {
    error = thrown;
  }
  assert(error !== undefined, `nothing was thrown; expected ${type.name}: ${text}`);
  assert(error instanceof type && error.name === type.name, `${error?.name} (${error?.message}) is no ${type.name}`);
  assert(error.message.includes(text), `the message '${error.message}' lacks '${text}'`);
  assertWords(error);
}

/** Every device that is requested in `work`, which is given the list and, for devices that do not count, the browser's `requestDevice`. */
export async function devicesOf(work) {
  const devices = [];
  const { requestDevice } = GPUAdapter.prototype;
  GPUAdapter.prototype.requestDevice = async function (descriptor) {
    const device = await requestDevice.call(this, descriptor);
    devices.push(device);
    return device;
  };
  try {
    await work(devices, requestDevice);
  } finally {
    GPUAdapter.prototype.requestDevice = requestDevice;
  }
  return devices;
}

/** Numbers that look normally distributed, the same for the same seed. */
export function random(length, seed) {
  let state = seed * 2654435761 >>> 0;
  const uniform = () => {
    state = Math.imul(state ^ state >>> 15, 0x2c1b3c6d) + 0x9e3779b9 >>> 0;
    return (state >>> 8) / 2 ** 24;
  };
  return Float32Array.from({ length }, () => uniform() + uniform() + uniform() + uniform() - 2);
}

export const HALVES = { f32: [(x) => x, (x) => x], f16: [toF16, fromF16], bf16: [toBf16, fromBf16] };

export function inputs(problem, seed = 1) {
  const { batch, numHeads, numHeadsKv, seqlen, seqlenKv, headDim, headDimV } = sizes(problem.shape);
  const [encode] = HALVES[problem.element ?? 'f32'];
  if (problem.layout === 'packed-qkv') {
    const packed = encode(random(batch * seqlen * (numHeads + 2 * numHeadsKv) * headDim, seed));
    return { q: packed, k: packed, v: packed };
  }
  return {
    q: encode(random(batch * seqlen * numHeads * headDim, seed)),
    k: encode(random(batch * seqlenKv * numHeadsKv * headDim, seed + 1)),
    v: encode(random(batch * seqlenKv * numHeadsKv * headDimV, seed + 2)),
  };
}

let shared;
/** One attention for all cases that leave it in order. */
export function attention() {
  return shared ??= FlashAttention.create();
}

/** Relative to the largest entry; that of `flash demo`, for f32. */
export const BOUND = 1e-5;

export function assertNear(found, expected, message, more = 0) {
  assertEqual(found.length, expected.length, `${message}: length`);
  const largest = expected.reduce((largest, value) => Number.isFinite(value) ? Math.max(largest, Math.abs(value)) : largest, 0);
  const error = largestError(found, expected);
  assert(error <= (BOUND + more) * largest, `${message} errs by ${error}, where the largest entry is ${largest}`);
}

/** O, LSE and all gradients of a problem with modifiers against f64. Gradients are asked for in f32. */
export async function checkModified(name, problem, change = () => undefined) {
  const flash = await attention();
  // What a function in WGSL computes, in JavaScript: for the reference alone.
  const { twins, ...asked } = problem;
  const [encode, decode] = HALVES[problem.element ?? 'f32'];
  const { batch, numHeads, seqlen, headDim, headDimV } = sizes(problem.shape);
  const tensors = inputs(problem);
  const dO = encode(random(batch * seqlen * numHeads * headDimV, 11));
  const dLse = random(batch * numHeads * seqlen, 12);
  change({ ...tensors, dO, dLse }, headDim);
  const arrays = Object.values(tensors).map(decode);
  const { bias } = problem;
  const inNumbers = bias ? { ...problem, bias: { ...bias, data: bias.data instanceof Uint16Array ? decode(bias.data) : bias.data } } : problem;
  const expected = modifiedForward(inNumbers, ...arrays);
  const { o, lse } = await flash.forward({ ...asked, ...tensors });
  // Half a unit in the last place of f16.
  assertNear(decode(o), expected.o, `${name}: O`, problem.element ? 2 ** -11 : 0);
  assertNear(lse, expected.lse, `${name}: LSE`);
  const all = { ...asked, ...tensors, o, lse, dO, dLse };
  const gradients = await flash.backward({ ...all, ...problem.element ? { gradientElement: 'f32' } : {} });
  const exact = modifiedBackward(inNumbers, ...arrays, decode(o), decode(dO), dLse);
  for (const tensor of ['dq', 'dk', 'dv']) assertNear(gradients[tensor], exact[tensor], `${name}: ${tensor}`);
  assertEqual(gradients.dSink !== undefined, problem.sink !== undefined, `${name}: whether there is dSink`);
  if (problem.sink) assertNear(gradients.dSink, exact.dSink, `${name}: dSink`);
  assertEqual(gradients.dBias !== undefined, problem.dBias === true, `${name}: whether there is dBias`);
  if (problem.dBias) {
    const isHalf = bias.data instanceof Uint16Array;
    assertNear(isHalf ? decode(gradients.dBias) : gradients.dBias, exact.dBias, `${name}: dBias`, isHalf ? 2 ** -11 : 0);
  }
  return { ...all, gradients, expected };
}

/** A mask of bytes: not 0 where `random` is above −0.5. */
export function randomMask(length, seed) {
  return Uint8Array.from(random(length, seed), (value, index) => value > -0.5 ? 1 + index % 255 : 0);
}
