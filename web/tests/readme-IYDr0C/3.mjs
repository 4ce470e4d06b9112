
import { create as createGpu } from 'webgpu';
Object.defineProperty(globalThis, 'navigator', { value: { gpu: createGpu([]) } });
import { FlashAttention } from 'wgpu-flash-attention';

const shape = { batch: 1, numHeads: 8, seqlen: 256, headDim: 64 };
const random = (length) => Float32Array.from({ length }, () => Math.random() - 0.5);
const [q, k, v] = [1, 2, 3].map(() => random(256 * 8 * 64));   // each [batch, seqlen, numHeads, headDim]

const attention = await FlashAttention.create();
const { o, lse, stats } = await attention.forward({ q, k, v, shape, causal: true });
console.log(o, lse, `${stats.milliseconds} ms`);

// Three texts of 128, 28 and 100 tokens, one behind the other: q, k and v are [256, 8, 64], lse is [8, 256].
const texts = { batch: 3, numHeads: 8, seqlen: 128, headDim: 64 };
const sums = [0, 128, 156, 256];
await attention.forward({ q, k, v, shape: texts, causal: true, cuSeqlensQ: sums, cuSeqlensKv: sums });
attention.destroy();