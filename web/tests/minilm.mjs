// The example's encoder with random numbers on Dawn, against f64: prints how much it errs. And its tokenizer.
import { FlashAttention } from 'wgpu-flash-attention';
import { create } from 'webgpu';
import { Encoder, readSafetensors } from '../examples/minilm/model.js';
import { Tokenizer } from '../examples/minilm/tokenizer.js';

const [WORDS, SIZE, INNER, LAYERS, HEAD_DIM] = [40, 64, 96, 2, 32];

let state = 7;
const random = (length, scale) => Float32Array.from({ length }, () => {
  state = Math.imul(state ^ state >>> 15, 0x2c1b3c6d) + 0x9e3779b9 >>> 0;
  return ((state >>> 8) / 2 ** 24 - 0.5) * scale;
});

const shapes = { 'embeddings.word_embeddings.weight': [WORDS, SIZE], 'embeddings.position_embeddings.weight': [16, SIZE], 'embeddings.token_type_embeddings.weight': [2, SIZE] };
const norm = (name) => Object.assign(shapes, { [`${name}.weight`]: [SIZE], [`${name}.bias`]: [SIZE] });
const linear = (name, outputs, inputs) => Object.assign(shapes, { [`${name}.weight`]: [outputs, inputs], [`${name}.bias`]: [outputs] });
norm('embeddings.LayerNorm');
for (let layer = 0; layer < LAYERS; layer++) {
  const name = `encoder.layer.${layer}`;
  for (const which of ['query', 'key', 'value']) linear(`${name}.attention.self.${which}`, SIZE, SIZE);
  linear(`${name}.attention.output.dense`, SIZE, SIZE);
  norm(`${name}.attention.output.LayerNorm`);
  linear(`${name}.intermediate.dense`, INNER, SIZE);
  linear(`${name}.output.dense`, SIZE, INNER);
  norm(`${name}.output.LayerNorm`);
}
const weights = Object.fromEntries(Object.entries(shapes).map(([name, shape]) => [name, random(shape.reduce((a, b) => a * b), 0.8)]));

/** A file as `model.safetensors` is one. */
function file() {
  let end = 0;
  const header = JSON.stringify({ __metadata__: {}, ...Object.fromEntries(Object.entries(shapes).map(([name, shape]) => {
    const start = end;
    end += weights[name].byteLength;
    return [name, { dtype: 'F32', shape, data_offsets: [start, end] }];
  })) });
  const bytes = new Uint8Array(8 + header.length + end);
  new DataView(bytes.buffer).setBigUint64(0, BigInt(header.length), true);
  bytes.set(new TextEncoder().encode(header), 8);
  let place = 8 + header.length;
  for (const data of Object.values(weights)) {
    bytes.set(new Uint8Array(data.buffer), place);
    place += data.byteLength;
  }
  return bytes.buffer;
}

function normed(rows, name) {
  return rows.map((row) => {
    const mean = row.reduce((a, b) => a + b) / SIZE;
    const variance = row.reduce((sum, value) => sum + (value - mean) ** 2, 0) / SIZE;
    return row.map((value, i) => (value - mean) / Math.sqrt(variance + 1e-12) * weights[`${name}.weight`][i] + weights[`${name}.bias`][i]);
  });
}

function multiplied(rows, name, outputs) {
  const [weight, bias] = [weights[`${name}.weight`], weights[`${name}.bias`]];
  return rows.map((row) => Array.from({ length: outputs }, (_, o) => row.reduce((sum, value, i) => sum + value * weight[o * row.length + i], bias[o])));
}

/** By its integral, in small steps. */
function erf(x) {
  const steps = 2000;
  let sum = 0;
  for (let i = 0; i < steps; i++) sum += Math.exp(-(((i + 0.5) / steps * x) ** 2));
  return 2 / Math.sqrt(Math.PI) * sum * x / steps;
}

function expected(ids) {
  const plus = (a, b) => a.map((row, r) => row.map((value, i) => value + b[r][i]));
  const [words, positions, types] = ['word', 'position', 'token_type'].map((what) => weights[`embeddings.${what}_embeddings.weight`]);
  let x = normed(ids.map((id, place) => Array.from({ length: SIZE }, (_, i) => words[id * SIZE + i] + positions[place * SIZE + i] + types[i])), 'embeddings.LayerNorm');
  for (let layer = 0; layer < LAYERS; layer++) {
    const name = `encoder.layer.${layer}`;
    const [q, k, v] = ['query', 'key', 'value'].map((which) => multiplied(x, `${name}.attention.self.${which}`, SIZE));
    const o = q.map((row) => row.map((_, at) => {
      const first = at - at % HEAD_DIM;
      const scores = k.map((key) => Math.exp(Array.from({ length: HEAD_DIM }, (_, d) => row[first + d] * key[first + d]).reduce((a, b) => a + b) / Math.sqrt(HEAD_DIM)));
      return scores.reduce((sum, score, j) => sum + score * v[j][at], 0) / scores.reduce((a, b) => a + b);
    }));
    x = normed(plus(multiplied(o, `${name}.attention.output.dense`, SIZE), x), `${name}.attention.output.LayerNorm`);
    const inner = multiplied(x, `${name}.intermediate.dense`, INNER).map((row) => row.map((value) => 0.5 * value * (1 + erf(value / Math.SQRT2))));
    x = normed(plus(multiplied(inner, `${name}.output.dense`, SIZE), x), `${name}.output.LayerNorm`);
  }
  const mean = Array.from({ length: SIZE }, (_, i) => x.reduce((sum, row) => sum + row[i], 0) / x.length);
  const length = Math.hypot(...mean);
  return mean.map((value) => value / length);
}

const vocabulary = ['[UNK]', '[CLS]', '[SEP]', 'flash', '##att', '##ention', '!', 'cafe', '日', '-'];
const json = JSON.stringify({ model: { type: 'WordPiece', vocab: Object.fromEntries(vocabulary.map((token, index) => [token, index])) } });
const tokens = new Tokenizer(json).encode('FlashAttention! Café-日\u0000 xyz').map((id) => vocabulary[id]);

const attention = await FlashAttention.create({ gpu: create(['backend=vulkan']) });
const encoder = new Encoder(attention, readSafetensors(file()), HEAD_DIM);
const sentences = [[1, 5, 9, 2], [1, 30, 39, 12, 7, 8, 22, 3, 2], [1, 2]];
const found = await encoder.embed(sentences);
const right = sentences.flatMap(expected);
const largest = Math.max(...right.map(Math.abs));
const error = found.reduce((most, value, i) => Math.max(most, Math.abs(value - right[i])), 0) / largest;
encoder.destroy();
attention.destroy();
console.log(JSON.stringify({ error, length: found.length, tokens }));
