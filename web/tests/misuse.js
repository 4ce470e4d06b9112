// Wrong uses. Each has the right class, code and words, and none takes longer than two seconds or stays without an answer.
import {
  AttentionError, DeviceLostError, FlashAttention, InvalidOptionError, InvalidProblemError, InvalidTensorError, UnsupportedError,
  GpuTensor, fromBf16, fromF16, packMask, toBf16, toF16,
} from '../pkg/index.js';
import { strides } from '../demo/reference.js';
import { assert, assertEqual, assertWords, attention, devicesOf, inputs } from './support.js';

const SECONDS = 2;
const CODES = new Map([
  [AttentionError, 'not-loaded'], [InvalidOptionError, 'invalid-option'], [InvalidProblemError, 'invalid-problem'],
  [InvalidTensorError, 'invalid-tensor'], [UnsupportedError, 'unsupported'], [DeviceLostError, 'device-lost'],
]);
const [OPTION, PROBLEM, TENSOR, UNSUPPORTED] = [InvalidOptionError, InvalidProblemError, InvalidTensorError, UnsupportedError];

const shape = { numHeads: 2, seqlen: 100, headDim: 64 };
const dense = strides(shape).q;

/** Changes of a forward call that is right. */
const CHANGES = [
  // What does not exist.
  [{ casual: true }, OPTION, "forward has no 'casual'; did you mean causal?"],
  [{ softmax_scale: 1 }, OPTION, "forward has no 'softmax_scale'; did you mean softmaxScale?"],
  [{ nonsense: 1 }, OPTION, "forward has no 'nonsense'; the README lists all"],
  [{ shape: { ...shape, head_dim: 64 } }, OPTION, "shape has no 'head_dim'; did you mean headDim?"],
  [{ dropout: { p: 0.1, sede: 1 } }, OPTION, "dropout has no 'sede'; did you mean seed?"],
  [{ layout: { q: dense, k: dense, v: dense, out: dense } }, OPTION, "layout has no 'out'"],
  [{ layout: { q: { ...dense, stride: 1 }, k: dense, v: dense, o: dense } }, OPTION, "layout.q has no 'stride'"],
  // Tensors.
  [{ q: new Float32Array(12799) }, TENSOR, 'q has 12799 elements, but its shape needs 12800'],
  [{ k: new Float32Array(13000) }, TENSOR, 'k has 13000 elements'],
  [{ v: undefined }, TENSOR, 'v is undefined; pass a Float32Array'],
  [{ v: null }, TENSOR, 'v is null'],
  [{ v: [1, 2, 3] }, TENSOR, 'v is of type Array'],
  [{ v: 'text' }, TENSOR, 'v is of type String'],
  [{ v: Promise.resolve(new Float32Array(12800)) }, TENSOR, 'v is a promise; await it first'],
  [{ v: new Float64Array(12800) }, TENSOR, 'v is of type Float64Array'],
  [{ v: new ArrayBuffer(51200) }, TENSOR, 'v is of type ArrayBuffer'],
  [{ v: new DataView(new ArrayBuffer(51200)) }, TENSOR, 'v is of type DataView'],
  [{ v: new Uint16Array(12800) }, TENSOR, 'v is a Uint16Array'],
  [{ q: new Uint32Array(12800) }, TENSOR, 'q holds u32, but f32 is expected'],
  [{ element: 'f16' }, TENSOR, "element is 'f16', but q is a Float32Array; convert it with toF16"],
  [{ element: 'int8' }, TENSOR, "element is 'int8', but q is a Float32Array"],
  [{ q: undefined, k: undefined, v: undefined }, TENSOR, 'q is undefined'],
  // Shapes.
  [{ shape: undefined }, PROBLEM, 'shape is missing'],
  [{ shape: null }, PROBLEM, 'shape is null'],
  [{ shape: [1, 2, 3, 4] }, PROBLEM, 'shape is of type Array'],
  [{ shape: { ...shape, seqlen: 1.5 } }, PROBLEM, 'shape.seqlen = 1.5; it must be a whole number'],
  [{ shape: { ...shape, seqlen: '100' } }, PROBLEM, "shape.seqlen = '100'; it must be a whole number"],
  [{ shape: { ...shape, seqlen: 100n } }, PROBLEM, 'shape.seqlen = 100n'],
  [{ shape: { ...shape, batch: -1 } }, PROBLEM, 'shape.batch = -1'],
  [{ shape: { ...shape, batch: NaN } }, PROBLEM, 'shape.batch = NaN'],
  [{ shape: { ...shape, seqlen: undefined } }, PROBLEM, 'shape.seqlen = undefined'],
  [{ shape: { ...shape, headDim: 257 } }, PROBLEM, 'headDim = 257; kernels exist for 1 to 256'],
  [{ shape: { ...shape, headDim: 0 } }, PROBLEM, 'headDim = 0'],
  [{ shape: { ...shape, numHeadsKv: 3 } }, PROBLEM, 'numHeads = 2 is not a multiple of numHeadsKv = 3'],
  [{ shape: { seqlen: 2 ** 24, headDim: 256 } }, UNSUPPORTED, 'is too large for this device'],
  // Everything else of a problem.
  [{ softmaxScale: NaN }, PROBLEM, 'softmaxScale = NaN; it must be finite, and at most 2.3e38 in size'],
  [{ softmaxScale: '1' }, PROBLEM, "softmaxScale = '1'; it must be a number"],
  [{ dropout: { p: 1 } }, PROBLEM, 'dropout.p = 1; it must be at least 0 and below 1'],
  [{ dropout: {} }, PROBLEM, 'dropout.p = undefined; it must be a number'],
  [{ dropout: 0.1 }, OPTION, 'dropout is of type Number; pass an object such as { p: … }'],
  [{ dropout: null }, OPTION, 'dropout is null'],
  [{ dropout: { p: 0.1, seed: -1 } }, PROBLEM, 'dropout.seed = -1'],
  [{ dropout: { p: 0.1, seed: 1.5 } }, PROBLEM, 'dropout.seed = 1.5'],
  [{ dropout: { p: 0.1, offset: 2 ** 32 } }, PROBLEM, 'dropout.offset = 4294967296'],
  [{ window: [-1, 0] }, PROBLEM, 'window[0] = -1'],
  [{ window: 5 }, PROBLEM, 'window = 5; it is a pair'],
  [{ window: [1] }, PROBLEM, 'window = [1]; it is a pair'],
  [{ causal: 'bottom' }, PROBLEM, "causal = 'bottom'"],
  [{ causal: 1 }, PROBLEM, 'causal = 1'],
  [{ layout: 'sbhd' }, PROBLEM, "layout = 'sbhd'"],
  [{ layout: 5 }, PROBLEM, 'layout = 5'],
  [{ layout: null }, OPTION, 'layout is null'],
  [{ layout: { q: dense } }, OPTION, 'layout.k is undefined'],
  [{ layout: { q: dense, k: dense, v: dense, o: { ...dense, row: 1 } } }, PROBLEM, 'places two of its elements at one address'],
  [{ algorithm: 'fast' }, PROBLEM, "algorithm = 'fast'"],
  // How a call behaves.
  [{ boundedWork: 0 }, OPTION, 'boundedWork = 0; it is a number of operations from 1'],
  [{ boundedWork: '1e6' }, OPTION, "boundedWork = '1e6'"],
  [{ boundedWork: Infinity }, OPTION, 'boundedWork = Infinity'],
  [{ output: 'cpu' }, OPTION, "output = 'cpu'; it is 'gpu' or 'array'"],
  [{ gpuTime: 1 }, OPTION, 'gpuTime = 1; it is true or false'],
  [{ onProgress: true }, OPTION, 'onProgress is of type Boolean; pass a function'],
  [{ signal: true }, OPTION, 'signal is of type Boolean; pass an AbortSignal'],
  [{ signal: new AbortController() }, OPTION, 'pass an AbortSignal (an AbortController has it as its `signal`)'],
];

/** What must not be asked anything. */
function revoked() {
  const { proxy, revoke } = Proxy.revocable({}, {});
  revoke();
  return proxy;
}

/** An object whose member throws when it is read. */
function throwing(name) {
  return Object.defineProperty({}, name, { enumerable: true, get: () => { throw new RangeError('of the caller'); } });
}

const NO_READING = 'forward is given something that cannot be read';
const WEIRD = [Symbol('x'), Object.create(null), { toString: () => { throw new Error('no words'); } }, 3n, null, [], () => 1];

/** Options that cannot be read, or change. */
const OF_READING = [
  ...['q', 'shape', 'bias', 'mask', 'dropout', 'signal', 'cache', 'blockMask', 'layout', 'window', 'sink', 'seqlensKv', 'cuSeqlensQ', 'aux', 'onProgress',
    'boundedWork', 'causal', 'element', 'scoreMod', 'alibiSlopes', 'softmaxScale', 'output', 'gpuTime', 'pageTable', 'maxTurns']
    .map((name) => [{ [name]: revoked() }, OPTION, NO_READING]),
  [{ shape: throwing('seqlen') }, OPTION, `${NO_READING} (RangeError: of the caller)`],
  [{ dropout: throwing('p') }, OPTION, NO_READING],
  [{ bias: throwing('data') }, OPTION, NO_READING],
  ...WEIRD.map((maxTurns) => [{ maxTurns }, PROBLEM, 'maxTurns = ']),
  ...WEIRD.map((softcap) => [{ softcap }, PROBLEM, 'softcap = ']),
  ...WEIRD.map((output) => [{ output }, OPTION, "it is 'gpu' or 'array'"]),
  ...WEIRD.map((seqlen) => [{ shape: { ...shape, seqlen } }, PROBLEM, 'shape.seqlen = ']),
  [{ dropout: { p: 0.1, seed: 2n ** 64n } }, PROBLEM, 'dropout.seed = 18446744073709551616n; it must be a whole number of at most 64 bits'],
  [{ dropout: { p: 0.1, seed: -1n } }, PROBLEM, 'dropout.seed = -1n'],
  [{ blockMask: { pattern: 'bigbird', sede: 1 } }, OPTION, "blockMask has no 'sede'; did you mean seed?"],
  [{ blockMask: { pattern: 'local', window: 1, step: 2 } }, OPTION, "blockMask has no 'step'"],
  [{ blockMask: { pattern: 'bigbird', seed: 2n ** 64n } }, PROBLEM, 'blockMask.seed = 18446744073709551616n'],
  [{ blockMask: { pattern: 'bigbird' }, shape: { ...shape, seqlen: 2 ** 32 - 1 } }, UNSUPPORTED, 'bigbird draws 134217728 rows of blocks'],
  [{ seqlensKv: new BigInt64Array([100n]) }, PROBLEM, 'seqlensKv[0] = 100n'],
  [{ signal: { aborted: false, addEventListener() {} } }, OPTION, 'pass an AbortSignal'],
  [{ signal: new Proxy(new AbortController().signal, {}) }, OPTION, 'pass an AbortSignal'],
  [{ q: throwing('length') }, OPTION, NO_READING],
];

const modified = { batch: 2, numHeads: 2, seqlen: 40, seqlenKv: 4, headDim: 4 };
const data = new Float32Array(160);
const OF_MODIFIERS = [
  [{ softcap: -1 }, PROBLEM, 'softcap: -1 is given; it must be above 0 and finite'],
  [{ softcap: NaN }, PROBLEM, 'softcap: NaN'],
  [{ softcap: '5' }, PROBLEM, "softcap = '5'; it must be a number"],
  [{ alibi: 1 }, PROBLEM, 'alibi = 1; it is true or false'],
  [{ alibi: true, alibiSlopes: [1, 2] }, PROBLEM, 'alibi and alibiSlopes are both given'],
  [{ alibi: true, shape: { ...modified, numHeads: 2 ** 31 } }, PROBLEM, 'alibi = true and numHeads = 2147483648'],
  [{ alibiSlopes: [1, 2, 3] }, PROBLEM, 'alibiSlopes has 3 numbers; it must have numHeads = 2, or batch · numHeads = 4'],
  [{ alibiSlopes: [1, 1e40] }, PROBLEM, 'alibiSlopes[1] = 1e+40; it must be a finite f32'],
  [{ alibiSlopes: 0.5 }, PROBLEM, 'alibiSlopes = 0.5; it must be an array of numbers'],
  [{ bias: data }, PROBLEM, 'bias is of type Float32Array; pass { data, shape }'],
  [{ bias: { data, size: 1 } }, OPTION, "bias has no 'size'"],
  [{ bias: { data, shape: [1, 3, 40, 4] } }, PROBLEM, 'bias.shape[1] = 3; it must be numHeads = 2, or 1'],
  [{ bias: { data, shape: [40, 4] } }, PROBLEM, 'bias.shape = [40, 4]; it must be [batch or 1'],
  [{ bias: { data } }, TENSOR, 'bias.data has 160 elements, but its shape [2, 2, 40, 4] needs 640'],
  [{ bias: { shape: [1, 1, 40, 4] } }, TENSOR, 'bias.data is undefined'],
  [{ bias: { data: [...data], shape: [1, 1, 40, 4] } }, TENSOR, 'bias.data is of type Array'],
  [{ bias: { data: new Uint16Array(160), shape: [1, 1, 40, 4] } }, PROBLEM, 'bias: it is in F16; it must be in F32'],
  [{ bias: { data, element: 'f16', shape: [1, 1, 40, 4] } }, TENSOR, "element is 'f16', but bias.data is a Float32Array"],
  [{ mask: {} }, TENSOR, 'mask.data is undefined; pass a Uint8Array'],
  [{ mask: true }, PROBLEM, 'mask is of type Boolean; pass { data, shape }'],
  [{ mask: { data, shape: [1, 1, 40, 4] } }, TENSOR, 'mask.data is of type Float32Array'],
  [{ mask: { data: new Uint8Array(159), shape: [1, 1, 40, 4] } }, TENSOR, 'mask.data has 159 elements, but its shape [1, 1, 40, 4] needs 160'],
  [{ mask: { data: new Uint32Array(160), shape: [1, 1, 40, 4] } }, TENSOR, 'mask.data has 160 elements, but its shape [1, 1, 40, 1] needs 40'],
  [{ sink: new Float32Array(3) }, TENSOR, 'sink has 3 elements, but its shape needs 2'],
  [{ sink: true }, TENSOR, 'sink is of type Boolean'],
  [{ sink: new Uint16Array(2) }, TENSOR, 'sink is a Uint16Array'],
  [{ seqlensKv: [4] }, PROBLEM, 'seqlensKv has 1 numbers; it must have batch = 2'],
  [{ seqlensKv: [4, 5] }, PROBLEM, 'seqlensKv[1] = 5; it must be a whole number from 0 to 4'],
  [{ seqlensQ: [1.5, 4] }, PROBLEM, 'seqlensQ[0] = 1.5; it must be a whole number'],
  [{ seqlensQ: 4 }, PROBLEM, 'seqlensQ = 4; it must be an array of numbers'],
  [{ seqlensKv: true }, PROBLEM, 'seqlensKv = true is for prepare; pass the numbers'],
  [{ seqlensKv: { total: 4 } }, PROBLEM, 'seqlensKv = something of type Object; it must be an array of numbers'],
  // Packed sequences and caches.
  [{ cuSeqlensKv: [0, 4, 8] }, PROBLEM, 'cuSeqlensKv is given without cuSeqlensQ'],
  [{ cuSeqlensQ: [0, 40] }, PROBLEM, 'cuSeqlensQ has 2 numbers; it must have batch + 1 = 3'],
  [{ cuSeqlensQ: [1, 40, 80] }, PROBLEM, 'cuSeqlensQ[0] = 1; it must be 0'],
  [{ cuSeqlensQ: [0, 30, 20] }, PROBLEM, 'cuSeqlensQ[2] = 20, less than 30 before it; sums never fall'],
  [{ cuSeqlensQ: [0, 41, 80] }, PROBLEM, 'cuSeqlensQ gives sequence 0 41 rows; shape.seqlen = 40'],
  [{ cuSeqlensQ: [0, 40, 70] }, TENSOR, 'q has 640 elements, but its shape needs 560'],
  [{ cuSeqlensQ: [0, 40, 80], seqlensQ: [40, 41] }, PROBLEM, 'seqlensQ[1] = 41'],
  [{ cuSeqlensQ: [0, 30, 80], seqlensQ: [31, 40] }, PROBLEM, 'cuSeqlensQ gives sequence 1 50 rows'],
  [{ cuSeqlensQ: [0, 40, 70], seqlensQ: [1, 31] }, PROBLEM, 'seqlensQ: that of sequence 1 is 31; it has room for 30'],
  [{ cuSeqlensQ: { total: 80 } }, PROBLEM, 'cuSeqlensQ = something of type Object is for prepare; pass the numbers'],
  [{ cuSeqlensQ: { total: 1.5 } }, PROBLEM, 'cuSeqlensQ.total = 1.5'],
  [{ cuSeqlensQ: true }, PROBLEM, 'cuSeqlensQ = true; it must be an array of numbers'],
  [{ cuSeqlensQ: [0, 40, 80], layout: 'bhsd' }, PROBLEM, "layout = 'bhsd', but packed sequences are [total, numHeads, headDim]"],
  [{ cache: 'f16' }, OPTION, 'cache is of type String; pass an object such as { element: … }'],
  [{ cache: { size: 16 } }, OPTION, "cache has no 'size'"],
  [{ cache: { element: 'int4' } }, OPTION, "cache.element = 'int4'; it is 'f32', 'f16', 'bf16' or 'int8'"],
  [{ cache: { element: 'f16' } }, TENSOR, "element is 'f16', but k is a Float32Array; convert it with toF16"],
  [{ cache: { element: 'int8' } }, TENSOR, "element is 'u32', but k is a Float32Array"],
  [{ cache: { pageSize: 2 } }, PROBLEM, 'cache has pageSize and no numPages; pages need both'],
  [{ cache: { numPages: 4 } }, PROBLEM, 'cache has numPages and no pageSize'],
  [{ cache: { maxPages: 4 } }, PROBLEM, 'cache has maxPages and no pageSize'],
  [{ cache: { pageSize: 0, numPages: 4 } }, PROBLEM, 'pageSize = 0; a page has at least one position'],
  [{ cache: { pageSize: 2, numPages: 4, maxPages: 1 } }, PROBLEM, 'maxPages = 1 pages of 2 hold 2 positions, seqlenKv is 4; 2 are needed'],
  [{ cache: { pageSize: 2, numPages: 4 } }, TENSOR, 'pageTable is undefined; pass a Uint32Array'],
  [{ cache: { pageSize: 2, numPages: 4 }, pageTable: [0, 1, 2, 3] }, TENSOR, 'pageTable is of type Array; pass a Uint32Array'],
  [{ cache: { pageSize: 2, numPages: 4 }, pageTable: new Uint32Array(3) }, TENSOR, 'pageTable has 3 elements, but its shape needs 4'],
  [{ cache: { pageSize: 2, numPages: 4 }, pageTable: Uint32Array.of(0, 1, 2, 4) }, PROBLEM, 'pageTable: entry 1 of sequence 1 is page 4; there are 4 pages'],
  [{ cache: {}, pageTable: new Uint32Array(4) }, PROBLEM, 'pageTable is given, but cache has no pageSize and numPages'],
  [{ pageTable: new Uint32Array(4) }, PROBLEM, 'pageTable is given, but cache has no pageSize and numPages'],
  [{ cache: {}, layout: 'packed-qkv' }, PROBLEM, "layout = 'packed-qkv', but K and V are a cache"],
  [{ cache: {}, seqlensKv: [4, 5] }, PROBLEM, 'seqlensKv[1] = 5; it must be a whole number from 0 to 4'],
  [{ cache: {}, algorithm: 'standard' }, PROBLEM, "standard attention reads none; use algorithm: 'flash'"],
  [{ cache: {}, cuSeqlensQ: [0, 40, 80], cuSeqlensKv: [0, 4, 8] }, PROBLEM, 'cuSeqlensKv is given, but K and V are a cache, which is not packed'],
  [{ blockMask: { pattern: 'ring' } }, PROBLEM, "blockMask.pattern = 'ring'; it is local, longformer"],
  [{ blockMask: 5 }, PROBLEM, 'blockMask is of type Number'],
  [{ maskMod: 5 }, PROBLEM, 'maskMod is of type Number; pass a text in WGSL'],
  [{ scoreModGrad: 'fn' }, PROBLEM, 'scoreModGrad is given without scoreMod'],
  [{ aux: [1, 2] }, PROBLEM, 'aux is of type Array'],
];

/** Tensors of an append that is right. */
async function appendTensors(flash) {
  const [kCache, vCache] = [await flash.upload(new Float32Array(64)), await flash.upload(new Float32Array(64))];
  return { shape: { batch: 2, seqlen: 3, seqlenKv: 8, headDim: 4 }, cache: {}, k: new Float32Array(24), v: new Float32Array(24), kCache, vCache, cacheSeqlens: [0, 5] };
}

/** Wrong uses of an append, as changes of one that is right. */
function ofAppend(flash, right) {
  const tables = { rotaryCos: new Float32Array(16), rotarySin: new Float32Array(16) };
  const paged = { cache: { pageSize: 4, numPages: 4 } };
  return [
    [{ sequence: 1 }, OPTION, "append has no 'sequence'"],
    [{ boundedWork: 1 }, OPTION, "append has no 'boundedWork'"],
    [{ cache: undefined }, PROBLEM, 'cache is missing: pass {}'],
    [{ kCache: new Float32Array(64) }, TENSOR, 'kCache is of type Float32Array; pass a GpuTensor: it is written'],
    [{ vCache: right.kCache }, TENSOR, 'share'],
    [{ k: right.k.slice(1) }, TENSOR, 'k has 23 elements, but its shape needs 24'],
    [{ v: new Uint16Array(24) }, TENSOR, 'v is a Uint16Array'],
    [{ cache: { element: 'f16' } }, TENSOR, 'kCache holds f32, but f16 is expected'],
    [{ cacheSeqlens: undefined }, PROBLEM, 'cacheSeqlens = undefined; it must be an array of numbers'],
    [{ cacheSeqlens: [0] }, PROBLEM, 'cacheSeqlens has 1 numbers; it must have batch = 2'],
    [{ cacheSeqlens: [0, 6] }, PROBLEM, 'cacheSeqlens: sequence 1 has 6 positions and 3 new; the cache has room for 8'],
    [{ cacheSeqlens: right.kCache }, TENSOR, 'cacheSeqlens holds f32, but u32 is expected'],
    [paged, TENSOR, 'pageTable is undefined'],
    [{ ...paged, pageTable: Uint32Array.of(0, 1, 2, 9) }, PROBLEM, 'pageTable: entry 1 of sequence 1 is page 9; there are 4 pages'],
    [{ slotMapping: Uint32Array.of(0, 1, 2, 3, 4, 16) }, PROBLEM, 'slotMapping has slot 16; the cache has 16 slots, and 4294967295 stores nothing'],
    [{ slotMapping: [0, 1, 2, 3, 4, 5] }, TENSOR, 'slotMapping is of type Array'],
    [{ slotMapping: true }, PROBLEM, 'slotMapping = true is for prepareAppend'],
    [{ slotMapping: new Uint32Array(5) }, TENSOR, 'slotMapping has 5 elements, but its shape needs 6'],
    [{ cuSeqlensNew: [0, 4, 6] }, PROBLEM, 'cuSeqlensNew gives sequence 0 4 rows; shape.seqlen = 3'],
    [{ cuSeqlensNew: { total: 6 } }, PROBLEM, 'cuSeqlensNew = something of type Object; it must be an array of numbers'],
    [{ rotary: {} }, PROBLEM, "rotary.pairs is missing; it is 'halves' or 'interleaved'"],
    [{ rotary: { pairs: 'both' } }, OPTION, "rotary.pairs = 'both'; it is 'halves' or 'interleaved'"],
    [{ rotary: { pairs: 'halves' } }, PROBLEM, 'rotary.positions is missing'],
    [{ rotary: { pairs: 'halves', dim: 3 }, ...tables }, PROBLEM, 'rotary.dim = 3; it must be even, at least 2 and at most headDim = 4'],
    [{ rotary: { pairs: 'halves', perToken: true, positions: 8 } }, PROBLEM, 'rotary has perToken and positions; leave one out'],
    [{ rotary: { pairs: 'halves', perToken: true }, ...tables }, TENSOR, 'rotaryCos has 16 elements, but its shape needs 12'],
    [{ rotary: { pairs: 'halves' }, rotaryCos: tables.rotaryCos }, TENSOR, 'rotarySin is undefined'],
    [{ rotateQ: 'apart' }, TENSOR, 'q is undefined'],
    [{ rotateQ: 'apart', q: right.k }, PROBLEM, 'Q is to be rotated, and there are no rotary embeddings'],
    [{ rotateQ: 'in-place', q: right.k, rotary: { pairs: 'halves' }, ...tables }, TENSOR, 'q is of type Float32Array; to be turned in place it must be a GpuTensor'],
    [{ rotateQ: true }, OPTION, "rotateQ = true; it is 'in-place' or 'apart'"],
    [{ newCacheSeqlens: 1 }, OPTION, 'newCacheSeqlens = 1; it is true or false'],
  ].map(([change, type, text]) => [`append, ${nameOf(change)}`, () => flash.append({ ...right, ...change }), type, text]);
}

let refusals = 0;

/** Waits for the error of a wrong use, two seconds at most. */
async function refused(name, call, type, text) {
  refusals++;
  const began = performance.now();
  let timer;
  const late = new Promise((resolve) => timer = setTimeout(resolve, SECONDS * 1000, 'nothing came'));
  const thrown = await Promise.race([(async () => call())().then(() => 'it worked', (error) => error), late]);
  clearTimeout(timer);
  const what = `${name} gives ${thrown?.name ?? ''} ${thrown?.code ?? ''} ${thrown?.message ?? thrown}`;
  assert(thrown instanceof type && thrown instanceof AttentionError && thrown.name === type.name, `${what}, expected ${type.name}`);
  assertEqual(thrown.code, CODES.get(type), what);
  assert(thrown.message.includes(text), `${what}, expected ${text}`);
  assertWords(thrown);
  assert(performance.now() - began < SECONDS * 1000, `${what} after ${performance.now() - began} ms`);
}

function nameOf(change) {
  return Object.entries(change).map(([key, value]) => `${key}: ${typeof value === 'object' && value ? Object.keys(value).slice(0, 4) : String(value)}`).join(', ');
}

export async function misuse() {
  const flash = await attention();
  const good = { shape, ...inputs({ shape }) };
  for (const [change, type, text] of CHANGES) await refused(nameOf(change), () => flash.forward({ ...good, ...change }), type, text);
  for (const [change, type, text] of OF_READING) await refused(Object.keys(change).join(), () => flash.forward({ ...good, ...change }), type, text);
  await refused('a getter', () => flash.forward(Object.assign(throwing('q'), { shape, k: good.k, v: good.v })), OPTION, NO_READING);
  await refused('what is inherited', () => flash.forward(Object.assign(Object.create({ casual: true }), good)), OPTION, "forward has no 'casual'");
  await refused('options that are revoked', () => flash.forward(revoked()), OPTION, NO_READING);
  const withModifiers = { shape: modified, ...inputs({ shape: modified }) };
  for (const [change, type, text] of OF_MODIFIERS) await refused(nameOf(change), () => flash.forward({ ...withModifiers, ...change }), type, text);

  const words = await flash.upload(data);
  const own = flash.device.createBuffer({ size: 64, usage: GPUBufferUsage.STORAGE });
  const uniform = flash.device.createBuffer({ size: 64, usage: GPUBufferUsage.UNIFORM });
  const dead = flash.device.createBuffer({ size: good.q.byteLength, usage: GPUBufferUsage.STORAGE });
  const wrapped = flash.wrap(dead);
  dead.destroy();
  const destroyed = await flash.upload(good.q);
  destroyed.destroy();
  const { o, lse } = await flash.forward(good);
  const backward = { ...good, o, lse, dO: good.q };
  const foreign = await (await navigator.gpu.requestAdapter()).requestDevice();
  const buffers = ['its own', 'mapped', 'foreign'].map((kind) => (kind === 'foreign' ? foreign : flash.device).createBuffer({
    size: good.q.byteLength, usage: GPUBufferUsage.STORAGE | GPUBufferUsage.COPY_SRC, mappedAtCreation: kind === 'mapped',
  }));
  const [ready, mapped, ofAnother] = buffers.map((buffer) => flash.wrap(buffer));
  const small = { shape: { seqlen: 4, headDim: 4 } };
  const prepared = await flash.prepare(small);
  const onGpu = Object.fromEntries(await Promise.all(Object.entries({ q: 16, k: 16, v: 16, o: 16, lse: 4 }).map(async ([name, length]) => [name, await flash.upload(new Float32Array(length))])));
  const encoder = flash.device.createCommandEncoder();
  const { FlashAttention: Other } = await import('../pkg/single.js');
  const otherCopy = await Other.create({ device: flash.device });
  const ofOtherCopy = otherCopy.wrap(ready.buffer);
  const gone = (buffer) => structuredClone(buffer, { transfer: [buffer] });
  // Its kernels are there, so it waits for a microtask alone; one that compiles would be refused when it has compiled.
  const moved = () => {
    const arrays = inputs({ shape });
    const calling = flash.forward({ shape, ...arrays });
    gone(arrays.q.buffer);
    return calling;
  };
  const detached = inputs({ shape }).q;
  gone(detached.buffer);
  const others = [
    ['a mapped buffer', () => flash.forward({ ...good, k: mapped }), TENSOR, 'a buffer is mapped; unmap it first'],
    ['reading a mapped buffer', () => mapped.read(), TENSOR, 'a buffer is mapped'],
    ["another device's buffer", () => flash.forward({ ...good, k: ofAnother }), TENSOR, 'a buffer is of another device'],
    ["reading another device's buffer", () => ofAnother.read(), TENSOR, 'a buffer is of another device'],
    ['a tensor of another copy', () => flash.forward({ ...good, q: ofOtherCopy }), TENSOR, 'of type GpuTensor, but of another copy of this package'],
    ['running with one', () => prepared.run({ ...onGpu, q: ofOtherCopy }), TENSOR, 'of another copy'],
    ['a detached array', () => flash.forward({ ...good, q: detached }), TENSOR, 'q has 0 elements'],
    ['an array that is moved while the call waits', moved, TENSOR, 'q has 0 elements now, but its shape needs 12800; leave arrays as they are'],
    ['no third argument', () => prepared.encode(encoder, onGpu, null), OPTION, 'the third argument of encode is null'],
    ['a misspelt third argument', () => prepared.encode(encoder, onGpu, { droput: {} }), OPTION, "has no 'droput'; did you mean dropout?"],
    ['dropout that was not prepared', () => prepared.run({ ...onGpu, dropout: { seed: 1 } }), PROBLEM, 'what was prepared has none'],
    ['no encoder', () => prepared.encode({ beginComputePass: () => undefined }, onGpu), OPTION, 'encoder is of type Object; pass a GPUCommandEncoder'],
    ['a proxy of an encoder', () => prepared.encode(new Proxy(encoder, {}), onGpu), OPTION, 'pass a GPUCommandEncoder'],
    ['an output that is an input', () => prepared.encode(encoder, { ...onGpu, o: onGpu.q }), TENSOR, 'multiples of minStorageBufferOffsetAlignment and do not overlap'],
    ['heads in words', () => flash.probabilities({ ...good, lse, heads: 'ab' }), PROBLEM, "heads = 'ab'; it is a pair [first, end]"],
    ['an attention that is not made', () => new FlashAttention(), OPTION, 'made by await FlashAttention.create()'],
    ['a tensor that is not made', () => new GpuTensor(), OPTION, 'made by await attention.upload(array)'],
    ['f16 of nothing', () => toF16(undefined), TENSOR, 'toF16 is given something undefined; it takes an array of numbers'],
    ['f16 of big numbers', () => toF16(new BigInt64Array(2)), TENSOR, 'it takes an array of numbers'],
    ['f16 of words', () => toBf16(['1']), TENSOR, 'it takes an array of numbers'],
    ['numbers of f32', () => fromF16(new Float32Array(2)), TENSOR, 'fromF16 is given something of type Float32Array; it takes a Uint16Array'],
    ['numbers of an array', () => fromBf16([1]), TENSOR, 'it takes a Uint16Array'],
    ['a mask of words', () => packMask('0101', 2), TENSOR, 'packMask is given something of type String'],
    ['a mask of less than nothing', () => packMask([], -1), TENSOR, 'has no rows of -1 keys'],
    ['new tokens without sums', () => flash.append({ shape, cache: {}, cuSeqlensNew: null }), PROBLEM, 'cuSeqlensNew = null'],
    ['mask on the GPU', () => flash.forward({ ...withModifiers, mask: { data: words, shape: [1, 1, 40, 4] } }), TENSOR, 'mask.data is a GpuTensor of f32'],
    ['a destroyed tensor', () => flash.forward({ ...good, q: destroyed }), TENSOR, 'q was destroyed'],
    ['reading it', () => destroyed.read(), TENSOR, 'this tensor was destroyed'],
    ['a destroyed buffer', () => flash.forward({ ...good, k: wrapped }), TENSOR, 'a buffer was destroyed before it was used'],
    ['no options', () => flash.forward(), OPTION, 'forward is undefined; pass an object'],
    ['null', () => flash.forward(null), OPTION, 'forward is null'],
    ['an array', () => flash.forward(good.q), OPTION, 'forward is of type Float32Array'],
    ['backward without O', () => flash.backward(good), TENSOR, 'o is undefined'],
    ['a gradient of another type', () => flash.backward({ ...backward, dO: new Uint16Array(12800) }), TENSOR, 'dO is a Uint16Array'],
    ['a gradient that is too short', () => flash.backward({ ...backward, dO: good.q.slice(1) }), TENSOR, 'dO has 12799 elements'],
    ['a gradient of LSE that is too short', () => flash.backward({ ...backward, dLse: lse.slice(1) }), TENSOR, 'dLse has 199 elements'],
    ['gradients in bytes', () => flash.backward({ ...backward, gradientElement: 'u8' }), PROBLEM, "gradientElement = 'u8'"],
    ['dBias without bias', () => flash.backward({ ...backward, dBias: true }), PROBLEM, 'dBias is true, and there is no bias'],
    ['dBias: 1', () => flash.backward({ ...backward, dBias: 1 }), PROBLEM, 'dBias = 1; it is true or false'],
    ['too many heads', () => flash.probabilities({ ...good, lse, heads: [1, 3] }), PROBLEM, 'heads[1] = 3; it must be a whole number from 0 to 2'],
    ['no rows', () => flash.probabilities({ ...good, lse, rows: [3, 3] }), PROBLEM, 'rows 3..3 are chosen'],
    ['one row', () => flash.probabilities({ ...good, lse, rows: 3 }), PROBLEM, 'rows = 3; it is a pair [first, end]'],
    ['no LSE', () => flash.probabilities(good), TENSOR, 'lse is undefined'],
    ['gradients over a cache', () => flash.backward({ ...backward, cache: {} }), PROBLEM, 'only the forward pass reads one'],
    ['lengths in numbers, prepared over a cache', () => flash.prepare({ shape, cache: {}, seqlensKv: [5] }), PROBLEM, 'over a cache lengths come with each call; prepare it with true'],
    ['sums in numbers beside others', () => flash.prepare({ shape, cuSeqlensQ: [0, 4], seqlensKv: true }), PROBLEM, 'other lengths come with each call; prepare it with { total }'],
    ...ofAppend(flash, await appendTensors(flash)),
    ['a plan of nothing', () => flash.plan(), OPTION, 'plan is undefined'],
    ['a plan of tensors', () => flash.plan(good), OPTION, "plan has no 'q'"],
    ['preparing nothing', () => flash.prepare({}), PROBLEM, 'shape is missing'],
    ['uploading an array of numbers', () => flash.upload([1, 2, 3]), TENSOR, 'upload is given something of type Array'],
    ['uploading f16 as bytes', () => flash.upload(new Uint16Array(4), { element: 'u8' }), TENSOR, "element is 'u8', but the array is a Uint16Array"],
    ['uploading as bf16, misspelt', () => flash.upload(new Uint16Array(4), { elemnt: 'bf16' }), OPTION, "upload has no 'elemnt'; did you mean element?"],
    ['wrapping nothing', () => flash.wrap(undefined), TENSOR, 'wrap is given something undefined; it takes a GPUBuffer'],
    ['wrapping an array', () => flash.wrap(good.q), TENSOR, 'it takes a GPUBuffer'],
    ['wrapping a uniform', () => flash.wrap(uniform), TENSOR, 'the buffer was created without GPUBufferUsage.STORAGE'],
    ['wrapping too much', () => flash.wrap(own, { length: 17 }), TENSOR, '17 elements of f32 do not fit a buffer of 64 bytes'],
    ['wrapping with an offset', () => flash.wrap(own, { offset: 32, length: 9 }), TENSOR, '9 elements of f32 from byte 32 do not fit a buffer of 64 bytes'],
    ['wrapping between words', () => flash.wrap(own, { element: 'f16', offset: 2 }), TENSOR, 'offset = 2; it must be a multiple of 4 bytes'],
    ['wrapping before the start', () => flash.wrap(own, { offset: -4 }), OPTION, 'offset = -4; it must be a whole number'],
    ['wrapping half an element', () => flash.wrap(own, { length: 1.5 }), OPTION, 'length = 1.5; it must be a whole number'],
    ['wrapping bytes', () => flash.wrap(own, { element: 'u8' }), OPTION, "element = 'u8'; it is 'f32', 'f16', 'bf16' or 'u32'"],
    ['reading what cannot be copied', () => flash.wrap(own).read(), TENSOR, 'created without GPUBufferUsage.COPY_SRC'],
    ['a mask of half a row', () => packMask([1, 0, 1], 2), TENSOR, 'a mask of 3 entries has no rows of 2 keys'],
  ];
  for (const [name, call, type, text] of others) await refused(name, call, type, text);
  for (const buffer of [own, uniform, ...buffers]) buffer.destroy();
  for (const each of [prepared, otherCopy, ...Object.values(onGpu)]) each.destroy();
  foreign.destroy();
  words.destroy();
  assert(refusals >= 250, `only ${refusals} wrong uses`);
  // All of them leave it in order.
  await flash.forward(good);
}

/** Wrong uses of `create`, and of what outlives its device. None leaves a device behind, and none stands in a later one's way. */
export async function misuseOfCreate() {
  await devicesOf(async (made, requestDevice) => {
    const adapter = await navigator.gpu.requestAdapter();
    const lost = await requestDevice.call(adapter);
    lost.destroy();
    await lost.lost;
    const alive = requestDevice.call(await navigator.gpu.requestAdapter());
    const never = new Promise(() => undefined);
    const all = [
      ['null', null, OPTION, 'create is null'],
      ['a device itself', await alive, OPTION, 'create is given a GPUDevice; pass it as { device }'],
      ['an unknown option', { powerPrefrence: 'low-power' }, OPTION, "create has no 'powerPrefrence'; did you mean powerPreference?"],
      ['an unknown preference', { powerPreference: 'fast' }, OPTION, "powerPreference = 'fast'; it is 'high-performance' or 'low-power'"],
      ['subgroups: 1', { subgroups: 1 }, OPTION, 'subgroups = 1; it is true or false'],
      ['an object for a device', { device: {} }, OPTION, 'device is of type Object; pass a GPUDevice'],
      ['a promise of a device', { device: alive }, OPTION, 'device is of type Promise; pass a GPUDevice; await it first'],
      ['a promise that never settles', { device: never }, OPTION, 'await it first'],
      ['an adapter for a device', { device: adapter }, OPTION, 'device is of type GPUAdapter'],
      ['null for a device', { device: null }, OPTION, 'device is null'],
      ['a lost device', { device: lost }, DeviceLostError, 'the device that was given is lost'],
      ['an object for a GPU', { gpu: {} }, OPTION, 'gpu is of type Object; pass what navigator.gpu is'],
      ['a device and a GPU', { device: await alive, gpu: navigator.gpu }, OPTION, 'device and gpu are both given'],
      ['a proxy of a device', { device: new Proxy(await alive, {}) }, OPTION, 'pass a GPUDevice'],
      ['a revoked device', { device: revoked() }, OPTION, 'create is given something that cannot be read'],
      ['a GPU that gives no device', { gpu: { requestAdapter: async () => ({ features: new Set(), limits: {}, requestDevice: async () => ({}) }) } }, OPTION, 'gpu gave something of type Object for a device'],
      ['an option that throws', throwing('gpu'), OPTION, 'cannot be read (RangeError: of the caller)'],
      ['a number for the module', { wasm: 5 }, OPTION, 'wasm is of type Number; pass an address'],
      ['a promise of the module', { wasm: fetch('/web/pkg/wasm_bg.wasm') }, OPTION, 'wasm is of type Promise'],
      ['a controller for a signal', { signal: new AbortController() }, OPTION, 'pass an AbortSignal'],
    ];
    for (const [name, options, type, text] of all) await refused(name, () => FlashAttention.create(options), type, text);
    (await alive).destroy();
    assertEqual(made.length, 0, 'devices that wrong uses made');
    const flash = await FlashAttention.create();
    flash.destroy();
    const gone = { shape, ...inputs({ shape }) };
    for (const [name, call] of [
      ['forward', () => flash.forward(gone)], ['backward', () => flash.backward({ ...gone, o: gone.q, lse: new Float32Array(200), dO: gone.q })],
      ['plan', () => flash.plan({ shape })], ['prepare', () => flash.prepare({ shape })], ['upload', () => flash.upload(gone.q)],
      ['info', () => flash.info()], ['wrap', () => flash.wrap({})],
    ]) await refused(`${name} after destroy()`, call, DeviceLostError, 'destroy() was called');
    await Promise.all(made.map((device) => device.lost));
  });
}
