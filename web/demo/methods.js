// Methods that make attention cheaper by computing something else, in plain loops over one head: Q, K and V are [n, d], as those of
// `examples/talk` in the repository, with its random numbers, so that both give the same answers. Nothing is trained.
import { philox } from './reference.js';

/** Normal numbers of a stream of a purpose: Philox and Box–Muller. */
function normals(seed, purpose, stream, length) {
  // FNV-1a of the name.
  const hash = [...purpose].reduce((hash, letter) => Math.imul(hash ^ letter.charCodeAt(0), 0x0100_0193) >>> 0, 0x811c_9dc5);
  const values = new Float32Array(length);
  const unit = (word) => (word + 0.5) / 2 ** 32;
  for (let block = 0; 4 * block < length; block++) {
    const words = philox([seed, 0], [block, 0, stream, hash]);
    for (let pair = 0; pair < 2; pair++) {
      const radius = Math.sqrt(-2 * Math.log(unit(words[2 * pair])));
      const angle = 2 * Math.PI * unit(words[2 * pair + 1]);
      for (const [place, value] of [Math.cos(angle), Math.sin(angle)].entries()) values[4 * block + 2 * pair + place] = radius * value;
    }
  }
  return values;
}

function dot(a, first, b, second, d) {
  let sum = 0;
  for (let e = 0; e < d; e++) sum += a[first + e] * b[second + e];
  return sum;
}

/** Softmax of row i over the first `count` of `keys`: writes O to `o` from `place` on, and returns the log-sum-exp. */
function attend({ q, k, v, d }, i, keys, count, o, place) {
  const weights = new Float64Array(count);
  const scale = 1 / Math.sqrt(d);
  let most = -Infinity;
  for (let index = 0; index < count; index++) {
    weights[index] = dot(q, i * d, k, keys[index] * d, d) * scale;
    if (weights[index] > most) most = weights[index];
  }
  let sum = 0;
  for (let index = 0; index < count; index++) sum += weights[index] = Math.exp(weights[index] - most);
  for (let index = 0; index < count; index++) {
    const p = weights[index] / sum;
    const value = keys[index] * d;
    for (let e = 0; e < d; e++) o[place + e] += p * v[value + e];
  }
  return most + Math.log(sum);
}

/** Exact attention of row i with the keys that `sees(i, j)` shows it. */
export function exact(head, sees = () => true) {
  const { n, d } = head;
  const o = new Float64Array(n * d);
  const keys = new Uint32Array(n);
  for (let i = 0; i < n; i++) {
    let count = 0;
    for (let j = 0; j < n; j++) if (sees(i, j)) keys[count++] = j;
    attend(head, i, keys, count, o, i * d);
  }
  return o;
}

/** Longformer (Beltagy 2020): a window on both sides, and global tokens. */
export function longformer(window, global) {
  return (i, j) => Math.abs(i - j) <= window || j < global || i < global;
}

/** BigBird (Zaheer 2020) on blocks of `side`: neighbours, first and last, and three that are drawn. Kinds of blocks: 0 or 1, row by row. */
export function bigbird(n, side, head, seed = 0) {
  const blocks = Math.ceil(n / side);
  const kinds = new Uint8Array(blocks * blocks).fill(1);
  if (blocks < 6) return kinds;
  const isEnd = (block) => block === 0 || block === blocks - 1;
  for (let row = 1; row < blocks - 1; row++) {
    const left = [];
    for (let column = 0; column < blocks; column++) {
      if (Math.abs(column - row) > 1 && !isEnd(column)) left.push(column);
    }
    for (const column of left) kinds[row * blocks + column] = 0;
    for (const word of philox([seed, 0], [row, head, 0, 0]).slice(0, 3)) {
      if (left.length === 0) break;
      const [column] = left.splice(Math.floor(word * left.length / 2 ** 32), 1);
      kinds[row * blocks + column] = 1;
    }
  }
  return kinds;
}

/** Linformer (Wang 2020), pooled: K and V are means of `rows` segments of tokens. */
export function pooled(x, n, d, rows) {
  const means = new Float32Array(rows * d);
  for (let r = 0; r < rows; r++) {
    const [first, end] = [r, r + 1].map((r) => Math.floor(r * n / rows));
    for (let e = 0; e < d; e++) {
      let sum = 0;
      for (let j = first; j < end; j++) sum += x[j * d + e];
      means[r * d + e] = sum / (end - first);
    }
  }
  return means;
}

/** ω of a Performer, `[m, d]`: orthogonal in blocks of d rows, each as long as a Gaussian vector. */
export function omega(m, d, seed = 0) {
  const [directions, lengths] = [0, 1].map((stream) => normals(seed, 'performer', stream, m * d));
  const rows = [];
  for (let f = 0; f < m; f++) {
    const own = Float64Array.from(directions.subarray(f * d, (f + 1) * d));
    const block = rows.slice(Math.floor(f / d) * d);
    // Twice, so that rounding does not count.
    for (const other of [...block, ...block]) {
      const along = dot(own, 0, other, 0, d);
      for (let e = 0; e < d; e++) own[e] -= along * other[e];
    }
    const length = Math.sqrt(dot(own, 0, own, 0, d));
    rows.push(own.map((x) => x / length));
  }
  const wide = (f) => Math.sqrt(dot(lengths, f * d, lengths, f * d, d));
  return Float32Array.from({ length: m * d }, (_, index) => rows[Math.floor(index / d)][index % d] * wide(Math.floor(index / d)));
}

/** Performer (Choromanski 2020): φ(q) Σ φ(k)ᵀ v / (φ(q) · Σ φ(k)), with `w` from `omega`. */
export function performer({ q, k, v, n, d }, w, epsilon = 1e-4) {
  const m = w.length / d;
  const scale = d ** -0.25;
  const projected = (x, i) => {
    const own = new Float64Array(m);
    for (let f = 0; f < m; f++) own[f] = dot(w, f * d, x, i * d, d) * scale;
    return own;
  };
  const largest = (values) => values.reduce((a, b) => Math.max(a, b), -Infinity);
  const features = (x, i, own, stabiliser) => {
    const square = dot(x, i * d, x, i * d, d) / (2 * Math.sqrt(d));
    return own.map((a) => (Math.exp(a - square - stabiliser) + epsilon) / Math.sqrt(m));
  };
  const ofKeys = Array.from({ length: n }, (_, j) => projected(k, j));
  const stabiliser = largest(ofKeys.map(largest));
  const [sums, weights] = [new Float64Array(m * d), new Float64Array(m)];
  for (let j = 0; j < n; j++) {
    const phi = features(k, j, ofKeys[j], stabiliser);
    for (let f = 0; f < m; f++) {
      weights[f] += phi[f];
      for (let e = 0; e < d; e++) sums[f * d + e] += phi[f] * v[j * d + e];
    }
  }
  const o = new Float64Array(n * d);
  for (let i = 0; i < n; i++) {
    const own = projected(q, i);
    const phi = features(q, i, own, largest(own));
    const weight = dot(phi, 0, weights, 0, m);
    for (let f = 0; f < m; f++) {
      for (let e = 0; e < d; e++) o[i * d + e] += phi[f] * sums[f * d + e] / weight;
    }
  }
  return o;
}

/** What a Reformer shares: the keys are the queries, made one long. */
export function sharedKeys({ q, n, d }) {
  const keys = new Float64Array(n * d);
  for (let i = 0; i < n; i++) {
    const length = Math.sqrt(dot(q, i * d, q, i * d, d));
    for (let e = 0; e < d; e++) keys[i * d + e] = length > 0 ? q[i * d + e] / length : 0;
  }
  return keys;
}

/** Reformer (Kitaev 2020): tokens that hash alike, sorted and cut into chunks; each sees its chunk and the one before, not itself. */
export function reformer({ q, v, n, d }, chunk, rounds, seed = 0) {
  const shared = { q, k: sharedKeys({ q, n, d }), v, d };
  const columns = Math.ceil(n / (2 * chunk));
  const parts = [];
  for (let round = 0; round < rounds; round++) {
    const rotations = normals(seed, 'reformer', round, columns * d);
    const buckets = Array.from({ length: n }, (_, i) => {
      const products = Array.from({ length: columns }, (_, c) => dot(q, i * d, rotations, c * d, d));
      const signed = [...products, ...products.map((product) => -product)];
      return signed.indexOf(Math.max(...signed));
    });
    const order = Array.from(buckets.keys()).sort((a, b) => buckets[a] - buckets[b] || a - b);
    const o = new Float64Array(n * d);
    const lse = new Float64Array(n);
    order.forEach((i, place) => {
      const at = Math.floor(place / chunk);
      const keys = order.slice(Math.max(0, at - 1) * chunk, (at + 1) * chunk).filter((j) => j !== i);
      lse[i] = attend(shared, i, keys, keys.length, o, i * d);
    });
    parts.push({ o, lse });
  }
  const o = new Float64Array(n * d);
  for (let i = 0; i < n; i++) {
    const most = Math.max(...parts.map(({ lse }) => lse[i]));
    const sum = parts.reduce((sum, { lse }) => sum + Math.exp(lse[i] - most), 0);
    for (let e = 0; e < d; e++) {
      const mean = parts.reduce((all, part) => all + part.o[i * d + e] * Math.exp(part.lse[i] - most) / sum, 0);
      o[i * d + e] = most === -Infinity ? v[i * d + e] : mean;
    }
  }
  return o;
}

/** ‖found − expected‖ / ‖expected‖ over several heads. */
export function relativeError(pairs) {
  let [difference, size] = [0, 0];
  for (const [found, expected] of pairs) {
    expected.forEach((value, index) => {
      difference += (found[index] - value) ** 2;
      size += value ** 2;
    });
  }
  return Math.sqrt(difference / size);
}
