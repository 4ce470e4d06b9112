// Life and death of calls and devices.
import { DeviceLostError, FlashAttention, GpuError, OutOfMemoryError } from '../pkg/index.js';
import { assert, assertEqual, assertThrows, attention, devicesOf, inputs } from './support.js';

const SHAPE = { numHeads: 2, seqlen: 100, headDim: 64 };

/** The promise, or a failure after two seconds, or more where devices are made. */
function soon(promise, what, seconds = 2) {
  let timer;
  const late = new Promise((_, reject) => timer = setTimeout(() => reject(new Error(`after ${seconds} s still not: ${what}`)), 1000 * seconds));
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
}

export async function nothingOfThePageIsChanged() {
  const originals = [GPUAdapter.prototype.requestDevice, GPUDevice.prototype.createBuffer, navigator.gpu.requestAdapter];
  const adapter = await navigator.gpu.requestAdapter();
  const own = await adapter.requestDevice();
  const mine = () => 'the page has its own';
  Object.defineProperty(own, 'createBuffer', { configurable: true, value: function (descriptor) { return Reflect.apply(originals[1], this, [descriptor]); } });
  const createBuffer = own.createBuffer;
  own.onuncapturederror = mine;
  const creating = [FlashAttention.create({ device: own }), FlashAttention.create({ subgroups: false })];
  assert(GPUAdapter.prototype.requestDevice === originals[0], 'requestDevice while a device is made');
  const [one, two] = await Promise.all(creating);
  const problem = { shape: { seqlen: 4, headDim: 4 } };
  await one.forward({ ...problem, ...inputs(problem) });
  assert(own.createBuffer === createBuffer && own.onuncapturederror === mine, 'what the page put on its device');
  assert([GPUAdapter.prototype.requestDevice, GPUDevice.prototype.createBuffer, navigator.gpu.requestAdapter].every((now, i) => now === originals[i]), 'prototypes');
  assertEqual((await two.info()).subgroups, null, 'each has its own options');
  one.destroy();
  two.destroy();
  const alive = await Promise.race([own.lost, new Promise((resolve) => setTimeout(resolve, 50, 'alive'))]);
  assertEqual(alive, 'alive', "the page's own device");
  own.destroy();
}

/** While it compiles, while it waits for another call, between dispatches. */
export async function abort() {
  const flash = await attention();
  const problem = { shape: { ...SHAPE, seqlen: 400 }, boundedWork: 1e6 };
  const tensors = inputs(problem);
  const reason = new Error('the visitor left');
  const aborted = async (what, call, when) => {
    const controller = new AbortController();
    const calling = call(controller.signal, () => controller.abort(reason)).then(() => 'it ended', (error) => error);
    await when?.(controller);
    assert(await soon(calling, what) === reason, `${what}: ${await calling}`);
  };
  const now = (controller) => controller.abort(reason);
  // Compiles it.
  await flash.forward({ ...problem, ...tensors });
  let last;
  await aborted('between dispatches', (signal, abort) => flash.forward({ ...problem, ...tensors, signal, onProgress: (step) => { last = step; abort(); } }));
  assert(last.completed < last.total, `it stopped after ${last.completed} of ${last.total}`);
  // While dispatches run; what they did is not told any more.
  let heard = 0;
  let abortSoon;
  await aborted('while dispatches run', (signal, abort) => {
    abortSoon = () => setTimeout(abort);
    return flash.forward({ ...problem, ...tensors, signal, onProgress: () => { heard++; abortSoon(); } });
  });
  const before = heard;
  await new Promise((resolve) => setTimeout(resolve, 300));
  assertEqual(heard, before, 'onProgress after the abort');
  // No other case has this head dimension, so it compiles.
  const uncompiled = { shape: { seqlen: 64, headDim: 93 } };
  await aborted('while it compiles', (signal) => flash.forward({ ...uncompiled, ...inputs(uncompiled), signal }), now);
  await aborted('while it is prepared', (signal) => flash.prepare({ shape: { seqlen: 64, headDim: 94 } }, { signal }), now);
  const first = flash.forward({ ...problem, ...tensors });
  await aborted('while it waits for another call', (signal) => flash.forward({ ...problem, ...tensors, signal }), now);
  await aborted('while the module loads', (signal) => FlashAttention.create({ signal }), now);
  await aborted('before it begins', (signal) => flash.forward({ ...problem, ...tensors, signal: AbortSignal.abort(signal.reason ?? reason) }));
  await first;
  const late = await flash.forward({ ...problem, ...tensors, signal: AbortSignal.abort() }).catch((error) => error);
  assertEqual(late.name, 'AbortError', 'aborted before it began');
  const thrown = new Error('of the caller');
  const failed = await flash.forward({ ...problem, ...tensors, onProgress: () => { throw thrown; } }).catch((error) => error);
  assert(failed === thrown, `what onProgress throws: ${failed}`);
  await flash.forward({ ...problem, ...tensors });
}

export async function lostDevice() {
  const flash = await FlashAttention.create();
  const problem = { shape: { ...SHAPE, seqlen: 400 }, boundedWork: 1e6 };
  const tensors = inputs(problem);
  const q = await flash.upload(tensors.q);
  const call = flash.forward({ ...problem, ...tensors, onProgress: () => flash.device.destroy() });
  await assertThrows(call, DeviceLostError, 'the GPU device was lost');
  await assertThrows(flash.forward({ ...problem, ...tensors }), DeviceLostError, 'call FlashAttention.create() again');
  await assertThrows(q.read(), DeviceLostError, 'was lost');
  q.destroy();
  flash.destroy();
  flash.destroy();
}

/** What no check foresees has a class too; and the device is of use afterwards. */
export async function whatTheBrowserRefuses() {
  const device = await (await navigator.gpu.requestAdapter()).requestDevice();
  const flash = await FlashAttention.create({ device });
  const problem = { shape: { seqlen: 4, headDim: 4 } };
  let refusal = null;
  const popErrorScope = async () => {
    const found = await GPUDevice.prototype.popErrorScope.call(device);
    return refusal ?? found;
  };
  Object.defineProperty(device, 'popErrorScope', { configurable: true, value: popErrorScope });
  const calls = { upload: () => flash.upload(new Float32Array(64)), prepare: () => flash.prepare(problem), forward: () => flash.forward({ ...problem, ...inputs(problem) }) };
  for (const [error, type, code, text] of [
    [new GPUOutOfMemoryError('of the test'), OutOfMemoryError, 'out-of-memory', 'the GPU was full while '],
    [new GPUValidationError('of the test'), GpuError, 'gpu', 'of the test'],
  ]) {
    refusal = error;
    for (const [name, call] of Object.entries(calls)) {
      await assertThrows(call(), type, text);
      assertEqual(await call().catch(({ code }) => code), code, name);
    }
  }
  refusal = null;
  const { o } = await calls.forward();
  assert(o.every(Number.isFinite), 'the device is of use');
  flash.destroy();
  device.destroy();
}

/** Whatever it does, `destroy` frees the device and answers what is pending. */
export async function destroyAtAnyMoment() {
  const small = { shape: { seqlen: 16, headDim: 8 } };
  const long = { shape: { numHeads: 2, seqlen: 128, headDim: 8 }, boundedWork: 1e5 };
  const moments = {
    'while it compiles': (flash) => [flash.forward({ ...small, ...inputs(small) })],
    'while it is prepared': (flash) => [flash.prepare(small)],
    'while several wait': (flash) => [1, 2, 3].map(() => flash.forward({ ...long, ...inputs(long) })),
    'from onProgress': (flash) => [flash.forward({ ...long, ...inputs(long), onProgress: () => flash.destroy() })],
    'while it uploads': (flash) => [flash.upload(new Float32Array(64))],
  };
  for (const [moment, calls] of Object.entries(moments)) {
    const [device] = await devicesOf(async () => {
      const flash = await FlashAttention.create();
      const calling = calls(flash);
      const answers = Promise.all(calling.map((call) => assertThrows(call, DeviceLostError, 'destroy() was called')));
      if (moment !== 'from onProgress') flash.destroy();
      flash.device.lost.then(() => flash.destroy());
      // SwiftShader compiles for longer than two seconds, and no call is answered meanwhile.
      if (moment === 'from onProgress') await answers;
      else await soon(answers, moment);
    });
    await soon(device.lost, `${moment}: the device is lost`);
  }
  // During a read, and after a call.
  const [device] = await devicesOf(async () => {
    const flash = await FlashAttention.create();
    const tensor = await flash.upload(new Float32Array(64));
    const reading = assertThrows(tensor.read(), DeviceLostError, 'destroy() was called');
    flash.destroy();
    await soon(reading, 'a read is answered');
    tensor.destroy();
  });
  await soon(device.lost, 'the device is lost');
  if (!('dispose' in Symbol)) return;
  const flash = await FlashAttention.create();
  flash[Symbol.dispose]();
  await assertThrows(flash.info(), DeviceLostError, 'destroy() was called');
}

/** An abort between the device and the answer, however few microtasks before it: what nobody gets is destroyed. */
async function abortBeforeTheAnswer() {
  const alive = new Set();
  for (let turns = 0; turns < 60; turns++) {
    const controller = new AbortController();
    const adapter = await navigator.gpu.requestAdapter();
    const requestDevice = async (descriptor) => {
      const device = await adapter.requestDevice(descriptor);
      alive.add(device);
      device.lost.then(() => alive.delete(device));
      (async () => {
        for (let turn = 0; turn < turns; turn++) await null;
        controller.abort();
      })();
      return device;
    };
    const { features, limits, info } = adapter;
    const gpu = { requestAdapter: async () => ({ features, limits, info, requestDevice }) };
    await FlashAttention.create({ gpu, signal: controller.signal }).then((flash) => flash.destroy(), () => undefined);
  }
  await new Promise((resolve) => setTimeout(resolve, 500));
  assertEqual(alive.size, 0, 'devices that are alive');
}

/** As frameworks do in their first second: twenty times made, and gone before it is there, or right after. */
export async function mountAndUnmount() {
  const devices = await devicesOf(async () => {
    const rounds = Array.from({ length: 20 }, async (_, round) => {
      const controller = new AbortController();
      const creating = FlashAttention.create({ signal: controller.signal });
      if (round % 2) {
        await new Promise((resolve) => setTimeout(resolve, 10 * round));
        controller.abort();
        await creating.catch(() => undefined);
      } else {
        creating.then((flash) => {
          const problem = { shape: { seqlen: 4, headDim: 4 } };
          flash.forward({ ...problem, ...inputs(problem) }).catch(() => undefined);
          flash.destroy();
        });
        await creating;
      }
      // A device that came after the abort is destroyed when it comes; one that came before is its owner's.
      await creating.then((flash) => flash.destroy(), () => undefined);
    });
    await soon(Promise.all(rounds), 'twenty rounds', 30);
    await new Promise((resolve) => setTimeout(resolve, 500));
  });
  await soon(Promise.all(devices.map((device) => device.lost)), `all ${devices.length} devices are lost`);
  await abortBeforeTheAnswer();
}

/** A fault inside WebAssembly, in a worker, because it is one for good: what waits hears of it, and so do later calls. */
export async function aPanicIsTold() {
  const text = `
    import { FlashAttention } from '${new URL('/web/pkg/index.js', location.href)}';
    import { broken } from '${new URL('/web/pkg/view.js', location.href)}';
    const told = (promise) => promise.then(() => 'it worked', ({ code, message }) => code + ' ' + message);
    const attention = await FlashAttention.create();
    const waiting = told(attention.prepare({ shape: { seqlen: 16, headDim: 16 } }));
    broken('panicked at the test');
    postMessage([await waiting, await told(attention.prepare({ shape: { seqlen: 16, headDim: 16 } })), await told(FlashAttention.create())]);
    attention.device.destroy();
    close();`;
  const address = URL.createObjectURL(new Blob([text], { type: 'text/javascript' }));
  const worker = new Worker(address, { type: 'module' });
  const answers = await soon(new Promise((resolve, reject) => {
    worker.onmessage = ({ data }) => resolve(data);
    worker.onerror = ({ message }) => reject(new Error(message));
  }), 'the worker answers', 30);
  URL.revokeObjectURL(address);
  for (const answer of answers) assert(/^gpu something broke .*panicked at the test/.test(answer), answer);
}
