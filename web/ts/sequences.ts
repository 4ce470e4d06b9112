import { U32, checkOptions, describe, numbers, oneOf, shown, sizesOf, whole } from './checks.js';
import { InvalidProblemError, InvalidTensorError } from './errors.js';
import type { AttentionProblem, Element, KvCache, Lengths, Sums, TensorData } from './options.js';
import { GpuTensor, arrayName, noTensor } from './tensor.js';
import type { TensorElement } from './tensor.js';
import type { Problem } from './wasm.js';

/** What says how long sequences are, the crate's names, and of what they say it. */
const LENGTHS = [
  ['seqlensQ', 'seqlens_q', 'seqlen'], ['seqlensKv', 'seqlens_kv', 'seqlenKv'],
  ['cuSeqlensQ', 'cu_seqlens_q', 'seqlen'], ['cuSeqlensKv', 'cu_seqlens_kv', 'seqlenKv'],
] as const;

type LengthName = typeof LENGTHS[number][0];

function isNumbers(given: unknown): boolean {
  return Array.isArray(given) || ArrayBuffer.isView(given);
}

/** Whether lengths come with each call: all of them do if one does, and all over a cache. */
function areAtCall(problem: AttentionProblem): boolean {
  return problem.cache !== undefined || LENGTHS.some(([name]) => problem[name] !== undefined && !isNumbers(problem[name]));
}

/** @internal The lengths that come with each call of a prepared operation. */
export function lengthsOfCalls(problem: AttentionProblem): LengthName[] {
  return areAtCall(problem) ? LENGTHS.map(([name]) => name).filter((name) => problem[name] !== undefined) : [];
}

/** @internal Refuses numbers in a problem that is prepared and takes its lengths with each call. */
export function checkPrepared(problem: AttentionProblem): void {
  for (const name of lengthsOfCalls(problem)) {
    if (!isNumbers(problem[name])) continue;
    const why = problem.cache ? 'over a cache lengths come with each call' : 'other lengths come with each call';
    throw new InvalidProblemError(`${name} is given as numbers, but ${why}; prepare it with ${name.startsWith('cu') ? '{ total }' : 'true'}`);
  }
}

/** @internal Gives the problem its cache and the lengths of its sequences. */
export function setSequences(wasm: Problem, problem: AttentionProblem, element: Element): void {
  setCache(wasm, problem, element);
  const { batch, seqlen, seqlenKv } = sizesOf(problem);
  const { cuSeqlensQ, cuSeqlensKv, seqlensQ, seqlensKv, layout } = problem;
  for (const [name] of LENGTHS) checkKind(name, problem[name]);
  if (cuSeqlensKv !== undefined && cuSeqlensQ === undefined) {
    throw new InvalidProblemError('cuSeqlensKv is given without cuSeqlensQ; where K and V are packed, Q is packed too');
  }
  if (cuSeqlensKv !== undefined && problem.cache !== undefined) {
    throw new InvalidProblemError('cuSeqlensKv is given, but K and V are a cache, which is not packed; leave it out');
  }
  if (cuSeqlensQ !== undefined && layout === 'bhsd') {
    throw new InvalidProblemError("layout = 'bhsd', but packed sequences are [total, numHeads, headDim]: leave it out, or give strides");
  }
  if (areAtCall(problem)) {
    wasm.lengths_at_call(seqlensQ !== undefined, seqlensKv !== undefined);
    if (cuSeqlensQ !== undefined) {
      wasm.packed_at_call(totalOf('cuSeqlensQ', problem), cuSeqlensKv === undefined ? undefined : totalOf('cuSeqlensKv', problem));
    }
    return;
  }
  const known = (name: LengthName): number[] | undefined => problem[name] === undefined ? undefined : numbersOf(name, problem);
  const [ofQ, ofKv, sumsOfQ, sumsOfKv] = (['seqlensQ', 'seqlensKv', 'cuSeqlensQ', 'cuSeqlensKv'] as const).map(known);
  if (sumsOfQ) wasm.packed(Uint32Array.from(sumsOfQ), sumsOfKv && Uint32Array.from(sumsOfKv));
  if (!ofQ && !ofKv) return;
  // What there is room for, where nothing else is said.
  const all = (sums: number[] | undefined, length: number): number[] =>
    sums ? sums.slice(1).map((sum, index) => sum - sums[index]!) : new Array<number>(batch).fill(length);
  wasm.lengths(Uint32Array.from(ofQ ?? all(sumsOfQ, seqlen)), Uint32Array.from(ofKv ?? all(sumsOfKv, seqlenKv)));
}

/** @internal Refuses what is no cache. */
export function checkCache(cache: KvCache | undefined): void {
  if (cache === undefined) return;
  checkOptions('cache', cache, ['element', 'pageSize', 'numPages', 'maxPages']);
  oneOf('cache.element', cache.element, ['f32', 'f16', 'bf16', 'int8']);
}

function setCache(wasm: Problem, { cache, ...problem }: AttentionProblem, ofProblem: Element): void {
  if (cache === undefined) return;
  checkCache(cache);
  const { element = ofProblem, pageSize, numPages, maxPages } = cache;
  const count = (name: string, value: unknown): number | undefined => value === undefined ? undefined : whole(`cache.${name}`, value, U32);
  if ((pageSize === undefined) !== (numPages === undefined)) {
    throw new InvalidProblemError(`cache has ${pageSize === undefined ? 'numPages and no pageSize' : 'pageSize and no numPages'}; pages need both`);
  }
  if (maxPages !== undefined && pageSize === undefined) throw new InvalidProblemError('cache has maxPages and no pageSize; pages need both');
  if (problem.layout !== undefined && problem.layout !== 'bshd' && typeof problem.layout !== 'object') {
    throw new InvalidProblemError(`layout = ${shown(problem.layout)}, but K and V are a cache: leave it out, or give strides`);
  }
  wasm.cache(element, count('numPages', numPages), count('pageSize', pageSize) ?? 0, count('maxPages', maxPages));
}

/** @internal What the tensors of a cache hold. */
export function elementOfCache({ element }: KvCache, ofProblem: Element): TensorElement {
  return element === 'int8' ? 'u32' : element ?? ofProblem;
}

/** @internal Refuses what can be no lengths, nor sums of them. */
function checkKind(name: LengthName, given: Lengths | Sums | undefined): void {
  const isTotal = name.startsWith('cu');
  if (given === undefined || isNumbers(given) || given instanceof GpuTensor || !isTotal && given === true) return;
  if (isTotal && typeof given === 'object' && given !== null && 'total' in given) {
    checkOptions(name, given, ['total']);
    whole(`${name}.total`, given.total, U32);
    return;
  }
  throw new InvalidProblemError(`${name} = ${shown(given)}; it must be an array of numbers`);
}

/** Rows of a packed tensor. */
function totalOf(name: 'cuSeqlensQ' | 'cuSeqlensKv', problem: AttentionProblem): number {
  const sums = problem[name];
  if (isNumbers(sums)) return numbersOf(name, problem).at(-1)!;
  if (!(sums instanceof GpuTensor)) return (sums as { total: number }).total;
  const { numHeads, numHeadsKv, headDim } = sizesOf(problem);
  const { q, k } = problem as { q?: TensorData; k?: TensorData };
  const [tensor, called, heads] = name === 'cuSeqlensQ' ? [q, 'q', numHeads] as const : [k, 'k', numHeadsKv] as const;
  if (typeof problem.layout === 'object') {
    throw new InvalidProblemError(`${name} is on the GPU and layout gives strides, so nothing says how many rows there are; prepare it with { total }`);
  }
  const width = (problem.layout === 'packed-qkv' ? numHeads + 2 * numHeadsKv : heads) * headDim;
  const total = (tensor?.length ?? 0) / width;
  if (Number.isInteger(total)) return total;
  throw new InvalidTensorError(`${called} has ${tensor?.length ?? 0} elements, which are no rows of ${width}`);
}

function numbersOf(name: LengthName, problem: AttentionProblem): number[] {
  const { batch, seqlen, seqlenKv } = sizesOf(problem);
  const most = name.endsWith('Q') ? seqlen : seqlenKv;
  if (!name.startsWith('cu')) return numbers(name, problem[name], { batch }, (name, value) => whole(name, value, most));
  return sumsOf(name, problem[name], batch, [name.endsWith('Q') ? 'seqlen' : 'seqlenKv', most]);
}

/** @internal Where packed sequences begin: whole numbers that start at 0 and never fall. */
export function sumsOf(name: string, given: unknown, batch: number, [of, most]: [string, number]): number[] {
  const sums = numbers(name, given, { 'batch + 1': batch + 1 }, (name, value) => whole(name, value, U32));
  if (sums[0] !== 0) throw new InvalidProblemError(`${name}[0] = ${sums[0]}; it must be 0`);
  sums.forEach((sum, index) => {
    const before = sums[index - 1] ?? 0;
    if (sum < before) throw new InvalidProblemError(`${name}[${index}] = ${sum}, less than ${before} before it; sums never fall`);
    if (sum - before > most) throw new InvalidProblemError(`${name} gives sequence ${index - 1} ${sum - before} rows; shape.${of} = ${most}`);
  });
  return sums;
}

/** @internal Lengths and page table that a call was given, by the crate's names. */
export function tablesOf(problem: AttentionProblem & { pageTable?: unknown }): Record<string, Uint32Array | GpuTensor> {
  const { batch, seqlenKv } = sizesOf(problem);
  const tables: Record<string, Uint32Array | GpuTensor> = {};
  for (const name of lengthsOfCalls(problem)) {
    const given = problem[name];
    if (!isNumbers(given) && !(given instanceof GpuTensor)) {
      throw new InvalidProblemError(`${name} = ${shown(given)} is for prepare; pass the numbers, or a GpuTensor of u32`);
    }
    const [, crates] = LENGTHS.find(([other]) => other === name)!;
    tables[crates] = given instanceof GpuTensor ? words(name, given) : Uint32Array.from(numbersOf(name, problem));
  }
  const pageTable = pageTableOf(problem.cache, problem.pageTable);
  if (pageTable === undefined) return tables;
  tables['page_table'] = pageTable;
  const lengths = tables['seqlens_kv'];
  if (!(lengths instanceof GpuTensor)) checkPages(problem.cache!, pageTable, batch, seqlenKv, (index) => [0, lengths?.[index] ?? seqlenKv]);
  return tables;
}

/** @internal A page table, where there are pages. */
export function pageTableOf(cache: KvCache | undefined, given: unknown): Uint32Array | GpuTensor | undefined {
  if (cache?.pageSize === undefined) {
    if (given === undefined) return undefined;
    throw new InvalidProblemError('pageTable is given, but cache has no pageSize and numPages');
  }
  return words('pageTable', given);
}

/** @internal Refuses pages that positions need and that do not exist, where the numbers are known. */
export function checkPages(
  { pageSize = 1, numPages = 0, maxPages }: KvCache, table: Uint32Array | GpuTensor, batch: number, seqlenKv: number,
  positions: (index: number) => readonly [number, number],
): void {
  if (table instanceof GpuTensor) return;
  const entries = maxPages ?? Math.ceil(seqlenKv / Math.max(1, pageSize));
  if (table.length !== batch * entries) return;
  for (let index = 0; index < batch; index++) {
    const [first, end] = positions(index);
    for (let entry = Math.floor(first / pageSize); entry < Math.ceil(end / pageSize) && end > first; entry++) {
      const page = table[index * entries + entry]!;
      if (page >= numPages) {
        throw new InvalidProblemError(`pageTable: entry ${entry} of sequence ${index} is page ${page}; there are ${numPages} pages`);
      }
    }
  }
}

/** @internal u32 numbers of a call. */
export function words(name: string, given: unknown): Uint32Array | GpuTensor {
  if (given instanceof GpuTensor) {
    if (given.element === 'u32') return given;
    throw new InvalidTensorError(`${name} holds ${given.element}, but u32 is expected`);
  }
  if (arrayName(given) === 'Uint32Array') return given as Uint32Array;
  throw new InvalidTensorError(`${name} is ${noTensor(given)}; pass a Uint32Array, or a GpuTensor of u32`);
}
