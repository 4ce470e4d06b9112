import { FlashAttention } from 'wgpu-flash-attention';

const [q, k, v] = [0, 1, 2].map((phase) => Float32Array.from({ length: 8 * 128 * 64 }, (_, i) => Math.sin(0.37 * i + phase)));

const attention = await FlashAttention.create();
const shape = { batch: 1, numHeads: 8, seqlen: 128, headDim: 64 };
const { o, lse } = await attention.forward({ q: q!, k: k!, v: v!, shape, causal: true });
document.querySelector('output')!.textContent = JSON.stringify({ o: [...o.slice(-64)], lse: lse.at(-1) });
