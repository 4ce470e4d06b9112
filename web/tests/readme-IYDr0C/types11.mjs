import { FlashAttention } from 'wgpu-flash-attention';

const shape = { batch: 1, numHeads: 8, seqlen: 256, headDim: 64 };
const random = (length) => Float32Array.from({ length }, () => Math.random() - 0.5);
const [q, k, v] = [1, 2, 3].map(() => random(256 * 8 * 64));   // each [batch, seqlen, numHeads, headDim]

const attention = await FlashAttention.create();
const { o, lse, stats } = await attention.forward({ q, k, v, shape, causal: true });
console.log(o, lse, `${stats.milliseconds} ms`);

const prepared = await attention.prepare({ shape, causal: true });        // compiles; f32, or { shape, element: 'f16' }
const [qs, ks, vs] = await Promise.all([q, k, v].map((array) => attention.upload(array)));
const results = await prepared.run({ q: qs, k: ks, v: vs });              // tensors on the GPU
const encoder = attention.device.createCommandEncoder();
prepared.encode(encoder, { q: qs, k: ks, v: vs, o: results.o, lse: results.lse });   // one compute pass, nothing is submitted
attention.device.queue.submit([encoder.finish()]);
prepared.destroy();
attention.destroy();