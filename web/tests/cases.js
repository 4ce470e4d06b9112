// What the package must do in a browser. Each case is a function that throws if it does not; `browsers.test.mjs` calls them
// in a page of each browser.
import {
  AttentionError, DeviceLostError, FlashAttention, GpuTensor, InvalidProblemError, InvalidTensorError, NoWebGPUError,
  UnsupportedError, fromBf16, fromF16, packMask, toBf16, toF16,
} from '../pkg/index.js';
import { forward as reference, largestError, philox, sizes, strides } from '../demo/reference.js';
import { backward as referenceBackward } from './gradients.js';
import { blockMasks } from './blocks.js';
import { backward as modifiedBackward, forward as modifiedForward, probabilities as modifiedProbabilities } from './modifiers.js';
import { aPanicIsTold, abort, destroyAtAnyMoment, lostDevice, mountAndUnmount, nothingOfThePageIsChanged, whatTheBrowserRefuses } from './life.js';
import { misuse, misuseOfCreate } from './misuse.js';
import { cachesAndAppends, packedSequences } from './caches.js';
import { callsGoTogether, preparedOperations } from './prepared.js';
import { faultsOfOwnWgsl, ownMasks, ownScores } from './own_wgsl.js';
import { HALVES, assert, assertEqual, assertNear, assertSameBits, assertThrows, attention, checkModified, inputs, random, randomMask } from './support.js';

/**
 * Flash may err twice as much as standard attention in the same precision, against f64; below that there is a floor, of
 * 1e-6 of the largest |O| for f32 and 1e-5 for 16-bit elements.
 */
async function check(attention, problem) {
  const name = JSON.stringify(problem, (_, value) => typeof value === 'bigint' ? `${value}` : value);
  const [, decode] = HALVES[problem.element ?? 'f32'];
  const tensors = inputs(problem);
  const [q, k, v] = ['q', 'k', 'v'].map((tensor) => decode(tensors[tensor]));
  const expected = reference(problem, q, k, v);
  const [flash, standard] = [
    await attention.forward({ ...problem, ...tensors }),
    await attention.forward({ ...problem, ...tensors, algorithm: 'standard' }),
  ];
  const largest = expected.o.reduce((largest, value) => Math.max(largest, Math.abs(value)), 0);
  const floor = problem.element === 'f16' || problem.element === 'bf16' ? 1e-5 : 1e-6 * largest;
  const [flashError, standardError] = [flash, standard].map(({ o }) => largestError(decode(o), expected.o));
  assert(flashError <= 2 * standardError + floor, `${name}: O errs by ${flashError}, standard attention by ${standardError}`);
  const lseError = largestError(flash.lse, expected.lse);
  const lseLargest = expected.lse.reduce((largest, value) => Number.isFinite(value) ? Math.max(largest, Math.abs(value)) : largest, 1);
  const lseStandard = largestError(standard.lse, expected.lse);
  assert(lseError <= 2 * lseStandard + 1e-6 * lseLargest, `${name}: LSE errs by ${lseError}, standard attention by ${lseStandard}`);
  return { flash, standard, expected };
}

const SHAPE = { numHeads: 2, seqlen: 100, headDim: 64 };

/** The known answer of Philox, and a model's attention as PyTorch computed it in float64. */
async function theReferenceIsRight() {
  assertEqual(philox([0, 0], [0, 0, 0, 0]), [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8], 'Philox');
  const bytes = await (await fetch('/examples/flash/data/minilm_layer0.safetensors')).arrayBuffer();
  const headerLength = Number(new DataView(bytes).getBigUint64(0, true));
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(bytes, 8, headerLength)));
  const tensor = (name) => {
    const [start, end] = header[name].data_offsets;
    return new Float32Array(bytes.slice(8 + headerLength + start, 8 + headerLength + end));
  };
  const [batch, numHeads, seqlen, headDim] = header.q.shape;
  const problem = { shape: { batch, numHeads, seqlen, headDim }, layout: 'bhsd' };
  const [q, k, v, o, lse] = ['q', 'k', 'v', 'o', 'lse'].map(tensor);
  const expected = reference(problem, q, k, v);
  // The answers in the file are rounded to f32.
  assert(largestError(expected.o, o) < 1e-6, `O of the reference is off by ${largestError(expected.o, o)}`);
  assert(largestError(expected.lse, lse) < 1e-5, `LSE of the reference is off by ${largestError(expected.lse, lse)}`);
  const found = await (await attention()).forward({ ...problem, q, k, v });
  const error = largestError(found.o, o);
  assert(error < 1e-5, `a model's attention errs by ${error}`);
}

async function answersInF32() {
  const flash = await attention();
  await check(flash, { shape: SHAPE });
  await check(flash, { shape: { batch: 2, numHeads: 6, numHeadsKv: 2, seqlen: 37, seqlenKv: 81, headDim: 64 }, causal: true });
  await check(flash, { shape: { ...SHAPE, seqlenKv: 61 }, causal: 'top-left', layout: 'bhsd' });
  await check(flash, { shape: { ...SHAPE, headDim: 59, headDimV: 31 }, window: [20, 3], softmaxScale: 0.3 });
  await check(flash, { shape: SHAPE, dropout: { p: 0.3, seed: 0x1234_5678_9abc_def0n, offset: 7 }, causal: true });
  await check(flash, { shape: SHAPE, layout: 'packed-qkv', window: [null, 0] });
}

async function answersInF16() {
  const flash = await attention();
  await check(flash, { shape: SHAPE, element: 'f16', causal: true });
  await check(flash, { shape: { ...SHAPE, seqlen: 33, headDim: 31 }, element: 'f16' });
}

async function answersInBf16() {
  await check(await attention(), { shape: SHAPE, element: 'bf16', causal: true });
}

async function stridesOfTheCaller() {
  const shape = { numHeads: 2, seqlen: 20, headDim: 16 };
  const dense = strides(shape).q;
  const padded = { ...dense, offset: 4, row: dense.row + 8, batch: 0 };
  const problem = { shape, layout: { q: padded, k: dense, v: dense, o: dense } };
  const length = 4 + 20 * padded.row;
  const q = random(length, 5).fill(NaN, 0, 4);
  const [k, v] = [random(20 * 32, 6), random(20 * 32, 7)];
  const expected = reference(problem, q, k, v);
  const { o } = await (await attention()).forward({ ...problem, q, k, v });
  assert(largestError(o, expected.o) < 1e-5, 'strides');
}

async function withoutOptionalFeatures() {
  const plain = await FlashAttention.create({ subgroups: false, shaderF16: false });
  const info = await plain.info();
  assertEqual([info.subgroups, info.shaderF16], [null, false], 'features');
  await check(plain, { shape: SHAPE, element: 'f16', causal: true });
  await check(plain, { shape: SHAPE });
  plain.destroy();
}

async function featuresOfTheBrowserAreUsed() {
  const adapter = await navigator.gpu.requestAdapter();
  const info = await (await attention()).info();
  assertEqual(info.shaderF16, adapter.features.has('shader-f16'), 'shader-f16');
  assertEqual(info.subgroups !== null, adapter.features.has('subgroups'), 'subgroups');
}

async function edges() {
  const flash = await attention();
  const empty = new Float32Array(0);
  const none = await flash.forward({ shape: { seqlen: 0, headDim: 8 }, q: empty, k: empty, v: empty });
  assertEqual([none.o.length, none.lse.length], [0, 0], 'no rows');
  const shape = { seqlen: 4, seqlenKv: 2, headDim: 4 };
  const q = random(16, 1);
  const blind = await flash.forward({ shape, causal: true, q, k: random(8, 2), v: random(8, 3) });
  assert([...blind.o.slice(0, 8)].every((value) => value === 0), 'rows that see nothing give 0');
  assert(blind.lse[0] === -Infinity && blind.lse[1] === -Infinity && Number.isFinite(blind.lse[2]), 'their LSE is −∞');
  const noKeys = await flash.forward({ shape: { ...shape, seqlenKv: 0 }, q, k: empty, v: empty });
  assert(noKeys.o.every((value) => value === 0) && noKeys.lse.every((value) => value === -Infinity), 'no keys');
  for (let zeros = 1; zeros < 32; zeros++) {
    const [batch, numHeads, numHeadsKv, seqlen, seqlenKv] = [1, 4, 2, 3, 5].map((count, i) => zeros >> i & 1 ? 0 : count);
    const shape = { batch, numHeads, numHeadsKv, seqlen, seqlenKv, headDim: 4 };
    const [rows, keys] = [batch * numHeads * seqlen, batch * numHeadsKv * seqlenKv];
    const [query, key] = [random(rows * 4, 1), random(keys * 4, 2)];
    if (numHeads > 0 && numHeadsKv === 0) {
      await assertThrows(flash.forward({ shape, q: query, k: key, v: key }), InvalidProblemError, 'numHeadsKv = 0');
      continue;
    }
    const name = JSON.stringify(shape);
    const { o, lse } = await flash.forward({ shape, q: query, k: key, v: key });
    assertEqual([o.length, lse.length], [rows * 4, rows], name);
    assert(o.every((value) => value === 0) && lse.every((value) => value === -Infinity), name);
    const { dq, dk, dv } = await flash.backward({ shape, q: query, k: key, v: key, o, lse, dO: query });
    assertEqual([dq.length, dk.length, dv.length], [rows * 4, keys * 4, keys * 4], name);
    assert([dq, dk, dv].every((gradient) => gradient.every((value) => value === 0)), `gradients of ${name}`);
  }
  const poisoned = Float32Array.from(q);
  poisoned[5] = NaN;
  const clean = await flash.forward({ shape: { seqlen: 4, headDim: 4 }, q, k: q, v: q });
  const dirty = await flash.forward({ shape: { seqlen: 4, headDim: 4 }, q: poisoned, k: q, v: q });
  for (let i = 0; i < 16; i++) {
    assert(i >> 2 === 1 ? Number.isNaN(dirty.o[i]) : dirty.o[i] === clean.o[i], `a NaN in row 1 of Q, element ${i}`);
  }
}

async function sameBitsWhateverTheDispatches() {
  const flash = await attention();
  const problem = { shape: { numHeads: 3, seqlen: 200, headDim: 64 }, causal: true };
  const tensors = inputs(problem);
  const whole = await flash.forward({ ...problem, ...tensors, boundedWork: false });
  assertEqual(whole.stats.dispatches, 1, 'unbounded');
  for (const algorithm of ['flash', 'standard']) {
    const first = await flash.forward({ ...problem, ...tensors, algorithm, boundedWork: false });
    for (const boundedWork of [1e6, 4e6, undefined, false]) {
      const calls = [];
      const { o, lse, stats } = await flash.forward({ ...problem, ...tensors, algorithm, boundedWork, onProgress: (step) => calls.push(step) });
      assertSameBits(o, first.o, `${algorithm}, O with a bound of ${boundedWork}`);
      assertSameBits(lse, first.lse, `${algorithm}, LSE with a bound of ${boundedWork}`);
      assert(boundedWork !== 1e6 || stats.dispatches > 4, `${stats.dispatches} dispatches`);
      assert(calls.every(({ completed, total }, i) => total === stats.dispatches && completed > (calls[i - 1]?.completed ?? 0)), 'progress');
      assertEqual(calls.at(-1), { completed: stats.dispatches, total: stats.dispatches }, 'the last of the progress');
    }
  }
}

async function callsAtTheSameTime() {
  const flash = await attention();
  const problem = { shape: SHAPE, algorithm: 'standard', boundedWork: 1e5 };
  const all = [1, 2, 3, 4].map((seed) => inputs(problem, seed));
  const alone = [];
  for (const tensors of all) alone.push(await flash.forward({ ...problem, ...tensors }));
  const together = await Promise.all(all.map((tensors) => flash.forward({ ...problem, ...tensors })));
  together.forEach(({ o }, i) => assertSameBits(o, alone[i].o, `call ${i} of 4 at once`));
}

async function seedsChangeTheMaskAlone() {
  const flash = await attention();
  const problem = { shape: SHAPE };
  const tensors = inputs(problem);
  const run = (dropout) => flash.forward({ ...problem, ...tensors, dropout });
  const [one, again, other, offset] = [await run({ p: 0.5, seed: 1 }), await run({ p: 0.5, seed: 1n }), await run({ p: 0.5, seed: 2 }), await run({ p: 0.5, seed: 1, offset: 1 })];
  assertSameBits(one.o, again.o, 'one seed twice');
  for (const different of [other, offset]) {
    assert(largestError(different.o, one.o) > 0.01, 'another seed or offset, the same mask');
    assertSameBits(different.lse, one.lse, 'LSE under dropout');
  }
}

async function tensorsStayOnTheGpu() {
  const flash = await attention();
  const problem = { shape: SHAPE };
  const arrays = inputs(problem);
  const [q, k, v] = await Promise.all(['q', 'k', 'v'].map((name) => flash.upload(arrays[name])));
  assert(q instanceof GpuTensor && q.element === 'f32' && q.length === arrays.q.length, 'an uploaded tensor');
  assertSameBits(await q.read(), arrays.q, 'up and down');
  const first = await flash.forward({ ...problem, q, k, v });
  assert(first.o instanceof GpuTensor, 'O stays on the GPU');
  const second = await flash.forward({ ...problem, q: first.o, k, v });
  const plainFirst = await flash.forward({ ...problem, ...arrays });
  const plainSecond = await flash.forward({ ...problem, ...arrays, q: plainFirst.o });
  assertSameBits(await second.o.read(), plainSecond.o, 'two calls in a row');
  assertSameBits(await second.lse.read(), plainSecond.lse, 'their LSE');
  const mixed = await flash.forward({ ...problem, q: arrays.q, k, v });
  assertSameBits(mixed.o, plainFirst.o, 'Q from an array, K and V on the GPU');
  const down = await flash.forward({ ...problem, q, k, v, output: 'array' });
  assertSameBits(down.o, plainFirst.o, "output: 'array'");
  const up = await flash.forward({ ...problem, ...arrays, output: 'gpu' });
  assertSameBits(await up.o.read(), plainFirst.o, "output: 'gpu'");
  for (const tensor of [q, k, v, first.o, first.lse, second.o, second.lse, up.o, up.lse]) tensor.destroy();
  q.destroy();
  await assertThrows(q.read(), InvalidTensorError, 'was destroyed');
  await assertThrows(flash.forward({ ...problem, q, k: arrays.k, v: arrays.v }), InvalidTensorError, 'q was destroyed');
  // An odd number of 16-bit elements: buffers hold whole words.
  const odd = new Uint16Array([1, 2, 3, 4, 5]);
  const uploaded = await flash.upload(odd.subarray(2));
  assertSameBits(await uploaded.read(), odd.slice(2), 'three 16-bit elements');
  uploaded.destroy();
}

async function buffersOfTheCaller() {
  const adapter = await navigator.gpu.requestAdapter();
  const device = await adapter.requestDevice();
  const flash = await FlashAttention.create({ device });
  assert(flash.device === device, 'it runs on the device that was given');
  const problem = { shape: SHAPE, causal: true };
  const arrays = inputs(problem);
  const buffers = ['q', 'k', 'v'].map((name) => {
    const buffer = device.createBuffer({ size: arrays[name].byteLength, usage: GPUBufferUsage.STORAGE | GPUBufferUsage.COPY_DST | GPUBufferUsage.COPY_SRC });
    device.queue.writeBuffer(buffer, 0, arrays[name]);
    return buffer;
  });
  const [q, k, v] = buffers.map((buffer) => flash.wrap(buffer));
  const { o, lse } = await flash.forward({ ...problem, q, k, v });
  assertSameBits(await o.read(), (await flash.forward({ ...problem, ...arrays })).o, "the caller's buffers");
  assert(o.buffer instanceof GPUBuffer && !Object.hasOwn(device, 'createBuffer'), 'nothing is left on the device');
  const uniform = device.createBuffer({ size: 64, usage: GPUBufferUsage.UNIFORM });
  await assertThrows((async () => flash.wrap(uniform))(), InvalidTensorError, 'STORAGE');
  await assertThrows((async () => flash.wrap(buffers[0], { length: 1e9 }))(), InvalidTensorError, 'do not fit');
  const other = await attention();
  await assertThrows(other.forward({ ...problem, q, k, v }), InvalidTensorError, 'another FlashAttention');
  for (const tensor of [q, k, v, o, lse]) tensor.destroy();
  flash.destroy();
  // The device and its buffers are still the caller's.
  device.pushErrorScope('validation');
  device.queue.writeBuffer(buffers[0], 0, arrays.q);
  assert(await device.popErrorScope() === null, 'the device is as it was');
  device.destroy();
}

/** While a long problem runs, the page's own timers go on. */
async function thePageStaysAlive() {
  const flash = await attention();
  const problem = { shape: { numHeads: 4, seqlen: 2048, headDim: 64 } };
  const tensors = inputs(problem);
  await flash.forward({ shape: { ...problem.shape, seqlen: 256 }, ...inputs({ shape: { ...problem.shape, seqlen: 256 } }) });
  let running = true;
  let longest = 0;
  let last = performance.now();
  const tick = () => {
    longest = Math.max(longest, performance.now() - last);
    last = performance.now();
    if (running) setTimeout(tick, 0);
  };
  tick();
  const { stats } = await flash.forward({ ...problem, ...tensors });
  running = false;
  assert(stats.dispatches > 1, `${stats.dispatches} dispatch`);
  assert(longest < 500, `the page stood still for ${longest} ms of ${stats.milliseconds}`);
}

async function noWebGPU() {
  const { gpu } = navigator;
  const hide = (value) => Object.defineProperty(navigator, 'gpu', { configurable: true, value });
  hide(undefined);
  await assertThrows(FlashAttention.create(), NoWebGPUError, 'this browser has no WebGPU');
  hide({ requestAdapter: async () => null });
  await assertThrows(FlashAttention.create(), NoWebGPUError, 'found no usable GPU');
  delete navigator.gpu;
  assert(navigator.gpu === gpu, 'navigator.gpu is back');
  assert(new NoWebGPUError('') instanceof AttentionError, 'one base class');
}

async function halves() {
  const bits = Uint16Array.from({ length: 65536 }, (_, i) => i);
  const isNaN16 = (half, mantissa) => (half & 0x7fff) > mantissa;
  for (const [to, from, infinity] of [[toF16, fromF16, 0x7c00], [toBf16, fromBf16, 0x7f80]]) {
    const values = from(bits);
    const back = to(values);
    for (let half = 0; half < 65536; half++) {
      const isSame = isNaN16(half, infinity) ? Number.isNaN(values[half]) && isNaN16(back[half], infinity) : back[half] === half;
      assert(isSame, `${half.toString(16)} became ${values[half]} and ${back[half].toString(16)}`);
    }
  }
  // Ties go to the even neighbour; too large is infinite.
  assertEqual([...toF16([1 + 2 ** -11, 1 + 3 * 2 ** -11, 65519, 65520, 2 ** -25, 1.5 * 2 ** -24, -1e-9])],
    [0x3c00, 0x3c02, 0x7bff, 0x7c00, 0, 2, 0x8000], 'rounding to f16');
  assertEqual([...toBf16([1 + 2 ** -8, 1 + 3 * 2 ** -8, 3.4e38])], [0x3f80, 0x3f82, 0x7f80], 'rounding to bf16');
  if (!('Float16Array' in globalThis)) return;
  const values = random(10000, 3).map((value, i) => value * 2 ** (i % 40 - 28));
  const native = new Float16Array(values);
  assertSameBits(new Uint16Array(native.buffer), toF16(values), 'toF16 and Float16Array');
  const shape = { seqlen: 8, headDim: 16 };
  const q = new Float16Array(random(128, 4));
  const { o } = await (await attention()).forward({ shape, q, k: q, v: q });
  assert(o instanceof Float16Array, 'a Float16Array comes back for one');
  const asBits = new Uint16Array(q.buffer);
  assertSameBits(o, (await (await attention()).forward({ shape, q: asBits, k: asBits, v: asBits })).o, 'Float16Array and its bits');
}

/** The analytic gradients of the reference against central differences, and those of the GPU against them. */
async function gradients() {
  const small = { shape: { numHeads: 2, numHeadsKv: 1, seqlen: 3, headDim: 4 }, causal: true, dropout: { p: 0.2, seed: 3 } };
  const [q, k, v] = Object.values(inputs(small)).map((tensor) => Float64Array.from(tensor));
  const [dO, dLse] = [random(24, 8), random(6, 9)];
  const exact = referenceBackward(small, q, k, v, dO, dLse);
  const phi = () => {
    const { o, lse } = reference(small, q, k, v);
    return o.reduce((sum, value, index) => sum + value * dO[index], 0) + lse.reduce((sum, value, index) => sum + value * dLse[index], 0);
  };
  for (const [tensor, gradient] of [[q, exact.dq], [k, exact.dk], [v, exact.dv]]) {
    tensor.forEach((value, index) => {
      const step = 1e-5;
      tensor[index] = value + step;
      const above = phi();
      tensor[index] = value - step;
      const difference = (above - phi()) / (2 * step);
      tensor[index] = value;
      assert(Math.abs(difference - gradient[index]) < 1e-8, `${difference} by differences, ${gradient[index]} by formula`);
    });
  }

  const flash = await attention();
  for (const problem of [
    { shape: { batch: 2, numHeads: 4, numHeadsKv: 2, seqlen: 50, headDim: 20 }, causal: true, dropout: { p: 0.2, seed: 3 } },
    { shape: { numHeads: 2, seqlen: 40, seqlenKv: 50, headDim: 16, headDimV: 12 }, element: 'f16' },
  ]) {
    const [encode, decode] = HALVES[problem.element ?? 'f32'];
    const tensors = inputs(problem);
    const { o, lse } = await flash.forward({ ...problem, ...tensors });
    const dO = encode(random(o.length, 11));
    const dLse = random(lse.length, 12);
    const expected = referenceBackward(problem, ...Object.values(tensors).map(decode), decode(dO), dLse);
    const all = { ...problem, ...tensors, o, lse, dO, dLse };
    const found = await flash.backward(all);
    const standard = await flash.backward({ ...all, algorithm: 'standard' });
    for (const name of ['dq', 'dk', 'dv']) {
      const largest = expected[name].reduce((largest, value) => Math.max(largest, Math.abs(value)), 0);
      const floor = problem.element === 'f16' ? 1e-5 : 1e-6 * largest;
      const [error, allowed] = [found, standard].map((gradients) => largestError(decode(gradients[name]), expected[name]));
      assert(error <= 3 * allowed + floor, `${JSON.stringify(problem)}: ${name} errs by ${error}, standard attention by ${allowed}`);
    }
    assert(found.dq.constructor === tensors.q.constructor && found.stats.flops > 0, 'the kind of array');

    // The same on the GPU, from the forward call's own results, and in many dispatches.
    const onGpu = {};
    for (const [name, array] of Object.entries({ ...tensors, dO, dLse })) onGpu[name] = await flash.upload(array);
    const forward = await flash.forward({ ...problem, ...onGpu });
    const resident = await flash.backward({ ...problem, ...onGpu, o: forward.o, lse: forward.lse, boundedWork: 1e6 });
    for (const name of ['dq', 'dk', 'dv']) assertSameBits(await resident[name].read(), found[name], `${name} on the GPU`);
    for (const tensor of [...Object.values(onGpu), ...[forward, resident].flatMap(({ stats, ...tensors }) => Object.values(tensors))]) tensor.destroy();

    if (problem.element === 'f16') {
      const { dq } = await flash.backward({ ...all, gradientElement: 'f32' });
      assert(dq instanceof Float32Array && largestError(dq, decode(found.dq)) < 1e-2, 'gradients in f32');
      await assertThrows(flash.backward({ ...all, gradientElement: 'f16' }), InvalidProblemError, "gradientElement = 'f16'");
    }
    await assertThrows(flash.backward({ ...all, dO: undefined }), InvalidTensorError, 'dO is undefined');
    await assertThrows(flash.backward({ ...all, dO: dO.subarray(1) }), InvalidTensorError, 'dO has');
    await assertThrows(flash.backward({ ...all, lse: o.subarray(1) }), InvalidTensorError, 'lse');
  }
}

/** The formulas of `modifiers.js` against central differences. */
async function theModifiedReferenceIsRight() {
  const problem = {
    shape: { batch: 2, numHeads: 4, numHeadsKv: 2, seqlen: 3, seqlenKv: 4, headDim: 3, headDimV: 2 }, causal: true, window: [2, 0],
    softcap: 1.5, alibi: true, bias: { data: Float64Array.from(random(12, 51)), shape: [1, 1, 3, 4] },
    mask: { data: Uint8Array.of(1, 1, 0, 1, 1, 1, 1, 0), shape: [2, 1, 1, 4] }, sink: Float64Array.of(0.5, -0.5, 1, 0),
    seqlensQ: [3, 2], seqlensKv: [4, 3], twins: { scoreMod: (score, b, h, i, j) => [score + 0.1 * j * score ** 2, 1 + 0.2 * j * score] },
  };
  const [q, k, v] = Object.values(inputs(problem)).map((tensor) => Float64Array.from(tensor));
  const [dO, dLse] = [random(48, 52), random(24, 53)];
  const phi = () => {
    const { o, lse } = modifiedForward(problem, q, k, v);
    const ofLse = lse.reduce((sum, value, index) => value === -Infinity ? sum : sum + value * dLse[index], 0);
    return o.reduce((sum, value, index) => sum + value * dO[index], ofLse);
  };
  const exact = modifiedBackward(problem, q, k, v, modifiedForward(problem, q, k, v).o, dO, dLse);
  for (const [tensor, gradient] of [[q, exact.dq], [k, exact.dk], [v, exact.dv], [problem.sink, exact.dSink], [problem.bias.data, exact.dBias]]) {
    tensor.forEach((value, index) => {
      const step = 1e-5;
      tensor[index] = value + step;
      const above = phi();
      tensor[index] = value - step;
      const difference = (above - phi()) / (2 * step);
      tensor[index] = value;
      assert(Math.abs(difference - gradient[index]) < 1e-8, `${difference} by differences, ${gradient[index]} by formula`);
    });
  }
}

async function biases() {
  const shape = { batch: 2, numHeads: 2, seqlen: 40, headDim: 8 };
  const data = random(2 * 40 * 40, 21).map((value) => value < -1 ? -Infinity : value);
  // Row 3 of head 0 has no score.
  data.fill(-Infinity, 3 * 40, 4 * 40);
  const { lse } = await checkModified('a bias', { shape, bias: { data, shape: [1, 2, 40, 40] } });
  assert(lse[3] === -Infinity && Number.isFinite(lse[4]), 'a row whose scores are all −∞');
  await checkModified('causal with a bias for each sequence and row', { shape, causal: true, bias: { data: random(80, 22), shape: [2, 1, 40, 1] } });
  const halves = { shape: { ...shape, seqlenKv: 44 }, element: 'f16', causal: true };
  await checkModified('a bias in f16', { ...halves, bias: { data: toF16(random(2 * 2 * 40 * 44, 23)) } });
}

async function masks() {
  const shape = { batch: 2, numHeads: 4, numHeadsKv: 2, seqlen: 20, seqlenKv: 40, headDim: 8 };
  const data = randomMask(2 * 20 * 40, 31).fill(0, 5 * 40, 6 * 40);
  const problem = { shape, mask: { data, shape: [2, 1, 20, 40] } };
  const { gradients, o, lse, q, k, v, dO, dLse } = await checkModified('a mask', problem);
  assert(lse[5] === -Infinity && o.slice(5 * 32, 6 * 32).every((value) => value === 0), 'a row that sees nothing');
  assert(gradients.dq.slice(5 * 32, 6 * 32).every((value) => value === 0), 'its gradient');

  // Packed bits, and everything on the GPU: the same bits.
  const words = packMask(data, 40);
  assertEqual(words.length, 2 * 20 * 2, 'words');
  assertEqual([...packMask([true, false, true, false, false, 1], 3)], [0b101, 0b100], 'bits');
  const packed = await flash(problem, { q, k, v }, words);
  assertSameBits(packed.o, o, 'a mask of packed bits');
  const onGpu = {};
  for (const [name, array] of Object.entries({ q, k, v, dO, dLse, words })) onGpu[name] = await (await attention()).upload(array);
  const { words: mask, ...tensors } = onGpu;
  assert(mask.element === 'u32', 'the type of words');
  assertSameBits(await mask.read(), words, 'words up and down');
  const resident = await flash(problem, tensors, mask);
  assertSameBits(await resident.o.read(), o, 'a mask on the GPU');
  const back = await (await attention()).backward({ ...problem, ...tensors, o: resident.o, lse: resident.lse, mask: { ...problem.mask, data: mask } });
  for (const name of ['dq', 'dk', 'dv']) assertSameBits(await back[name].read(), gradients[name], `${name} on the GPU`);
  for (const tensor of [...Object.values(onGpu), resident.o, resident.lse, back.dq, back.dk, back.dv]) tensor.destroy();

  async function flash(problem, tensors, data) {
    return (await attention()).forward({ ...problem, ...tensors, mask: { ...problem.mask, data } });
  }
}

async function softcapAndAlibi() {
  const shape = { batch: 2, numHeads: 3, seqlen: 40, headDim: 8 };
  await checkModified('ALiBi and softcap', { shape, causal: true, softcap: 1.5, alibi: true });
  await checkModified('slopes of ALiBi', { shape: { ...shape, seqlenKv: 47 }, causal: 'top-left', alibiSlopes: [0.5, 0.25, 0, 1, -0.5, 0.125] });
}

async function sinks() {
  const shape = { batch: 2, numHeads: 2, seqlen: 40, seqlenKv: 24, headDim: 8 };
  const problem = { shape, causal: true, window: [4, 0], sink: Float32Array.of(0.5, -1) };
  const { gradients, lse, expected, ...all } = await checkModified('sinks and a window', problem);
  assert(lse[0] === 0.5 && expected.o[0] === 0, 'a row that sees no key has its sink');
  const flash = await attention();
  const [q, sink] = [await flash.upload(all.q), await flash.upload(all.sink)];
  const { dq, dk, dv, dSink } = await flash.backward({ ...all, lse, q, sink });
  assertSameBits(await dSink.read(), gradients.dSink, 'dSink on the GPU');
  for (const tensor of [q, sink, dq, dk, dv, dSink]) tensor.destroy();
}

async function lengthsOfSequences() {
  const shape = { batch: 3, numHeads: 2, seqlen: 40, seqlenKv: 44, headDim: 8 };
  const [seqlensQ, seqlensKv] = [[40, 7, 0], [9, 44, 5]];
  const problem = { shape, seqlensQ, seqlensKv, causal: true, sink: Float32Array.of(0.3, -0.2) };
  const { o, lse } = await checkModified('lengths, with NaN in the padding', problem, (tensors, headDim) => {
    const pad = (tensor, rows, lengths) => lengths.forEach((length, b) => tensor.fill(NaN, (b * rows + length) * 2 * headDim, (b + 1) * rows * 2 * headDim));
    for (const name of ['q', 'dO']) pad(tensors[name], 40, seqlensQ);
    for (const name of ['k', 'v']) pad(tensors[name], 44, seqlensKv);
  });
  assert(o.slice(80 * 16).every((value) => value === 0) && lse.slice(160).every((value) => value === -Infinity), 'a sequence without rows');
  const keys = Uint32Array.of(9, 44, 5);
  const tensors = inputs({ shape });
  const flash = await attention();
  const [some, other] = [await flash.forward({ shape, ...tensors, seqlensKv: keys }), await flash.forward({ shape, ...tensors, seqlensKv: [9, 44, 6] })];
  assertNear(some.o, modifiedForward({ shape, seqlensKv: keys }, ...Object.values(tensors)).o, 'lengths of keys alone');
  assert(largestError(some.o, other.o) > 0.01, 'other lengths, the same answer');
}

/** Nine storage buffers, of which WebGPU promises eight. */
async function everythingAtOnce() {
  const shape = { batch: 2, numHeads: 2, seqlen: 40, headDim: 8 };
  const problem = {
    shape, causal: true, softcap: 2, alibi: true, bias: { data: random(1600, 41), shape: [1, 1, 40, 40] },
    mask: { data: randomMask(160, 42), shape: [2, 2, 1, 40] }, sink: Float32Array.of(0.1, 0.2), seqlensQ: [40, 34], seqlensKv: [40, 34],
  };
  const adapter = await navigator.gpu.requestAdapter();
  const maxStorageBuffersPerShaderStage = adapter.limits.maxStorageBuffersPerShaderStage;
  const flash = await FlashAttention.create({ device: await adapter.requestDevice({ requiredLimits: { maxStorageBuffersPerShaderStage } }) });
  const tensors = inputs(problem);
  const least = await FlashAttention.create({ device: await (await navigator.gpu.requestAdapter()).requestDevice() });
  await assertThrows(least.forward({ ...problem, ...tensors }), UnsupportedError, 'flash_forward binds 9, maxStorageBuffersPerShaderStage = 8');
  if (maxStorageBuffersPerShaderStage >= 9) {
    assertNear((await flash.forward({ ...problem, ...tensors })).o, modifiedForward(problem, ...Object.values(tensors)).o, 'all at once');
  }
  for (const { device } of [flash, least]) device.destroy();
}

async function gradientsOfBiases() {
  const shape = { batch: 2, numHeads: 2, seqlen: 24, seqlenKv: 28, headDim: 8 };
  const data = random(2 * 24 * 28, 61);
  // No row sees this entry's key.
  data.fill(-Infinity, 5 * 28, 6 * 28);
  const bias = { data, shape: [1, 2, 24, 28] };
  const all = await checkModified('dBias of a bias for each head', { shape, bias, dBias: true, causal: true, softcap: 2 });
  await checkModified('dBias of a bias for each key', { shape, bias: { data: random(56, 62), shape: [2, 1, 1, 28] }, dBias: true });
  await checkModified('dBias in f16', { shape, element: 'f16', bias: { data: toF16(random(24 * 28, 63)), shape: [1, 1, 24, 28] }, dBias: true });
  const flash = await attention();
  const onGpu = await flash.upload(data);
  const { gradients, lse, expected, ...rest } = all;
  const q = await flash.upload(rest.q);
  const { dBias, dq, dk, dv } = await flash.backward({ ...rest, lse, q, bias: { ...bias, data: onGpu } });
  assertSameBits(await dBias.read(), gradients.dBias, 'dBias on the GPU');
  assert(gradients.dBias.slice(5 * 28, 6 * 28).every((value) => value === 0), 'entries that no row sees');
  for (const tensor of [onGpu, q, dBias, dq, dk, dv]) tensor.destroy();
  await assertThrows(flash.backward({ ...rest, lse, bias: undefined }), InvalidProblemError, 'dBias is true, and there is no bias');
  await assertThrows(flash.backward({ ...rest, lse, dBias: 1 }), InvalidProblemError, 'dBias = 1; it is true or false');
}

async function probabilitiesOfRows() {
  const flash = await attention();
  const shape = { batch: 2, numHeads: 4, numHeadsKv: 2, seqlen: 20, seqlenKv: 24, headDim: 8 };
  const problem = { shape, causal: true, softcap: 2, bias: { data: random(4 * 24, 71), shape: [1, 4, 1, 24] }, sink: Float32Array.of(0.1, -2, 1, 0) };
  const tensors = inputs(problem);
  const { lse } = await flash.forward({ ...problem, ...tensors });
  const { q, k } = tensors;
  for (const [heads, rows] of [[[0, 4], [0, 20]], [[3, 4], [7, 20]]]) {
    const { probabilities, stats } = await flash.probabilities({ ...problem, q, k, lse, heads, rows });
    assertNear(probabilities, modifiedProbabilities(problem, q, k, heads, rows), `probabilities of ${heads} and ${rows}`);
    assert(stats.flops > 0, 'operations');
  }
  const all = await flash.probabilities({ ...problem, q, k, lse, boundedWork: 1e3 });
  const onGpu = await flash.probabilities({ ...problem, q, k, lse, output: 'gpu' });
  assertSameBits(await onGpu.probabilities.read(), all.probabilities, 'probabilities on the GPU');
  onGpu.probabilities.destroy();
  const refused = (change, type, text) => assertThrows(flash.probabilities({ ...problem, q, k, lse, ...change }), type, text);
  await refused({ heads: [1, 5] }, InvalidProblemError, 'heads[1] = 5; it must be a whole number from 0 to 4');
  await refused({ rows: [3, 3] }, InvalidProblemError, 'rows 3..3 are chosen');
  await refused({ rows: 3 }, InvalidProblemError, 'rows = 3; it is a pair [first, end]');
  await refused({ lse: undefined }, InvalidTensorError, 'lse is undefined');
}

async function plans() {
  const flash = await attention();
  const plan = await flash.plan({ shape: SHAPE, causal: true });
  assertEqual(plan.kernels, ['flash_forward'], 'kernels of flash');
  assertEqual([plan.extraBytes, plan.flops, plan.lengths.q], [4 * 200, 2 * 5050 * 256, 12800], 'its numbers');
  const standard = await flash.plan({ shape: SHAPE, algorithm: 'standard' });
  assertEqual(standard.kernels, ['standard_scores', 'standard_softmax', 'standard_output'], 'kernels of standard attention');
  assert(standard.extraBytes >= 4 * 2 * 100 * 100, 'it has the score matrix');
  const modified = await flash.plan({ shape: SHAPE, softcap: 5, alibi: true, bias: { shape: [1, 2, 100, 1] }, sink: true });
  assertEqual(modified.kernels, ['flash_forward'], 'a problem with modifiers, without their tensors');
}

export const cases = {
  'the reference is right': theReferenceIsRight,
  'answers in f32': answersInF32,
  'answers in f16': answersInF16,
  'answers in bf16': answersInBf16,
  "the caller's strides": stridesOfTheCaller,
  'answers without subgroups and shader-f16': withoutOptionalFeatures,
  "the browser's features are used": featuresOfTheBrowserAreUsed,
  'nothing to see, nothing to do, NaN': edges,
  'the same bits, however the work is split': sameBitsWhateverTheDispatches,
  'calls at the same time': callsAtTheSameTime,
  'dropout seeds': seedsChangeTheMaskAlone,
  'tensors on the GPU': tensorsStayOnTheGpu,
  "the caller's device and buffers": buffersOfTheCaller,
  'nothing of the page is changed': nothingOfThePageIsChanged,
  'every misuse has its own error': misuse,
  'misuse before there is a device': misuseOfCreate,
  'abort means now': abort,
  'the page stays alive': thePageStaysAlive,
  'a lost device': lostDevice,
  'what the browser refuses': whatTheBrowserRefuses,
  'destroy at any moment': destroyAtAnyMoment,
  'mount and unmount': mountAndUnmount,
  'a panic is told': aPanicIsTold,
  'prepared operations': preparedOperations,
  'calls go together': callsGoTogether,
  'no WebGPU': noWebGPU,
  '16-bit elements': halves,
  'gradients': gradients,
  'the reference of modifiers is right': theModifiedReferenceIsRight,
  'biases': biases,
  'masks': masks,
  'softcap and ALiBi': softcapAndAlibi,
  'sinks': sinks,
  'lengths of sequences': lengthsOfSequences,
  'packed sequences': packedSequences,
  'caches and appends': cachesAndAppends,
  'all modifiers at once': everythingAtOnce,
  'gradients of biases': gradientsOfBiases,
  'probabilities': probabilitiesOfRows,
  "scores by the caller's WGSL": ownScores,
  "masks by the caller's WGSL": ownMasks,
  "faults of the caller's WGSL": faultsOfOwnWgsl,
  'block masks': blockMasks,
  'plans': plans,
};
