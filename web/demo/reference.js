// Attention in JavaScript's own f64 numbers with plain loops, for the tests and for the demo's check. It shares no code
// with the shaders or the crate; node and browsers run it.

const MULTIPLIERS = [0xd251_1f53n, 0xcd9e_8d57n];
const KEY_STEPS = [0x9e37_79b9, 0xbb67_ae85];

/** Philox4x32-10 (Salmon et al. 2011): four random words from a key and a counter. */
export function philox(key, counter) {
  let [a, b, c, d] = counter;
  let [k0, k1] = key;
  for (let round = 0; round < 10; round++) {
    const left = MULTIPLIERS[0] * BigInt(a);
    const right = MULTIPLIERS[1] * BigInt(c);
    [a, b, c, d] = [
      (Number(right >> 32n) ^ b ^ k0) >>> 0,
      Number(right & 0xffff_ffffn),
      (Number(left >> 32n) ^ d ^ k1) >>> 0,
      Number(left & 0xffff_ffffn),
    ];
    k0 = (k0 + KEY_STEPS[0]) >>> 0;
    k1 = (k1 + KEY_STEPS[1]) >>> 0;
  }
  return [a, b, c, d];
}

/** All sizes of a shape as the package's `Shape` has them. */
export function sizes(shape) {
  const { batch = 1, numHeads = 1, numHeadsKv = numHeads, seqlen, seqlenKv = seqlen, headDim, headDimV = headDim } = shape;
  return { batch, numHeads, numHeadsKv, seqlen, seqlenKv, headDim, headDimV };
}

/** The strides of Q, K, V and O for a named layout. */
export function strides(shape, layout = 'bshd') {
  const { numHeads, numHeadsKv, seqlen, seqlenKv, headDim, headDimV } = sizes(shape);
  const dense = (rows, heads, dim) => layout === 'bhsd'
    ? { offset: 0, batch: heads * rows * dim, row: dim, head: rows * dim }
    : { offset: 0, batch: rows * heads * dim, row: heads * dim, head: dim };
  const o = dense(seqlen, numHeads, headDimV);
  if (layout !== 'packed-qkv') {
    return { q: dense(seqlen, numHeads, headDim), k: dense(seqlenKv, numHeadsKv, headDim), v: dense(seqlenKv, numHeadsKv, headDimV), o };
  }
  const heads = numHeads + 2 * numHeadsKv;
  const view = (first) => ({ offset: first * headDim, batch: seqlen * heads * headDim, row: heads * headDim, head: headDim });
  return { q: view(0), k: view(numHeads), v: view(numHeads + numHeadsKv), o };
}

/** The keys that row i sees: from `first`, up to and without `end`. */
export function visible({ shape, causal = false, window = [null, null] }, i) {
  const { seqlen, seqlenKv } = sizes(shape);
  const diagonal = i + (causal === 'top-left' ? 0 : seqlenKv - seqlen);
  const [left, right] = [window[0] ?? Infinity, causal ? 0 : window[1] ?? Infinity];
  return { first: Math.max(0, diagonal - left), end: Math.min(seqlenKv, diagonal + right + 1) };
}

/** One row: its O (headDimV numbers) and its log-sum-exp. `q`, `k`, `v` hold numbers, in the problem's layout. */
export function row(problem, q, k, v, batch, head, i) {
  const { numHeads, numHeadsKv, headDim, headDimV } = sizes(problem.shape);
  const layout = typeof problem.layout === 'object' ? problem.layout : strides(problem.shape, problem.layout);
  const at = ({ offset = 0, ...strides }, row, head) => offset + batch * strides.batch + row * strides.row + head * strides.head;
  const { softmaxScale = 1 / Math.sqrt(headDim), dropout } = problem;
  const headKv = Math.floor(head / (numHeads / numHeadsKv));
  const { first, end } = visible(problem, i);

  const scores = [];
  const query = at(layout.q, i, head);
  for (let j = first; j < end; j++) {
    const key = at(layout.k, j, headKv);
    let dot = 0;
    for (let d = 0; d < headDim; d++) dot += q[query + d] * k[key + d];
    scores.push(softmaxScale * dot);
  }
  const o = new Float64Array(headDimV);
  if (scores.length === 0) return { o, lse: -Infinity };
  const max = scores.reduce((a, b) => Math.max(a, b));
  const sum = scores.reduce((sum, score) => sum + Math.exp(score - max), 0);

  const seed = BigInt.asUintN(64, BigInt(dropout?.seed ?? 0));
  const philoxKey = [Number(seed & 0xffff_ffffn), Number(seed >> 32n)];
  const threshold = Math.round((dropout?.p ?? 0) * 2 ** 32);
  scores.forEach((score, index) => {
    const j = first + index;
    let p = Math.exp(score - max) / sum;
    if (dropout) {
      const words = philox(philoxKey, [j >>> 2, i, batch * numHeads + head, dropout.offset ?? 0]);
      p = words[j % 4] >= threshold ? p / (1 - dropout.p) : 0;
    }
    const value = at(layout.v, j, headKv);
    for (let d = 0; d < headDimV; d++) o[d] += p * v[value + d];
  });
  return { o, lse: max + Math.log(sum) };
}

/** The whole of it: O in the problem's layout, and LSE. */
export function forward(problem, q, k, v) {
  const { batch, numHeads, seqlen, headDimV } = sizes(problem.shape);
  const layout = typeof problem.layout === 'object' ? problem.layout : strides(problem.shape, problem.layout);
  const { offset = 0, ...stride } = layout.o;
  const o = new Float64Array(batch * numHeads * seqlen * headDimV && offset + (batch - 1) * stride.batch + (seqlen - 1) * stride.row + (numHeads - 1) * stride.head + headDimV);
  const lse = new Float64Array(batch * numHeads * seqlen);
  for (let b = 0; b < batch; b++) {
    for (let h = 0; h < numHeads; h++) {
      for (let i = 0; i < seqlen; i++) {
        const answer = row(problem, q, k, v, b, h, i);
        o.set(answer.o, offset + b * stride.batch + i * stride.row + h * stride.head);
        lse[(b * numHeads + h) * seqlen + i] = answer.lse;
      }
    }
  }
  return { o, lse };
}

/** The largest difference; NaN if any of `found` is, Infinity where only one side is infinite. */
export function largestError(found, expected) {
  let largest = 0;
  for (let index = 0; index < expected.length; index++) {
    if (found[index] === expected[index]) continue;
    const error = Math.abs(found[index] - expected[index]);
    if (!(error <= largest)) largest = error;
    if (Number.isNaN(largest)) return NaN;
  }
  return largest;
}
