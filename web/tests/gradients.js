// The gradients of attention in f64 with plain loops, like demo/reference.js, whose helpers it uses.
import { forward, philox, sizes, strides, visible } from '../demo/reference.js';

/** dQ, dK and dV of Φ = Σ dO ∘ O + Σ dLse ∘ LSE, in the layout of Q, K and V. `dLse` may be left out. */
export function backward(problem, q, k, v, dO, dLse) {
  const { batch, numHeads, numHeadsKv, seqlen, headDim, headDimV } = sizes(problem.shape);
  const layout = strides(problem.shape, problem.layout);
  const { softmaxScale = 1 / Math.sqrt(headDim), dropout } = problem;
  const { lse } = forward(problem, q, k, v);
  const [dq, dk, dv] = [q, k, v].map((tensor) => new Float64Array(tensor.length));
  const seed = BigInt.asUintN(64, BigInt(dropout?.seed ?? 0));
  const key = [Number(seed & 0xffff_ffffn), Number(seed >> 32n)];
  const threshold = Math.round((dropout?.p ?? 0) * 2 ** 32);
  for (let b = 0; b < batch; b++) {
    for (let h = 0; h < numHeads; h++) {
      const headKv = Math.floor(h / (numHeads / numHeadsKv));
      const at = (tensor, row, head) => b * layout[tensor].batch + row * layout[tensor].row + head * layout[tensor].head;
      for (let i = 0; i < seqlen; i++) {
        const { first, end } = visible(problem, i);
        const flat = (b * numHeads + h) * seqlen + i;
        const [qAt, oAt] = [at('q', i, h), at('o', i, h)];
        const entries = [];
        let delta = -(dLse?.[flat] ?? 0);
        for (let j = first; j < end; j++) {
          const [kAt, vAt] = [at('k', j, headKv), at('v', j, headKv)];
          let [score, dP] = [0, 0];
          for (let d = 0; d < headDim; d++) score += q[qAt + d] * k[kAt + d];
          for (let d = 0; d < headDimV; d++) dP += dO[oAt + d] * v[vAt + d];
          const p = Math.exp(softmaxScale * score - lse[flat]);
          const isKept = !dropout || philox(key, [j >>> 2, i, b * numHeads + h, dropout.offset ?? 0])[j % 4] >= threshold;
          const factor = isKept ? 1 / (1 - (dropout?.p ?? 0)) : 0;
          dP *= factor;
          for (let d = 0; d < headDimV; d++) dv[vAt + d] += p * factor * dO[oAt + d];
          delta += p * dP;
          entries.push({ kAt, p, dP });
        }
        for (const { kAt, p, dP } of entries) {
          const dS = softmaxScale * p * (dP - delta);
          for (let d = 0; d < headDim; d++) {
            dq[qAt + d] += dS * k[kAt + d];
            dk[kAt + d] += dS * q[qAt + d];
          }
        }
      }
    }
  }
  return { dq, dk, dv };
}
