// Operations that are compiled ahead, and calls that go to the GPU together.
import { InvalidOptionError, InvalidProblemError, InvalidTensorError, packMask } from '../pkg/index.js';
import { assert, assertEqual, assertSameBits, assertThrows, attention, inputs, random, randomMask } from './support.js';

const SHAPE = { numHeads: 2, seqlen: 100, headDim: 64 };

export async function preparedOperations() {
  const flash = await attention();
  const problem = { shape: SHAPE, causal: true, dropout: { p: 0.25, seed: 5 } };
  const arrays = inputs(problem);
  const expected = await flash.forward({ ...problem, ...arrays });
  const other = await flash.forward({ ...problem, ...arrays, dropout: { p: 0.25, seed: 6 } });
  const prepared = await flash.prepare(problem);
  assertEqual(prepared.lengths, { q: 12800, k: 12800, v: 12800, o: 12800, lse: 200 }, 'lengths');
  const [q, k, v] = await Promise.all(['q', 'k', 'v'].map((name) => flash.upload(arrays[name])));
  const run = await prepared.run({ q, k, v });
  assertSameBits(await run.o.read(), expected.o, 'O of run');
  assertSameBits(await run.lse.read(), expected.lse, 'LSE of run');
  const seeded = await prepared.run({ q, k, v, dropout: { seed: 6 } });
  assertSameBits(await seeded.o.read(), other.o, 'another seed');

  // Into the page's own encoder and buffer, K and V at an offset, two calls one after the other.
  const { device } = flash;
  const usage = GPUBufferUsage.STORAGE | GPUBufferUsage.COPY_SRC | GPUBufferUsage.COPY_DST;
  const size = arrays.q.byteLength;
  const both = device.createBuffer({ size: 2 * size + 256, usage });
  device.queue.writeBuffer(both, 256, arrays.k);
  device.queue.writeBuffer(both, 256 + size, arrays.v);
  const [out, copy] = [1, 2].map(() => device.createBuffer({ size, usage }));
  const [inside, after] = [256, 256 + size].map((offset) => flash.wrap(both, { offset, length: 12800 }));
  const o = flash.wrap(out);
  const lse = await flash.upload(new Float32Array(200));
  const encoder = device.createCommandEncoder();
  prepared.encode(encoder, { q, k: inside, v: after, o, lse }, { dropout: { seed: 6 } });
  encoder.copyBufferToBuffer(out, 0, copy, 0, size);
  prepared.encode(encoder, { q, k: inside, v: after, o, lse });
  device.queue.submit([encoder.finish()]);
  assertSameBits(await o.read(), expected.o, 'O of encode');
  assertSameBits(await lse.read(), expected.lse, 'its LSE');
  assertSameBits(await flash.wrap(copy).read(), other.o, 'O of the call before');
  const written = await prepared.run({ q, k, v, o, lse });
  assert(written.o === o && written.lse === lse, "run writes where the caller says");

  const refused = (call, type, text) => assertThrows((async () => call())(), type, text);
  const fresh = device.createCommandEncoder();
  await refused(() => prepared.encode(fresh, { q, k, v }), InvalidTensorError, 'o is missing');
  await refused(() => prepared.encode(fresh, { q, k, v, o: q, lse }), InvalidTensorError, 'share one buffer');
  await refused(() => prepared.encode(fresh, { q, k, v, o: arrays.q, lse }), InvalidTensorError, 'o is of type Float32Array; pass a GpuTensor');
  await refused(() => prepared.encode({}, { q, k, v, o, lse }), InvalidOptionError, 'encoder is of type Object');
  await refused(() => prepared.run({ q, k: lse, v }), InvalidTensorError, 'k has 200 elements, but its shape needs 12800');
  await refused(() => prepared.run({ q, k, v, causal: true }), InvalidOptionError, "run has no 'causal'");
  await refused(() => prepared.run({ q, k, v, dropout: { seed: -1 } }), InvalidProblemError, 'dropout.seed = -1');
  // A refused call leaves the encoder in order.
  device.pushErrorScope('validation');
  fresh.finish();
  assertEqual(await device.popErrorScope(), null, 'the encoder');
  prepared.destroy();
  prepared.destroy();
  await refused(() => prepared.run({ q, k, v }), InvalidOptionError, 'was destroyed; prepare it again');
  await withModifiers(flash);
  for (const tensor of [q, k, v, run.o, run.lse, seeded.o, seeded.lse, lse, o, inside, after]) tensor.destroy();
  for (const buffer of [both, out, copy]) buffer.destroy();
}

/** Bias, mask, sinks and aux come with each call. */
async function withModifiers(flash) {
  const shape = { numHeads: 2, seqlen: 20, headDim: 8 };
  const aux = random(20, 91);
  const data = { bias: random(400, 92), mask: packMask(randomMask(400, 93), 20), sink: Float32Array.of(0.5, -1) };
  const scoreMod = `fn score_mod(score: f32, batch: u32, head: u32, q_idx: u32, kv_idx: u32) -> f32 { return score + aux[kv_idx]; }`;
  const problem = { shape, scoreMod, aux, bias: { shape: [1, 1, 20, 20] }, mask: { shape: [1, 1, 20, 20] }, sink: true };
  const arrays = inputs(problem);
  const given = { ...problem, ...arrays, bias: { ...problem.bias, data: data.bias }, mask: { ...problem.mask, data: data.mask }, sink: data.sink };
  const expected = await flash.forward(given);
  const prepared = await flash.prepare(problem);
  const tensors = {};
  for (const [name, array] of Object.entries({ ...arrays, ...data, aux })) tensors[name] = await flash.upload(array);
  const { o, lse } = await prepared.run(tensors);
  assertSameBits(await o.read(), expected.o, 'O with everything that a problem may have');
  const { mask, ...without } = tensors;
  await assertThrows(prepared.run(without), InvalidTensorError, 'mask is undefined; pass a GpuTensor');
  await assertThrows(prepared.run({ ...tensors, mask: tensors.bias }), InvalidTensorError, 'mask holds f32, but u32 is expected');
  // Gradients, all that there are, by run and by encode.
  const dO = await flash.upload(random(320, 94));
  // A function of its own would need a gradient.
  const { scoreMod: _, aux: __, ...plain } = problem;
  const { aux: ___, ...inputsOfPlain } = tensors;
  const forward = await flash.forward({ ...plain, ...inputsOfPlain, bias: { ...problem.bias, data: tensors.bias }, mask: { ...problem.mask, data: mask } });
  const wanted = await flash.backward({
    ...plain, ...inputsOfPlain, bias: { ...problem.bias, data: tensors.bias }, mask: { ...problem.mask, data: mask }, o: forward.o, lse: forward.lse, dO, dBias: true,
  });
  const back = await flash.prepareBackward({ ...plain, dBias: true });
  const read = { ...inputsOfPlain, o: forward.o, lse: forward.lse, dO };
  const found = await back.run(read);
  const names = ['dq', 'dk', 'dv', 'dSink', 'dBias'];
  const written = {};
  for (const name of names) written[name] = await flash.upload(new Float32Array(back.lengths[name]));
  const encoder = flash.device.createCommandEncoder();
  back.encode(encoder, { ...read, ...written });
  flash.device.queue.submit([encoder.finish()]);
  for (const name of names) {
    const right = await wanted[name].read();
    assertSameBits(await found[name].read(), right, `${name} of run`);
    assertSameBits(await written[name].read(), right, `${name} of encode`);
  }
  back.destroy();
  prepared.destroy();
  for (const tensor of [...Object.values(tensors), o, lse, dO, forward.o, forward.lse]) tensor.destroy();
  for (const all of [wanted, found, written]) for (const name of names) all[name].destroy();
}

/** Submissions that the page makes in `work`. */
async function submissionsOf(device, work) {
  let count = 0;
  const { submit } = device.queue;
  Object.defineProperty(device.queue, 'submit', { configurable: true, value: function (buffers) { count++; return submit.call(this, buffers); } });
  try {
    await work();
  } finally {
    delete device.queue.submit;
  }
  return count;
}

export async function callsGoTogether() {
  const flash = await attention();
  const problem = { shape: { seqlen: 16, headDim: 64 } };
  const arrays = inputs(problem);
  const expected = await flash.forward({ ...problem, ...arrays });
  const [q, k, v] = await Promise.all(['q', 'k', 'v'].map((name) => flash.upload(arrays[name])));
  const { device } = flash;
  assertEqual(await submissionsOf(device, () => flash.forward({ ...problem, ...arrays })), 1, 'submissions of a call on arrays');
  const results = [];
  const together = await submissionsOf(device, async () => {
    results.push(...await Promise.all(Array.from({ length: 100 }, () => flash.forward({ ...problem, q, k, v }))));
  });
  assertEqual(together, 1, 'submissions of 100 calls');
  for (const { o } of [results[0], results[99]]) assertSameBits(await o.read(), expected.o, 'one of 100 calls');
  for (const { o, lse } of results) for (const tensor of [o, lse]) tensor.destroy();
  // One bad call among good ones fails alone.
  const dead = device.createBuffer({ size: arrays.k.byteLength, usage: GPUBufferUsage.STORAGE });
  const broken = flash.wrap(dead);
  dead.destroy();
  const [good, bad, also] = await Promise.allSettled([k, broken, k].map((k) => flash.forward({ ...problem, q, k, v, output: 'array' })));
  assertSameBits(good.value.o, expected.o, 'the call before a bad one');
  assertSameBits(also.value.o, expected.o, 'the call after it');
  assert(bad.reason instanceof InvalidTensorError, `the bad one: ${bad.reason}`);
  // Freed right after the call, it still has its tensors.
  const passing = await flash.upload(arrays.q);
  const calling = flash.forward({ ...problem, q: passing, k, v, output: 'array' });
  passing.destroy();
  assertSameBits((await calling).o, expected.o, 'a tensor that was freed right after the call');

  // Overhead over a bare submission and the wait for it; the quickest of many, because other programs disturb it.
  const prepared = await flash.prepare(problem);
  const outputs = { o: await flash.upload(new Float32Array(16 * 64)), lse: await flash.upload(new Float32Array(16)) };
  const tensors = { q, k, v, ...outputs };
  const bare = async () => {
    const encoder = device.createCommandEncoder();
    prepared.encode(encoder, tensors);
    device.queue.submit([encoder.finish()]);
    await device.queue.onSubmittedWorkDone();
  };
  const quickest = async (call) => {
    let best = Infinity;
    for (let turn = 0; turn < 20; turn++) {
      const began = performance.now();
      await call();
      best = Math.min(best, performance.now() - began);
    }
    return best;
  };
  const run = async () => { await prepared.run(tensors); };
  const forward = async () => {
    const { o, lse } = await flash.forward({ ...problem, q, k, v });
    o.destroy();
    lse.destroy();
  };
  const [ofBare, ofRun, ofForward] = [await quickest(bare), await quickest(run), await quickest(forward)];
  const recording = device.createCommandEncoder();
  const began = performance.now();
  for (let turn = 0; turn < 200; turn++) prepared.encode(recording, tensors);
  const ofEncode = (performance.now() - began) / 200;
  console.info(`a bare submission takes ${ofBare.toFixed(2)} ms, run ${(ofRun - ofBare).toFixed(2)} ms more, forward ${(ofForward - ofBare).toFixed(2)} ms more; encode alone ${ofEncode.toFixed(3)} ms`);
  // As long again would be a second round trip; a browser's clock and a busy machine blur what is shorter.
  assert(ofForward < 2 * ofBare + 5, `forward takes ${ofForward} ms, a bare submission ${ofBare} ms`);
  const { stats } = await prepared.run({ ...tensors, gpuTime: true });
  assertEqual(stats.gpuMilliseconds !== undefined, device.features.has('timestamp-query'), 'GPU time where there is timestamp-query');
  assert(stats.gpuMilliseconds === undefined || stats.gpuMilliseconds >= 0 && stats.gpuMilliseconds < 10_000, `${stats.gpuMilliseconds} ms on the GPU`);
  prepared.destroy();
  for (const tensor of [...Object.values(tensors)]) tensor.destroy();
}
