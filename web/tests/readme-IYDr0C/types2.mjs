import { FlashAttention } from 'wgpu-flash-attention';

const shape = { batch: 1, numHeads: 8, seqlen: 256, headDim: 64 };
const random = (length) => Float32Array.from({ length }, () => Math.random() - 0.5);
const [q, k, v] = [1, 2, 3].map(() => random(256 * 8 * 64));   // each [batch, seqlen, numHeads, headDim]

const attention = await FlashAttention.create();
const { o, lse, stats } = await attention.forward({ q, k, v, shape, causal: true });
console.log(o, lse, `${stats.milliseconds} ms`);

const two = { batch: 2, numHeads: 8, seqlen: 128, headDim: 64 };                   // as many numbers as in q, k and v
const bias = { data: new Float32Array(8 * 128 * 128), shape: [1, 8, 128, 128] };   // one for all sequences
const mask = { data: new Uint8Array(2 * 128).fill(1), shape: [2, 1, 1, 128] };     // not 0: the row may attend to the key
await attention.forward({ q, k, v, shape: two, bias, mask });
await attention.forward({ q, k, v, shape: two, causal: true, seqlensQ: [128, 77], seqlensKv: [128, 77] });   // padded texts
attention.destroy();