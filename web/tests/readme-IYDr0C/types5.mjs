import { FlashAttention } from 'wgpu-flash-attention';

const shape = { batch: 1, numHeads: 8, seqlen: 256, headDim: 64 };
const random = (length) => Float32Array.from({ length }, () => Math.random() - 0.5);
const [q, k, v] = [1, 2, 3].map(() => random(256 * 8 * 64));   // each [batch, seqlen, numHeads, headDim]

const attention = await FlashAttention.create();
const { o, lse, stats } = await attention.forward({ q, k, v, shape, causal: true });
console.log(o, lse, `${stats.milliseconds} ms`);

const ids = Uint32Array.from({ length: 256 }, (_, j) => Math.floor(j / 100));   // documents of 100 tokens
await attention.forward({ q, k, v, shape, causal: true, blockMask: { pattern: 'documents', ids } });
const kinds = Uint8Array.of(2, 0, 1, 2);   // [1, 1, 2, 2] blocks: 0 is hidden, 1 asks mask and maskMod, 2 does not
await attention.forward({ q, k, v, shape, blockMask: { pattern: 'blocks', kinds, blockSize: [128, 128] } });
attention.destroy();