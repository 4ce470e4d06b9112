import { maskBlocks } from './blocks.js';
import { describe, number, numbers, shown, sizesOf, whole } from './checks.js';
import { InvalidProblemError, InvalidTensorError } from './errors.js';
import { packMask } from './mask.js';
import type { AttentionProblem, Bias, Element, Mask, TensorData } from './options.js';
import { GpuTensor, arrayName, tagOf, tensorType } from './tensor.js';
import type { Problem } from './wasm.js';
import { maskByWgsl, modifyByWgsl } from './wgsl.js';

type Counts = [batch: number, heads: number, rows: number, keys: number];

/** @internal Gives the problem its score modifiers, in the order in which they apply, its masks and sinks. */
export function modify(wasm: Problem, problem: AttentionProblem, element: Element): void {
  const { softcap, alibi, alibiSlopes, bias, mask, sink } = problem;
  const { batch, numHeads } = sizesOf(problem);
  if (softcap !== undefined && number('softcap', softcap) !== 0) wasm.softcap(softcap);
  modifyByWgsl(wasm, problem);
  if (![undefined, true, false].includes(alibi)) {
    throw new InvalidProblemError(`alibi = ${shown(alibi)}; it is true or false, and alibiSlopes takes slopes`);
  }
  if (alibi && alibiSlopes !== undefined) {
    throw new InvalidProblemError('alibi and alibiSlopes are both given; alibi: true takes the usual slopes, so leave one out');
  }
  if (alibi) wasm.alibi(undefined);
  if (alibiSlopes !== undefined) {
    const lengths = { numHeads, 'batch · numHeads': batch * numHeads };
    wasm.alibi(Float32Array.from(numbers('alibiSlopes', alibiSlopes, lengths, finite)));
  }
  if (bias !== undefined) wasm.bias(...counts('bias', bias, problem), storedAs(bias, element));
  if (mask !== undefined) wasm.key_mask(...counts('mask', mask, problem));
  maskBlocks(wasm, problem);
  maskByWgsl(wasm, problem);
  if (sink !== undefined) wasm.sink();
}

/** @internal The entries of bias and mask that a call was given, by the crate's names. */
export function entriesOf(problem: AttentionProblem, element: Element): Record<string, TensorData | Uint32Array> {
  const { bias, mask } = problem;
  return {
    ...bias === undefined ? {} : { bias: biasEntries(bias, counts('bias', bias, problem), element) },
    ...mask === undefined ? {} : { key_mask: maskWords(mask, counts('mask', mask, problem)) },
  };
}

function finite(name: string, value: unknown): number {
  if (Number.isFinite(Math.fround(number(name, value)))) return value as number;
  throw new InvalidProblemError(`${name} = ${shown(value)}; it must be a finite f32`);
}

/** Entries along each dimension of a bias or a mask. */
function counts(name: string, entries: Bias | Mask, problem: AttentionProblem): Counts {
  if (typeof entries !== 'object' || entries === null || ArrayBuffer.isView(entries) || entries instanceof GpuTensor) {
    throw new InvalidProblemError(`${name} is ${describe(entries)}; pass { data, shape }`);
  }
  const { batch, numHeads, seqlen, seqlenKv } = sizesOf(problem);
  const all = Object.entries({ batch, numHeads, seqlen, seqlenKv });
  const { shape = all.map(([, count]) => count) } = entries;
  if (!Array.isArray(shape) || shape.length !== 4) {
    throw new InvalidProblemError(`${name}.shape = ${shown(shape)}; it must be [batch or 1, numHeads or 1, seqlen or 1, seqlenKv or 1]`);
  }
  return all.map(([dimension, count], index) => {
    if (shape[index] === 1 || shape[index] === count) return shape[index];
    throw new InvalidProblemError(`${name}.shape[${index}] = ${shown(shape[index])}; it must be ${dimension} = ${count}, or 1`);
  }) as Counts;
}

/** The type that a bias is stored in. */
function storedAs({ data, element }: Bias, ofProblem: Element): Element {
  if (data === undefined) return element ?? 'f32';
  // What 16 bits mean, the problem says.
  const isBits = arrayName(data) === 'Uint16Array' && ofProblem !== 'f32';
  return tensorType({ 'bias.data': data }, element ?? (isBits ? ofProblem : undefined)).element;
}

function biasEntries(bias: Bias, counts: Counts, ofProblem: Element): TensorData {
  const { data } = bias;
  if (data === undefined) throw new InvalidTensorError('bias.data is undefined; pass its entries');
  storedAs(bias, ofProblem);
  checkCount('bias.data', data.length, counts);
  return data;
}

function maskWords({ data }: Mask, counts: Counts): Uint32Array | GpuTensor {
  const [batch, heads, rows, keys] = counts;
  const tag = data instanceof GpuTensor && data.element === 'u32' ? 'Uint32Array' : tagOf(data);
  if (tag === 'Uint32Array') {
    checkCount('mask.data', (data as Uint32Array | GpuTensor).length, [batch, heads, rows, Math.ceil(keys / 32)]);
    return data as Uint32Array | GpuTensor;
  }
  if (tag !== 'Uint8Array') {
    const found = data instanceof GpuTensor ? `a GpuTensor of ${data.element}` : describe(data);
    throw new InvalidTensorError(`mask.data is ${found}; pass a Uint8Array, or a Uint32Array or GpuTensor of packed bits`);
  }
  checkCount('mask.data', (data as Uint8Array).length, counts);
  return packMask(data as Uint8Array, keys);
}

function checkCount(name: string, found: number, counts: Counts): void {
  const needed = counts.reduce((product, count) => product * count);
  if (found === needed) return;
  throw new InvalidTensorError(`${name} has ${found} elements, but its shape [${counts.join(', ')}] needs ${needed}`);
}
