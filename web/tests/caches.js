// Packed sequences, KV caches and appends, against f64: sequence by sequence, on what the cache on the GPU holds.
import { fromBf16, fromF16 } from '../pkg/index.js';
import { backward as referenceBackward, forward as reference } from './modifiers.js';
import { assert, assertEqual, assertNear, assertSameBits, attention, random } from './support.js';

/** Rows `first` to before `end` of `[rows, heads, dim]`. */
function rowsOf(tensor, width, first, end) {
  return tensor.slice(first * width, end * width);
}

/** Sequences of other lengths, one behind the other: answers and gradients are those of each alone. */
export async function packedSequences() {
  const flash = await attention();
  const [numHeads, numHeadsKv, headDim] = [4, 2, 32];
  const lengths = [[40, 40], [0, 0], [1, 3], [33, 64]];
  const sums = (side) => lengths.reduce((sums, pair) => [...sums, sums.at(-1) + pair[side]], [0]);
  const [cuSeqlensQ, cuSeqlensKv] = [sums(0), sums(1)];
  const [total, totalKv] = [cuSeqlensQ.at(-1), cuSeqlensKv.at(-1)];
  const problem = { shape: { batch: 4, numHeads, numHeadsKv, seqlen: 40, seqlenKv: 64, headDim }, causal: true, alibi: true, cuSeqlensQ, cuSeqlensKv };
  const [q, dO] = [1, 4].map((seed) => random(total * numHeads * headDim, seed));
  const [k, v] = [2, 3].map((seed) => random(totalKv * numHeadsKv * headDim, seed));
  const { o, lse } = await flash.forward({ ...problem, q, k, v });
  assertEqual([o.length, lse.length], [total * numHeads * headDim, numHeads * total], 'lengths');
  const { dq, dk, dv } = await flash.backward({ ...problem, q, k, v, o, lse, dO });
  for (const [index, [rows, keys]] of lengths.entries()) {
    if (rows === 0) continue;
    const one = { shape: { numHeads, numHeadsKv, seqlen: rows, seqlenKv: keys, headDim }, causal: true, alibi: true };
    const ofQ = (tensor) => rowsOf(tensor, numHeads * headDim, cuSeqlensQ[index], cuSeqlensQ[index + 1]);
    const ofKv = (tensor) => rowsOf(tensor, numHeadsKv * headDim, cuSeqlensKv[index], cuSeqlensKv[index + 1]);
    const alone = [ofQ(q), ofKv(k), ofKv(v)];
    const expected = reference(one, ...alone);
    assertNear(ofQ(o), expected.o, `O of sequence ${index}`);
    const found = Array.from({ length: numHeads }, (_, head) => [...lse.subarray(head * total + cuSeqlensQ[index], head * total + cuSeqlensQ[index + 1])]).flat();
    assertNear(found, expected.lse, `LSE of sequence ${index}`);
    const gradients = referenceBackward(one, ...alone, ofQ(o), ofQ(dO), new Float32Array(numHeads * rows));
    for (const [name, tensor] of Object.entries({ dq: ofQ(dq), dk: ofKv(dk), dv: ofKv(dv) })) assertNear(tensor, gradients[name], `${name} of sequence ${index}`);
  }
  // The same sums in buffers, which each call reads: one operation for all lengths.
  const tensors = {};
  for (const [name, array] of Object.entries({ q, k, v, cuSeqlensQ: Uint32Array.from(cuSeqlensQ), cuSeqlensKv: Uint32Array.from(cuSeqlensKv) })) {
    tensors[name] = await flash.upload(array);
  }
  const atCall = await flash.forward({ ...problem, ...tensors });
  const prepared = await flash.prepare({ ...problem, cuSeqlensQ: { total }, cuSeqlensKv: { total: totalKv } });
  const run = await prepared.run(tensors);
  for (const answer of [atCall, run]) {
    assertNear(await answer.o.read(), o, 'O, sums at the call');
    assertNear(await answer.lse.read(), lse, 'LSE, sums at the call');
  }
  const back = await flash.backward({ ...problem, ...tensors, o, lse, dO, output: 'array' });
  for (const [name, tensor] of Object.entries({ dq, dk, dv })) assertNear(back[name], tensor, `${name}, sums at the call`);
  prepared.destroy();
  for (const tensor of [...Object.values(tensors), atCall.o, atCall.lse, run.o, run.lse]) tensor.destroy();
}

const SHAPE = { batch: 3, numHeads: 4, numHeadsKv: 2, headDim: 8, headDimV: 4 };
const CAPACITY = 24;

/** How a cache holds rows of `dim` numbers: entries of a row, and the numbers of a row that was read back. */
const CACHES = {
  f32: { size: (dim) => dim, make: (length) => new Float32Array(length), row: (words) => Float32Array.from(words), error: 2e-7, nan: NaN },
  f16: { size: (dim) => dim, make: (length) => new Uint16Array(length), row: fromF16, error: 2 ** -11, nan: 0x7fff },
  bf16: { size: (dim) => dim, make: (length) => new Uint16Array(length), row: fromBf16, error: 2 ** -8, nan: 0x7fff },
  int8: {
    size: (dim) => 1 + Math.ceil(dim / 4), make: (length) => new Uint32Array(length),
    row: (words, dim) => {
      const [scale] = new Float32Array(words.slice(0, 1).buffer);
      return Float32Array.from(new Int8Array(words.slice(1).buffer, 0, dim), (byte) => scale * byte);
    },
    // Half a step of a row's largest magnitude / 127.
    error: 0.5 / 127 + 1e-6,
    // Of the scale.
    nan: 0x7fc0_0000,
  },
};

/** Cosines and sines of positions. */
function rotaryTables(positions, dim) {
  const angle = (index) => Math.floor(index / (dim / 2)) * 0.7 ** (index % (dim / 2));
  return [Math.cos, Math.sin].map((of) => Float32Array.from({ length: positions * dim / 2 }, (_, index) => of(angle(index))));
}

/** A row turned by the tables' row for a position, in f64. */
function turned(row, { pairs, dim }, [cos, sin], position) {
  const out = Float64Array.from(row);
  for (let m = 0; m < dim / 2; m++) {
    const [x, y] = pairs === 'halves' ? [m, m + dim / 2] : [2 * m, 2 * m + 1];
    const [c, s] = [cos, sin].map((table) => table[position * dim / 2 + m]);
    [out[x], out[y]] = [row[x] * c - row[y] * s, row[x] * s + row[y] * c];
  }
  return out;
}

/** Where position p of sequence b is: rows counted through all pages. */
function placeOf({ pageSize }, pageTable, b, p) {
  return pageSize ? pageTable[b * Math.ceil(CAPACITY / pageSize) + Math.floor(p / pageSize)] * pageSize + p % pageSize : b * CAPACITY + p;
}

/** Appends tokens, some at once and one by one, and attends after each; all that is there is compared. */
export async function cachesAndAppends() {
  // Each type side by side or in pages; shaders take long to compile.
  await generation({ element: 'f32', pageSize: 5, numPages: 18 }, { pairs: 'halves', dim: 6 });
  await generation({ element: 'f16' }, { pairs: 'interleaved' });
  await generation({ element: 'bf16' }, { pairs: 'halves' });
  await generation({ element: 'int8', pageSize: 5, numPages: 18 }, { pairs: 'interleaved', dim: 4 });
  await everyWayToAppend();
  await withoutReadingBack();
}

async function generation(cache, rotary) {
  const flash = await attention();
  const { size, make, row, error, nan } = CACHES[cache.element];
  const { batch, numHeads, numHeadsKv, headDim, headDimV } = SHAPE;
  const name = `${cache.element}${cache.pageSize ? ' in pages' : ''}`;
  const rows = cache.pageSize ? cache.pageSize * cache.numPages : batch * CAPACITY;
  // Unused pages hold what is no number.
  const filled = (dim) => make(rows * numHeadsKv * size(dim)).fill(nan);
  const upload = (array) => flash.upload(array, cache.element === 'bf16' && array instanceof Uint16Array ? { element: 'bf16' } : {});
  const [kCache, vCache] = [await upload(filled(headDim)), await upload(filled(headDimV))];
  const pageTable = cache.pageSize ? Uint32Array.of(16, 9, 4, 11, 2, 7, 0, 13, 5, 10, 17, 3, 8, 1, 14) : undefined;
  const turn = { dim: headDim, ...rotary };
  const tables = rotaryTables(CAPACITY, turn.dim);
  const [rotaryCos, rotarySin] = tables;
  const expected = { k: [], v: [] };
  const lengths = new Array(batch).fill(0);
  let seed = 1;
  for (const tokens of [3, 3]) {
    const shape = { ...SHAPE, seqlen: tokens, seqlenKv: CAPACITY };
    const [q, k, v] = [numHeads * headDim, numHeadsKv * headDim, numHeadsKv * headDimV].map((width) => random(batch * tokens * width, seed++));
    const given = { shape, cache, kCache, vCache, k, v, q, rotary, rotaryCos, rotarySin, ...pageTable ? { pageTable } : {} };
    const before = [...lengths];
    const { qRotated, newCacheSeqlens } = await flash.append({ ...given, cacheSeqlens: before, rotateQ: 'apart', newCacheSeqlens: true });
    assertEqual([...await newCacheSeqlens.read()], before.map((length) => length + tokens), `${name}: lengths`);
    const turnedQ = new Float64Array(q.length);
    for (let b = 0; b < batch; b++) {
      for (let i = 0; i < tokens; i++) {
        const position = before[b] + i;
        for (let h = 0; h < numHeads; h++) {
          const at = ((b * tokens + i) * numHeads + h) * headDim;
          turnedQ.set(turned(q.subarray(at, at + headDim), turn, tables, position), at);
        }
        for (let h = 0; h < numHeadsKv; h++) {
          const at = (b * tokens + i) * numHeadsKv + h;
          const place = placeOf(cache, pageTable, b, position) * numHeadsKv + h;
          expected.k[place] = turned(k.subarray(at * headDim, (at + 1) * headDim), turn, tables, position);
          expected.v[place] = Float64Array.from(v.subarray(at * headDimV, (at + 1) * headDimV));
        }
      }
      lengths[b] = before[b] + tokens;
    }
    assertNear(await qRotated.read(), turnedQ, `${name}: turned Q`);
    // What the cache holds.
    const stored = {};
    for (const [tensor, dim, of] of [[kCache, headDim, 'k'], [vCache, headDimV, 'v']]) {
      const read = await tensor.read();
      stored[of] = Array.from({ length: rows * numHeadsKv }, (_, place) => row(read.slice(place * size(dim), (place + 1) * size(dim)), dim));
      expected[of].forEach((right, place) => {
        const largest = right.reduce((largest, value) => Math.max(largest, Math.abs(value)), 0);
        right.forEach((value, d) => {
          const scale = cache.element === 'int8' ? largest : Math.abs(value);
          const off = Math.abs(stored[of][place][d] - value);
          assert(off <= error * scale + 1e-6, `${name}: ${of} at ${place}, ${d} is ${stored[of][place][d]}, expected ${value}`);
        });
      });
      stored[of].forEach((found, place) => assert(expected[of][place] !== undefined || found.every(Number.isNaN), `${name}: ${of} at ${place} was written`));
    }
    // Attention over it.
    const { o, lse } = await flash.forward({ shape, q: qRotated, k: kCache, v: vCache, cache, causal: true, seqlensKv: lengths, output: 'array', ...pageTable ? { pageTable } : {} });
    for (let b = 0; b < batch; b++) {
      const gather = (of, dim) => Float32Array.from({ length: lengths[b] * numHeadsKv * dim }, (_, index) => {
        const [j, h, d] = [Math.floor(index / (numHeadsKv * dim)), Math.floor(index / dim) % numHeadsKv, index % dim];
        return stored[of][placeOf(cache, pageTable, b, j) * numHeadsKv + h][d];
      });
      const one = { shape: { ...SHAPE, batch: 1, seqlen: tokens, seqlenKv: lengths[b] }, causal: true };
      const right = reference(one, turnedQ.slice(b * tokens * numHeads * headDim, (b + 1) * tokens * numHeads * headDim), gather('k', headDim), gather('v', headDimV));
      assertNear(o.slice(b * tokens * numHeads * headDimV, (b + 1) * tokens * numHeads * headDimV), right.o, `${name}: O of sequence ${b}, ${tokens} tokens`);
      assertNear(lse.slice(b * numHeads * tokens, (b + 1) * numHeads * tokens), right.lse, `${name}: LSE of sequence ${b}`);
    }
    qRotated.destroy();
    newCacheSeqlens.destroy();
    // Some tokens are taken back, so that sequences are of different lengths; what comes next overwrites them.
    if (seed === 4) [lengths[1], lengths[2]] = [1, 2];
  }
  kCache.destroy();
  vCache.destroy();
}

/** Slots, packed tokens, tables of tokens, and Q in place give the same bits. */
async function everyWayToAppend() {
  const flash = await attention();
  const shape = { batch: 2, numHeads: 2, seqlen: 3, seqlenKv: 8, headDim: 8 };
  const width = 16;
  const [q, k, v] = [1, 2, 3].map((seed) => random(5 * width, seed));
  const fresh = async () => ({ kCache: await flash.upload(new Float32Array(16 * width)), vCache: await flash.upload(new Float32Array(16 * width)) });
  const [rotaryCos, rotarySin] = rotaryTables(8, 8);
  const common = { shape, cache: {}, k, v, rotary: { pairs: 'halves' }, rotaryCos, rotarySin };
  const cacheSeqlens = [4, 1];
  const cuSeqlensNew = [0, 2, 5];
  const one = await fresh();
  const { qRotated } = await flash.append({ ...common, ...one, cuSeqlensNew, cacheSeqlens, q, rotateQ: 'apart' });
  // Each row of the tables for the position of a token.
  const positions = [4, 5, 1, 2, 3];
  const perToken = (table) => Float32Array.from({ length: 20 }, (_, index) => table[positions[Math.floor(index / 4)] * 4 + index % 4]);
  const two = await fresh();
  const own = await flash.upload(q);
  await flash.append({
    ...common, ...two, cuSeqlensNew, slotMapping: Uint32Array.of(4, 5, 9, 10, 11), q: own, rotateQ: 'in-place',
    rotary: { pairs: 'halves', perToken: true }, rotaryCos: perToken(rotaryCos), rotarySin: perToken(rotarySin),
  });
  for (const name of ['kCache', 'vCache']) assertSameBits(await two[name].read(), await one[name].read(), `${name} by slots`);
  assertSameBits(await own.read(), await qRotated.read(), 'Q in place');
  const kept = await one.vCache.read();
  assertSameBits(kept.slice(4 * width, 6 * width), v.slice(0, 2 * width), 'V of the first sequence');
  assertSameBits(kept.slice(9 * width, 12 * width), v.slice(2 * width), 'V of the second');
  // A slot that stores nothing.
  const three = await fresh();
  await flash.append({ shape, cache: {}, k: k.slice(0, 32), v: v.slice(0, 32), ...three, cuSeqlensNew: [0, 1, 2], slotMapping: Uint32Array.of(0xffffffff, 7) });
  const few = await three.vCache.read();
  assertSameBits(few.slice(7 * width, 8 * width), v.slice(width, 2 * width), 'V in slot 7');
  assert(few.every((value, index) => value === 0 || Math.floor(index / width) === 7), 'nothing else is stored');
  for (const tensor of [qRotated, own, ...[one, two, three].flatMap(Object.values)]) tensor.destroy();
}

/** A generation on prepared operations: lengths stay on the GPU, each step is two passes in one encoder, nothing is read back. */
async function withoutReadingBack() {
  const flash = await attention();
  const { device } = flash;
  const [tokens, dim] = [9, 8];
  const shape = { batch: 2, numHeads: 2, seqlen: 1, seqlenKv: 16, headDim: dim };
  const cache = { element: 'f32', pageSize: 4, numPages: 8 };
  const append = await flash.prepareAppend({ shape, cache, newCacheSeqlens: true });
  const attend = await flash.prepare({ shape, cache, causal: true, seqlensKv: true });
  assertEqual(append.lengths, { k: 32, v: 32, kCache: 512, vCache: 512, cacheSeqlens: 2, pageTable: 8, newCacheSeqlens: 2 }, 'lengths of an append');
  assertEqual(attend.lengths, { q: 32, k: 512, v: 512, seqlensKv: 2, pageTable: 8, o: 32, lse: 4 }, 'lengths over a cache');
  const all = [1, 2, 3].map((seed) => random(tokens * 32, seed));
  const pageTable = await flash.upload(Uint32Array.of(5, 2, 7, 0, 1, 6, 3, 4));
  const [kCache, vCache] = [await flash.upload(new Float32Array(512)), await flash.upload(new Float32Array(512))];
  const lengths = [await flash.upload(new Uint32Array(2)), await flash.upload(new Uint32Array(2))];
  const steps = [];
  const encoder = device.createCommandEncoder();
  for (let step = 0; step < tokens; step++) {
    const [q, k, v] = await Promise.all(all.map((tensor) => flash.upload(tensor.slice(step * 32, (step + 1) * 32))));
    const [o, lse] = await Promise.all([32, 4].map((length) => flash.upload(new Float32Array(length))));
    const [cacheSeqlens, newCacheSeqlens] = [lengths[step % 2], lengths[1 - step % 2]];
    append.encode(encoder, { k, v, kCache, vCache, cacheSeqlens, pageTable, newCacheSeqlens });
    attend.encode(encoder, { q, k: kCache, v: vCache, seqlensKv: newCacheSeqlens, pageTable, o, lse });
    steps.push({ q, k, v, o, lse });
  }
  device.queue.submit([encoder.finish()]);
  assertEqual([...await lengths[tokens % 2].read()], [tokens, tokens], 'lengths at the end');
  for (const [step, { o }] of steps.entries()) {
    const found = await o.read();
    for (let b = 0; b < 2; b++) {
      const ofSequence = (tensor) => Float32Array.from({ length: (step + 1) * 16 }, (_, index) => tensor[Math.floor(index / 16) * 32 + b * 16 + index % 16]);
      const one = { shape: { numHeads: 2, seqlen: 1, seqlenKv: step + 1, headDim: dim } };
      const right = reference(one, all[0].slice(step * 32 + b * 16, step * 32 + b * 16 + 16), ofSequence(all[1]), ofSequence(all[2]));
      assertNear(found.slice(b * 16, b * 16 + 16), right.o, `token ${step} of sequence ${b}`);
    }
  }
  append.destroy();
  attend.destroy();
  for (const tensor of [pageTable, kCache, vCache, ...lengths, ...steps.flatMap(Object.values)]) tensor.destroy();
}
