// Attention with score modifiers, masks, sinks and lengths, and its gradients, in f64 with plain loops: layout bshd, no
// dropout. Arrays hold numbers; the entries of a mask are bytes. `twins` holds in JavaScript what a problem says in WGSL, or by a
// block mask: `scoreMod(score, b, h, i, j)` gives a score and its derivative, `sees(b, h, i, j, p)` whether row i, at position p, sees
// key j.
import { sizes, strides } from '../demo/reference.js';

/** The slopes of ALiBi as its authors' code has them. */
export function alibiSlopes(numHeads) {
  const below = 2 ** Math.floor(Math.log2(numHeads));
  const geometric = (n, index) => 2 ** (-8 * (index + 1) / n);
  return Array.from({ length: numHeads }, (_, h) => h < below ? geometric(below, h) : geometric(2 * below, 2 * (h - below)));
}

/** The entry of a bias or a mask for a (sequence, head, row, key). */
function entry(problem, entries, position) {
  return entries.data[entryIndex(problem, entries, position)];
}

function entryIndex(problem, { shape = entryShape(problem) }, position) {
  return position.reduce((index, at, dimension) => index * shape[dimension] + (shape[dimension] === 1 ? 0 : at), 0);
}

function entryShape({ shape }) {
  const { batch, numHeads, seqlen, seqlenKv } = sizes(shape);
  return [batch, numHeads, seqlen, seqlenKv];
}

/** seqlenQ and seqlenKv of a sequence. */
function lengths({ shape, seqlensQ, seqlensKv }, b) {
  const { seqlen, seqlenKv } = sizes(shape);
  return [seqlensQ?.[b] ?? seqlen, seqlensKv?.[b] ?? seqlenKv];
}

/** The scores of a row, for each key that it sees: its number, S, and the derivative of S by Q·K. */
function scores(problem, q, k, b, h, i) {
  const { numHeads, numHeadsKv, headDim } = sizes(problem.shape);
  const layout = strides(problem.shape);
  const { causal, window: [left, right] = [null, null], softmaxScale = 1 / Math.sqrt(headDim), softcap, bias, mask, twins = {} } = problem;
  const [seqlenQ, seqlenKv] = lengths(problem, b);
  if (i >= seqlenQ) return [];
  const slopes = problem.alibi ? alibiSlopes(numHeads) : problem.alibiSlopes;
  const slope = slopes?.[slopes.length === numHeads ? h : b * numHeads + h] ?? 0;
  const diagonal = i + (causal === 'top-left' ? 0 : seqlenKv - seqlenQ);
  const seen = [];
  for (let j = 0; j < seqlenKv; j++) {
    if (j < diagonal - (left ?? Infinity) || j > diagonal + (causal ? 0 : right ?? Infinity)) continue;
    if (mask && !entry(problem, mask, [b, h, i, j])) continue;
    if (twins.sees && !twins.sees(b, h, i, j, i + seqlenKv - seqlenQ)) continue;
    const query = b * layout.q.batch + i * layout.q.row + h * layout.q.head;
    const key = b * layout.k.batch + j * layout.k.row + Math.floor(h / (numHeads / numHeadsKv)) * layout.k.head;
    let [score, derivative] = [0, softmaxScale];
    for (let d = 0; d < headDim; d++) score += softmaxScale * q[query + d] * k[key + d];
    if (softcap) {
      const tanh = Math.tanh(score / softcap);
      [score, derivative] = [softcap * tanh, derivative * (1 - tanh * tanh)];
    }
    if (twins.scoreMod) {
      const [modified, slope] = twins.scoreMod(score, b, h, i, j);
      [score, derivative] = [modified, derivative * slope];
    }
    score -= slope * Math.abs(diagonal - j);
    if (bias) score += entry(problem, bias, [b, h, i, j]);
    seen.push({ j, score, derivative });
  }
  return seen;
}

/** Calls `visit` for each row that exists, with its LSE and what it sees: key, P, and the derivative of S by Q·K. */
function eachRow(problem, q, k, visit) {
  const { batch, numHeads, seqlen } = sizes(problem.shape);
  for (let b = 0; b < batch; b++) {
    for (let h = 0; h < numHeads; h++) {
      for (let i = 0; i < Math.min(seqlen, lengths(problem, b)[0]); i++) {
        const seen = scores(problem, q, k, b, h, i);
        const sink = problem.sink?.[h] ?? -Infinity;
        const lse = Math.log(seen.reduce((sum, { score }) => sum + Math.exp(score), Math.exp(sink)));
        const probabilities = seen.map(({ score, ...rest }) => ({ ...rest, p: score === -Infinity ? 0 : Math.exp(score - lse) }));
        visit({ b, h, i, lse, sink, row: (b * numHeads + h) * seqlen + i }, probabilities);
      }
    }
  }
}

/** Where rows of Q and O, K and V start. */
function places({ shape }) {
  const { numHeads, numHeadsKv } = sizes(shape);
  const layout = strides(shape);
  const at = ({ batch, row, head }, b, i, h) => b * batch + i * row + h * head;
  const headKv = (h) => Math.floor(h / (numHeads / numHeadsKv));
  return {
    q: (b, i, h) => at(layout.q, b, i, h),
    o: (b, i, h) => at(layout.o, b, i, h),
    k: (b, j, h) => at(layout.k, b, j, headKv(h)),
    v: (b, j, h) => at(layout.v, b, j, headKv(h)),
  };
}

export function forward(problem, q, k, v) {
  const { batch, numHeads, seqlen, headDimV } = sizes(problem.shape);
  const place = places(problem);
  const o = new Float64Array(batch * seqlen * numHeads * headDimV);
  const lse = new Float64Array(batch * numHeads * seqlen).fill(-Infinity);
  eachRow(problem, q, k, ({ b, h, i, row, ...found }, seen) => {
    lse[row] = found.lse;
    for (const { j, p } of seen) {
      for (let d = 0; d < headDimV; d++) o[place.o(b, i, h) + d] += p * v[place.v(b, j, h) + d];
    }
  });
  return { o, lse };
}

/** The gradients of Φ = Σ dO ∘ O + Σ dLse ∘ LSE, with O as the forward call gave it; `dBias` in the shape of the bias. */
export function backward(problem, q, k, v, o, dO, dLse) {
  const { numHeads, headDim, headDimV } = sizes(problem.shape);
  const place = places(problem);
  const [dq, dk, dv] = [q, k, v].map((tensor) => new Float64Array(tensor.length));
  const dSink = new Float64Array(numHeads);
  const dBias = new Float64Array(problem.bias?.data.length ?? 0);
  eachRow(problem, q, k, ({ b, h, i, lse, sink, row }, seen) => {
    if (lse === -Infinity) return;
    const [qAt, oAt] = [place.q(b, i, h), place.o(b, i, h)];
    let delta = -dLse[row];
    for (let d = 0; d < headDimV; d++) delta += dO[oAt + d] * o[oAt + d];
    dSink[h] -= Math.exp(sink - lse) * delta;
    for (const { j, p, derivative } of seen) {
      const [kAt, vAt] = [place.k(b, j, h), place.v(b, j, h)];
      let dP = 0;
      for (let d = 0; d < headDimV; d++) {
        dP += dO[oAt + d] * v[vAt + d];
        dv[vAt + d] += p * dO[oAt + d];
      }
      if (problem.bias) dBias[entryIndex(problem, problem.bias, [b, h, i, j])] += p * (dP - delta);
      const factor = p * (dP - delta) * derivative;
      for (let d = 0; d < headDim; d++) {
        dq[qAt + d] += factor * k[kAt + d];
        dk[kAt + d] += factor * q[qAt + d];
      }
    }
  });
  return { dq, dk, dv, dSink, dBias };
}

/** P of some heads and rows, `[batch, heads, rows, seqlenKv]`. */
export function probabilities(problem, q, k, [firstHead, endHead], [firstRow, endRow]) {
  const { batch, seqlenKv } = sizes(problem.shape);
  const [heads, rows] = [endHead - firstHead, endRow - firstRow];
  const all = new Float64Array(batch * heads * rows * seqlenKv);
  eachRow(problem, q, k, ({ b, h, i }, seen) => {
    if (h < firstHead || h >= endHead || i < firstRow || i >= endRow) return;
    for (const { j, p } of seen) all[((b * heads + h - firstHead) * rows + i - firstRow) * seqlenKv + j] = p;
  });
  return all;
}
