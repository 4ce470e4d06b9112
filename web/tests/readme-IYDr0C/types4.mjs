import { FlashAttention } from 'wgpu-flash-attention';

const shape = { batch: 1, numHeads: 8, seqlen: 256, headDim: 64 };
const random = (length) => Float32Array.from({ length }, () => Math.random() - 0.5);
const [q, k, v] = [1, 2, 3].map(() => random(256 * 8 * 64));   // each [batch, seqlen, numHeads, headDim]

const attention = await FlashAttention.create();
const { o, lse, stats } = await attention.forward({ q, k, v, shape, causal: true });
console.log(o, lse, `${stats.milliseconds} ms`);

// 4 sequences of at most 4096 tokens, in 300 pages of 16 tokens; f16 whatever the type of Q.
const [numHeads, numHeadsKv, headDim] = [32, 8, 128];
const one = { batch: 4, numHeads, numHeadsKv, seqlen: 1, seqlenKv: 4096, headDim };   // one new token of each
const cache = { element: 'f16', pageSize: 16, numPages: 300 };
const empty = () => attention.upload(new Uint16Array(300 * 16 * numHeadsKv * headDim));
const [kCache, vCache] = [await empty(), await empty()];
// u32 [4, 4096 / 16]: here sequence b has pages 75 b to 75 b + 74, and the rest of its row is not used yet.
const pages = await attention.upload(Uint32Array.from({ length: 4 * 256 }, (_, i) => i % 256 < 75 ? 75 * Math.floor(i / 256) + i % 256 : 0));
// f32 [4096, headDim / 2]: a row of angles for each position.
const angles = Float32Array.from({ length: 4096 * 64 }, (_, i) => Math.floor(i / 64) / 10000 ** (i % 64 / 64));
const turn = { rotary: { pairs: 'halves' }, rotaryCos: angles.map(Math.cos), rotarySin: angles.map(Math.sin), rotateQ: 'in-place' };

const query = await attention.upload(random(4 * 32 * 128));                       // [4, 1, numHeads, headDim]
const [key, value] = [await attention.upload(random(4 * 8 * 128)), await attention.upload(random(4 * 8 * 128))];
await attention.append({ shape: one, cache, kCache, vCache, k: key, v: value, q: query, cacheSeqlens: [7, 0, 90, 41], pageTable: pages, ...turn });
const answer = await attention.forward({ shape: one, cache, q: query, k: kCache, v: vCache, causal: true, seqlensKv: [8, 1, 91, 42], pageTable: pages });
console.log(await answer.o.read());
// Goes on from the example above.
const append = await attention.prepareAppend({ shape: one, cache, newCacheSeqlens: true });
const attend = await attention.prepare({ shape: one, cache, causal: true, seqlensKv: true });
let [old, now] = [await attention.upload(Uint32Array.of(8, 1, 91, 42)), await attention.upload(new Uint32Array(4))];
const written = { o: answer.o, lse: answer.lse };                                  // f32 [4, 1, numHeads, headDim] and [4, numHeads, 1]
const encoder = attention.device.createCommandEncoder();
for (let token = 0; token < 3; token++) {
  append.encode(encoder, { k: key, v: value, kCache, vCache, cacheSeqlens: old, newCacheSeqlens: now, pageTable: pages });
  attend.encode(encoder, { q: query, k: kCache, v: vCache, seqlensKv: now, pageTable: pages, ...written });
  [old, now] = [now, old];
}
attention.device.queue.submit([encoder.finish()]);
console.log(await old.read());                                                     // 11, 4, 94, 45
attention.destroy();