import { FlashAttention } from 'wgpu-flash-attention';

const shape = { batch: 1, numHeads: 8, seqlen: 256, headDim: 64 };
const random = (length) => Float32Array.from({ length }, () => Math.random() - 0.5);
const [q, k, v] = [1, 2, 3].map(() => random(256 * 8 * 64));   // each [batch, seqlen, numHeads, headDim]

const attention = await FlashAttention.create();
const { o, lse, stats } = await attention.forward({ q, k, v, shape, causal: true });
console.log(o, lse, `${stats.milliseconds} ms`);

const [qs, ks, vs] = await Promise.all([q, k, v].map((array) => attention.upload(array)));
const first = await attention.forward({ q: qs, k: ks, v: vs, shape });   // first.o and first.lse are on the GPU
const second = await attention.forward({ q: first.o, k: ks, v: vs, shape });
console.log(await second.o.read());
for (const tensor of [qs, ks, vs, first.o, first.lse, second.o, second.lse]) tensor.destroy();
attention.destroy();