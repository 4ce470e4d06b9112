// A BERT encoder such as all-MiniLM-L6-v2: a sentence becomes a vector of length 1. Attention is this package's, recorded into
// the same encoder as the four kernels beside it, so that a batch of sentences is one submission.
import { Kernels } from './kernels.js';

const USAGE = { STORAGE: 0x80, COPY_SRC: 0x4, COPY_DST: 0x8 };
/** Sentences of a batch. */
const BATCH = 32;
const HEAD_DIM = 32;

/** The tensors of a safetensors file: names, shapes and numbers. */
export function readSafetensors(file) {
  const length = Number(new DataView(file).getBigUint64(0, true));
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(file, 8, length)));
  delete header.__metadata__;
  return new Map(Object.entries(header).map(([name, { dtype, shape, data_offsets: [start, end] }]) => {
    const bytes = file.slice(8 + length + start, 8 + length + end);
    return [name.replace(/^bert\./, ''), { dtype, shape, bytes }];
  }));
}

export class Encoder {
  #attention;
  #device;
  #kernels;
  #weights = new Map();
  #layers;
  #size;
  #inner;
  #heads;

  /** `tensors` is what `readSafetensors` gives. */
  constructor(attention, tensors, headDim = HEAD_DIM) {
    this.#attention = attention;
    this.#device = attention.device;
    this.#kernels = new Kernels(this.#device);
    const words = tensors.get('embeddings.word_embeddings.weight');
    if (!words) throw new Error('the file holds no embeddings.word_embeddings.weight: choose the model.safetensors of a BERT such as all-MiniLM-L6-v2');
    this.#layers = [...tensors.keys()].filter((name) => /^encoder\.layer\.\d+\.output\.dense\.weight$/.test(name)).length;
    this.#size = words.shape[1];
    this.#inner = tensors.get('encoder.layer.0.intermediate.dense.weight').shape[0];
    this.#heads = this.#size / headDim;
    for (const [name, { dtype, bytes }] of tensors) {
      if (!/^(embeddings|encoder)\./.test(name) || name.endsWith('position_ids')) continue;
      if (dtype !== 'F32') throw new Error(`${name} is stored as ${dtype}; this example reads F32`);
      this.#weights.set(name, this.#buffer(bytes.byteLength, new Uint8Array(bytes)));
    }
  }

  /** The vectors of sentences, given as the numbers of their tokens: one behind the other. */
  async embed(sentences) {
    const all = new Float32Array(sentences.length * this.#size);
    for (let first = 0; first < sentences.length; first += BATCH) {
      all.set(await this.#batch(sentences.slice(first, first + BATCH)), first * this.#size);
    }
    return all;
  }

  async #batch(sentences) {
    const [size, heads, device] = [this.#size, this.#heads, this.#device];
    const lengths = Uint32Array.from(sentences, ({ length }) => length);
    const [batch, seqlen] = [sentences.length, Math.max(...lengths)];
    const rows = batch * seqlen;
    // Sentences end at their own lengths; what lies behind is never looked at.
    const ids = new Uint32Array(rows);
    sentences.forEach((sentence, index) => ids.set(sentence, index * seqlen));
    const shape = { batch, numHeads: heads, seqlen, headDim: size / heads };
    const prepared = await this.#attention.prepare({ shape, seqlensQ: lengths, seqlensKv: lengths }, { boundedWork: false });

    const made = [];
    const floats = (count) => made[made.push(this.#buffer(4 * count)) - 1];
    const [x, y, q, k, v, o] = [1, 2, 3, 4, 5, 6].map(() => floats(rows * size));
    const [inner, nothing, lse, pooled] = [floats(rows * this.#inner), floats(rows * size), floats(batch * heads * seqlen), floats(batch * size)];
    const [idBuffer, lengthBuffer] = [ids, lengths].map((words) => made[made.push(this.#buffer(words.byteLength, words)) - 1]);
    const tensors = Object.fromEntries(Object.entries({ q, k, v, o, lse }).map(([name, buffer]) => [name, this.#attention.wrap(buffer)]));
    const result = this.#attention.wrap(pooled);

    const encoder = device.createCommandEncoder();
    let pass = encoder.beginComputePass();
    const weight = (name) => this.#weights.get(name);
    const run = (...all) => this.#kernels.run(pass, ...all);
    const linear = (from, name, to, inputs, outputs, gelu = false) => run('linear', { INPUTS: inputs, OUTPUTS: outputs, GELU: Number(gelu) },
      [from, weight(`${name}.weight`), weight(`${name}.bias`), to], [Math.ceil(outputs / 16), Math.ceil(rows / 16)]);
    const norm = (a, b, name, to) => run('norm', { SIZE: size }, [a, b, weight(`${name}.weight`), weight(`${name}.bias`), to], [rows]);

    run('embed', { SEQLEN: seqlen, SIZE: size }, [idBuffer, weight('embeddings.word_embeddings.weight'),
      weight('embeddings.position_embeddings.weight'), weight('embeddings.token_type_embeddings.weight'), y], [rows]);
    norm(y, nothing, 'embeddings.LayerNorm', x);
    for (let layer = 0; layer < this.#layers; layer++) {
      const name = `encoder.layer.${layer}`;
      for (const [which, to] of [['query', q], ['key', k], ['value', v]]) linear(x, `${name}.attention.self.${which}`, to, size, size);
      pass.end();
      prepared.encode(encoder, tensors);
      pass = encoder.beginComputePass();
      linear(o, `${name}.attention.output.dense`, y, size, size);
      norm(y, x, `${name}.attention.output.LayerNorm`, q);
      linear(q, `${name}.intermediate.dense`, inner, size, this.#inner, true);
      linear(inner, `${name}.output.dense`, y, this.#inner, size);
      norm(y, q, `${name}.output.LayerNorm`, x);
    }
    run('pool', { SEQLEN: seqlen, SIZE: size }, [x, lengthBuffer, pooled], [batch]);
    pass.end();
    device.queue.submit([encoder.finish()]);
    try {
      return await result.read();
    } finally {
      for (const tensor of [...Object.values(tensors), result]) tensor.destroy();
      for (const buffer of made) buffer.destroy();
      prepared.destroy();
    }
  }

  #buffer(bytes, data) {
    const buffer = this.#device.createBuffer({ size: Math.max(16, bytes), usage: USAGE.STORAGE | USAGE.COPY_SRC | USAGE.COPY_DST });
    if (data) this.#device.queue.writeBuffer(buffer, 0, data);
    return buffer;
  }

  destroy() {
    for (const buffer of this.#weights.values()) buffer.destroy();
  }
}
