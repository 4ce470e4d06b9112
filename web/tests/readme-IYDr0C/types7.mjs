import { FlashAttention } from 'wgpu-flash-attention';

const shape = { batch: 1, numHeads: 8, seqlen: 256, headDim: 64 };
const random = (length) => Float32Array.from({ length }, () => Math.random() - 0.5);
const [q, k, v] = [1, 2, 3].map(() => random(256 * 8 * 64));   // each [batch, seqlen, numHeads, headDim]

const attention = await FlashAttention.create();
const { o, lse, stats } = await attention.forward({ q, k, v, shape, causal: true });
console.log(o, lse, `${stats.milliseconds} ms`);

const problem = { q, k, v, shape, causal: true, dropout: { p: 0.1, seed: 42 } };
const result = await attention.forward(problem);
const dO = random(256 * 8 * 64);   // the gradient of the loss with respect to O, in the shape and type of O
const { dq, dk, dv } = await attention.backward({ ...problem, o: result.o, lse: result.lse, dO });
attention.destroy();