
import { create as createGpu } from 'webgpu';
Object.defineProperty(globalThis, 'navigator', { value: { gpu: createGpu([]) } });
import { FlashAttention } from 'wgpu-flash-attention';

const shape = { batch: 1, numHeads: 8, seqlen: 256, headDim: 64 };
const random = (length) => Float32Array.from({ length }, () => Math.random() - 0.5);
const [q, k, v] = [1, 2, 3].map(() => random(256 * 8 * 64));   // each [batch, seqlen, numHeads, headDim]

const attention = await FlashAttention.create();
const { o, lse, stats } = await attention.forward({ q, k, v, shape, causal: true });
console.log(o, lse, `${stats.milliseconds} ms`);

const scoreMod = `
  fn score_mod(score: f32, batch: u32, head: u32, q_idx: u32, kv_idx: u32) -> f32 {
    return score + aux[clamp(i32(q_idx) - i32(kv_idx), -64, 64) + 64];
  }`;
const scoreModGrad = `
  fn score_mod_grad(grad: f32, score: f32, batch: u32, head: u32, q_idx: u32, kv_idx: u32) -> f32 { return grad; }`;
const aux = new Float32Array(129);
await attention.forward({ q, k, v, shape, scoreMod, scoreModGrad, aux });   // backward takes the same

const maskMod = `
  fn mask_mod(batch: u32, head: u32, q_idx: u32, kv_idx: u32) -> bool { return aux[q_idx] == aux[kv_idx]; }`;
await attention.forward({ q, k, v, shape, maskMod, aux: new Uint32Array(256) });
attention.destroy();