import { U32, checkOptions, has, numbers, oneOf, shown, sizesOf, whole } from './checks.js';
import { InvalidProblemError, InvalidTensorError } from './errors.js';
import type { AppendOptions, AppendProblem, TensorData } from './options.js';
import { checkCache, checkPages, pageTableOf, sumsOf, words } from './sequences.js';
import { GpuTensor } from './tensor.js';
import { Append, type Problem } from './wasm.js';

/** @internal What an append does beside its shape, element and cache. */
export interface AppendTask {
  rotary: { isInterleaved: boolean; dim: number; positions: number | null } | null;
  rotateQ: 'in-place' | 'apart' | null;
  hasSlots: boolean;
  writesLengths: boolean;
  /** Rows of packed tokens. */
  total: number | null;
}

type Asked = AppendProblem & Partial<AppendOptions>;

/** @internal The options of an append's problem. */
export const APPEND = Object.keys({
  shape: 0, element: 0, cache: 0, rotary: 0, rotateQ: 0, slotMapping: 0, cuSeqlensNew: 0, newCacheSeqlens: 0,
} satisfies Record<keyof AppendProblem, 0>);

/** @internal Reads the problem; tensors of a call say how many positions and rows there are, where nothing else does. */
export function appendTask(problem: Asked): AppendTask {
  const { headDim, numHeadsKv, batch, seqlen } = sizesOf(problem);
  if (problem.cache === undefined) throw new InvalidProblemError('cache is missing: pass {} for one like the new K and V, or { element, pageSize, numPages }');
  checkCache(problem.cache);
  const rotateQ = oneOf('rotateQ', problem.rotateQ, ['in-place', 'apart'] as const) ?? null;
  const writesLengths = oneOf('newCacheSeqlens', problem.newCacheSeqlens, [true, false]) ?? false;
  const { slotMapping, cuSeqlensNew, rotary } = problem;
  let total: number | null = null;
  if (cuSeqlensNew instanceof GpuTensor) total = rowsOf(problem.k, numHeadsKv * headDim);
  else if (typeof cuSeqlensNew === 'object' && has(cuSeqlensNew, 'total')) total = whole('cuSeqlensNew.total', (cuSeqlensNew as { total: number }).total, U32);
  else if (cuSeqlensNew !== undefined) total = sumsOf('cuSeqlensNew', cuSeqlensNew, batch, ['seqlen', seqlen]).at(-1)!;
  return { rotary: rotary === undefined ? null : rotaryOf(problem, headDim), rotateQ, hasSlots: slotMapping !== undefined, writesLengths, total };
}

function rotaryOf({ rotary, rotaryCos }: Asked, headDim: number): AppendTask['rotary'] {
  checkOptions('rotary', rotary, ['pairs', 'dim', 'positions', 'perToken']);
  const { pairs, dim: given, positions, perToken } = rotary!;
  if (oneOf('rotary.pairs', pairs, ['halves', 'interleaved'] as const) === undefined) {
    throw new InvalidProblemError("rotary.pairs is missing; it is 'halves' or 'interleaved'");
  }
  const dim = given === undefined ? headDim : whole('rotary.dim', given, U32);
  if (oneOf('rotary.perToken', perToken, [true, false])) {
    if (positions !== undefined) throw new InvalidProblemError('rotary has perToken and positions; leave one out');
    return { isInterleaved: pairs === 'interleaved', dim, positions: null };
  }
  const fromTable = Math.floor((rotaryCos?.length ?? 0) / Math.max(1, dim / 2));
  const all = positions === undefined ? fromTable : whole('rotary.positions', positions, U32);
  if (all === 0) throw new InvalidProblemError('rotary.positions is missing; it says how many rows the tables have');
  return { isInterleaved: pairs === 'interleaved', dim, positions: all };
}

function rowsOf(k: TensorData | undefined, width: number): number {
  const rows = (k?.length ?? 0) / width;
  if (Number.isInteger(rows)) return rows;
  throw new InvalidTensorError(`k has ${k?.length ?? 0} elements, which are no rows of ${width}`);
}

/** @internal The append as WebAssembly has it. */
export function toAppend(problem: Problem, { rotary, rotateQ, hasSlots, writesLengths, total }: AppendTask): Append {
  const append = new Append(problem);
  if (rotary) append.rotary(rotary.isInterleaved, rotary.dim, rotary.positions ?? undefined);
  if (rotateQ) append.rotated_q(rotateQ === 'in-place');
  if (hasSlots) append.slot_mapping();
  if (writesLengths) append.new_cache_seqlens();
  if (total !== null) append.packed_tokens(total);
  return append;
}

/** @internal What else a call takes, by the package's names: always, and where the problem has it. */
export function tensorsOfAppend({ rotary, rotateQ, hasSlots, writesLengths, total }: AppendTask, isPaged: boolean): string[] {
  const needsLengths = !hasSlots || writesLengths || rotary !== null && rotary.positions !== null;
  return [
    'k', 'v', 'kCache', 'vCache', ...needsLengths ? ['cacheSeqlens'] : [], ...isPaged ? ['pageTable'] : [], ...hasSlots ? ['slotMapping'] : [],
    ...total === null ? [] : ['cuSeqlensNew'], ...rotary ? ['rotaryCos', 'rotarySin'] : [], ...rotateQ ? ['q'] : [],
  ];
}

/** @internal What it writes beside the cache. */
export function outputsOfAppend({ rotateQ, writesLengths }: AppendTask): string[] {
  return [...rotateQ === 'apart' ? ['qRotated'] : [], ...writesLengths ? ['newCacheSeqlens'] : []];
}

/** @internal Lengths, pages, slots and sums that a call was given, by the crate's names; those that are numbers are checked. */
export function tablesOfAppend(options: AppendOptions, task: AppendTask): Record<string, Uint32Array | GpuTensor> {
  const { batch, seqlen, seqlenKv } = sizesOf(options);
  const { cache, cuSeqlensNew, slotMapping } = options;
  const needed = tensorsOfAppend(task, cache.pageSize !== undefined);
  const tables: Record<string, Uint32Array | GpuTensor> = {};
  const sums = task.total === null || cuSeqlensNew instanceof GpuTensor ? undefined
    : sumsOf('cuSeqlensNew', cuSeqlensNew, batch, ['seqlen', seqlen]);
  if (task.total !== null) tables['cu_seqlens_new'] = sums ? Uint32Array.from(sums) : words('cuSeqlensNew', cuSeqlensNew);
  const tokens = (index: number): number => sums ? sums[index + 1]! - sums[index]! : task.total === null ? seqlen : 0;
  let lengths: number[] | undefined;
  if (needed.includes('cacheSeqlens')) {
    const given = options.cacheSeqlens;
    if (given instanceof GpuTensor) {
      tables['cache_seqlens'] = words('cacheSeqlens', given);
    } else {
      lengths = numbers('cacheSeqlens', given, { batch }, (name, value) => whole(name, value, seqlenKv));
      lengths.forEach((length, index) => {
        if (length + tokens(index) <= seqlenKv || task.hasSlots) return;
        throw new InvalidProblemError(`cacheSeqlens: sequence ${index} has ${length} positions and ${tokens(index)} new; the cache has room for ${seqlenKv}`);
      });
      tables['cache_seqlens'] = Uint32Array.from(lengths);
    }
  }
  const pageTable = pageTableOf(cache, options.pageTable);
  if (pageTable !== undefined) {
    tables['page_table'] = pageTable;
    if (lengths && !task.hasSlots) checkPages(cache, pageTable, batch, seqlenKv, (index) => [lengths[index]!, lengths[index]! + tokens(index)]);
  }
  if (task.hasSlots) {
    if (slotMapping === true) throw new InvalidProblemError('slotMapping = true is for prepareAppend; pass the slots');
    const slots = tables['slot_mapping'] = words('slotMapping', slotMapping);
    const count = cache.pageSize === undefined ? batch * seqlenKv : cache.pageSize * (cache.numPages ?? 0);
    if (!(slots instanceof GpuTensor)) {
      const wrong = slots.find((slot) => slot !== U32 && slot >= count);
      if (wrong !== undefined) throw new InvalidProblemError(`slotMapping has slot ${shown(wrong)}; the cache has ${count} slots, and ${U32} stores nothing`);
    }
  }
  return tables;
}
