// Prints how much forward and backward err on Dawn, whether arrays in shared memory give the same, and what `create` says without it.
import { FlashAttention } from 'wgpu-flash-attention';
import { create } from 'webgpu';
import { forward, largestError } from '../demo/reference.js';
import { backward } from './gradients.js';

const words = await FlashAttention.create().then(() => 'it works without', ({ name, code, message }) => `${name} ${code} ${message}`);
const gpu = create(['backend=vulkan']);
gpu.requestAdapter = () => Promise.resolve(null);
const withoutDriver = await FlashAttention.create({ gpu }).then(() => 'it works without', ({ message }) => message);
delete gpu.requestAdapter;
const attention = await FlashAttention.create({ gpu });
const problem = { shape: { numHeads: 2, seqlen: 40, headDim: 32 }, causal: true };
const [q, k, v, dO] = [0, 1, 2, 3].map((phase) => Float32Array.from({ length: 2 * 40 * 32 }, (_, i) => Math.sin(0.37 * i + phase)));
const { o, lse } = await attention.forward({ ...problem, q, k, v });
const { dq, dk, dv } = await attention.backward({ ...problem, q, k, v, o, lse, dO });
const expected = { ...forward(problem, q, k, v), ...backward(problem, q, k, v, dO, new Float32Array(80)) };
const errors = Object.fromEntries(Object.entries({ o, lse, dq, dk, dv }).map(([name, found]) => {
  const largest = expected[name].reduce((largest, value) => Math.max(largest, Math.abs(value)), 0);
  return [name, largestError(found, expected[name]) / largest];
}));
// Dawn itself writes from no shared memory.
const shared = [q, k, v].map((array) => {
  const copy = new Float32Array(new SharedArrayBuffer(array.byteLength));
  copy.set(array);
  return copy;
});
const fromShared = await attention.forward({ ...problem, q: shared[0], k: shared[1], v: shared[2] });
const isSame = fromShared.o.every((value, index) => value === o[index]);
attention.destroy();
console.log(JSON.stringify({ errors, words, withoutDriver, isSame }));
