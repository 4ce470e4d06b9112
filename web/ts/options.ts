import { U32, checkOptions, describe, number, oneOf, seedOf, shown, sizesOf, whole } from './checks.js';
import { InvalidOptionError, InvalidProblemError, fromWasm } from './errors.js';
import type { AppendTask } from './append.js';
import { modify } from './modifiers.js';
import { setSequences } from './sequences.js';
import { checkSignal } from './stop.js';
import { GpuTensor } from './tensor.js';
import type { Float16ArrayLike } from './tensor.js';
import { inOptions } from './wgsl.js';
import { Problem } from './wasm.js';

/** The type that Q, K, V and O are stored in; all arithmetic is f32. */
export type Element = 'f32' | 'f16' | 'bf16';

/** Lengths, heads and head dimensions: whole numbers. */
export interface Shape {
  /** Independent sequences; 1 if left out. */
  batch?: number | undefined;
  /** Heads of Q and O; 1 if left out. */
  numHeads?: number | undefined;
  /** Heads of K and V, of which `numHeads` is a multiple (grouped-query attention); `numHeads` if left out. */
  numHeadsKv?: number | undefined;
  /** Rows of Q, and of K and V unless `seqlenKv` is given. */
  seqlen: number;
  /** Rows of K and V; `seqlen` if left out. */
  seqlenKv?: number | undefined;
  /** Width of Q and K, 1 to 256. */
  headDim: number;
  /** Width of V and O, 1 to 256; `headDim` if left out. */
  headDimV?: number | undefined;
}

/** Where (batch, row, head, 0) of a tensor lies: `offset + batch · batch + row · row + head · head`, in elements. */
export interface Strides {
  /** First element; 0 if left out. */
  offset?: number | undefined;
  /** Elements from one sequence to the next. */
  batch: number;
  /** Elements from one row (token) to the next. */
  row: number;
  /** Elements from one head to the next. */
  head: number;
}

/** Dropout on the probabilities, by Philox4x32-10. */
export interface Dropout {
  /** The chance that a probability is dropped, at least 0 and below 1. */
  p: number;
  /** The mask depends on seed, offset and position alone; 0 if left out. Up to 64 bits. */
  seed?: number | bigint | undefined;
  /** A second number that the mask depends on, up to 32 bits; 0 if left out. */
  offset?: number | undefined;
}

/**
 * How many entries a bias or a mask has along each dimension, whatever the layout of Q: as many as the problem, or 1, which is
 * repeated. `[1, 1, seqlen, seqlenKv]` is one matrix for all sequences and heads, `[batch, 1, 1, seqlenKv]` a row for each
 * sequence.
 */
export type EntryShape = readonly [batch: number, numHeads: number, seqlen: number, seqlenKv: number];

/** An entry for each sequence, head of Q, row and key. */
export interface Entries {
  /** `[batch, numHeads, seqlen, seqlenKv]`, all of the problem's, if left out. */
  shape?: EntryShape | undefined;
}

/** What is added to the scores. Entries of −∞ give scores of −∞. */
export interface Bias extends Entries {
  /** The stored type: `f32`, or the problem's element. Left out, it is that of `data`. */
  element?: Element | undefined;
  /** The entries, contiguous in `shape`. `plan` does without. */
  data?: TensorData | undefined;
}

/** Which keys each row may see, beside `causal`, `window` and lengths. */
export interface Mask extends Entries {
  /**
   * The entries, contiguous in `shape`: a byte for each, not 0 where the row may attend (`Uint8Array`); or a bit for each, as
   * `packMask` has them (`Uint32Array`, or a tensor of it on the GPU). `plan` does without.
   */
  data?: MaskData | undefined;
}

/** The entries of a mask: bytes, packed bits, or packed bits on the GPU. */
export type MaskData = Uint8Array | Uint32Array | GpuTensor;

/**
 * Block-sparse attention: kernels visit only the tiles in which some row sees some key. p is the position of row i,
 * `i + seqlenKv − seqlen` (with the lengths of its sequence), and j the key. All other masks still apply.
 */
export type BlockMask =
  /** |p − j| ≤ window */
  | { pattern: 'local'; window: number }
  /** |p − j| ≤ window, or j < global, or p < global */
  | { pattern: 'longformer'; window: number; global: number }
  /** |p − j| < step, or p − j is a multiple of step */
  | { pattern: 'strided'; step: number }
  /** j < length, or j ≤ p */
  | { pattern: 'prefix'; length: number }
  /** Equal ids at p and j: `[seqlenKv]`, or `[batch, seqlenKv]` one sequence behind the other. */
  | { pattern: 'documents'; ids: readonly number[] | Uint32Array | Int32Array }
  /** Blocks of 64 × 64: a row of blocks sees its own column, and those whose numbers differ in one bit. */
  | { pattern: 'butterfly' }
  /** Blocks of 64 × 64: neighbours, the first and last row and column, and three more that the seed (0 if left out) draws. */
  | { pattern: 'bigbird'; seed?: number | bigint | undefined }
  /** Blocks of your own. */
  | OwnBlocks;

/** A kind for each block. */
export interface OwnBlocks {
  pattern: 'blocks';
  /** Rows and keys of a block; `[128, 128]` if left out. */
  blockSize?: readonly [rows: number, keys: number] | undefined;
  /**
   * `[batch or 1, numHeads or 1, ⌈seqlen / rows⌉, ⌈seqlenKv / keys⌉]` kinds, contiguous: 0 is not visited, 1 shows what the other
   * masks show, 2 is as 1 but `mask` and `maskMod` hide nothing in it and are not asked.
   */
  kinds: readonly number[] | Uint8Array;
  /** Sequences and heads of `kinds`, each that of the problem or 1; `[1, 1]` if left out. */
  shape?: readonly [batch: number, numHeads: number] | undefined;
}

/** How K and V of past tokens are kept. */
export interface KvCache {
  /**
   * The stored type, whatever that of Q; the problem's element if left out. `int8` is u32 words on the GPU: each row of a head is an f32
   * scale, then its bytes, four in a word, 1 + ⌈dim / 4⌉ words.
   */
  element?: Element | 'int8' | undefined;
  /** Positions of a page. Without pages the cache is `[batch, seqlenKv, numHeadsKv, dim]`. */
  pageSize?: number | undefined;
  /** Pages that there are, for all sequences together: the cache is `[numPages, pageSize, numHeadsKv, dim]`. */
  numPages?: number | undefined;
  /** Entries of the page table for each sequence; as many as `seqlenKv` needs if left out. */
  maxPages?: number | undefined;
}

/** A number for each sequence. On the GPU (u32) the call reads it when it runs. `prepare` and `plan` take `true` for numbers of each call. */
export type Lengths = readonly number[] | Uint32Array | Int32Array | GpuTensor | true;

/**
 * Where packed sequences begin, and where the last one ends: `[batch + 1]`, from 0. On the GPU (u32) the call reads it when it runs.
 * `prepare` and `plan` take `{ total }`, rows of the tensor, for sums of each call.
 */
export type Sums = readonly number[] | Uint32Array | Int32Array | GpuTensor | { total: number };

/** Data for `scoreMod` and `maskMod`. */
export type Aux = Float32Array | Uint32Array | GpuTensor;

/**
 * `O = dropout(softmax(mask(S))) V` with `S = scoreMod(softcap(softmaxScale · Q Kᵀ)) + ALiBi + bias`, without the tensors.
 *
 * Q is `[batch, seqlen, numHeads, headDim]`, K `[batch, seqlenKv, numHeadsKv, headDim]`,
 * V `[batch, seqlenKv, numHeadsKv, headDimV]` and O `[batch, seqlen, numHeads, headDimV]`, unless `layout` says otherwise.
 */
export interface AttentionProblem {
  shape: Shape;
  /** The stored type. Left out, it is that of the tensors: `Float32Array` is f32, `Float16Array` and `Uint16Array` f16. */
  element?: Element | undefined;
  /**
   * `bshd` (the default), `bhsd` (PyTorch's), `packed-qkv` (views of one buffer, the output of a fused projection: pass it
   * three times), or strides for each tensor.
   */
  layout?: 'bshd' | 'bhsd' | 'packed-qkv' | { q: Strides; k: Strides; v: Strides; o: Strides } | undefined;
  /**
   * Row i sees the keys up to i. With fewer or more keys than rows, `true` and `bottom-right` let the last row see the
   * last key (FlashAttention), `top-left` the first row the first key (PyTorch, ONNX).
   */
  causal?: boolean | 'bottom-right' | 'top-left' | undefined;
  /** Row i sees the keys from i − left to i + right, both included; `null` is no limit. */
  window?: readonly [left: number | null, right: number | null] | undefined;
  /** The factor on Q Kᵀ; 1/√headDim if left out. */
  softmaxScale?: number | undefined;
  /** S becomes softcap · tanh(S / softcap), before ALiBi and bias. 0 is none, as if left out. */
  softcap?: number | undefined;
  /**
   * A function in your own WGSL that changes S, after softcap and before ALiBi and bias:
   * `fn score_mod(score: f32, batch: u32, head: u32, q_idx: u32, kv_idx: u32) -> f32`, with the functions, constants, structs and
   * aliases that it needs. `q_idx` and `kv_idx` count within the sequence.
   */
  scoreMod?: string | undefined;
  /**
   * Its gradient, which `backward` needs, if `scoreMod` does not define it:
   * `fn score_mod_grad(grad: f32, score: f32, batch: u32, head: u32, q_idx: u32, kv_idx: u32) -> f32`. `score` is what came in. It
   * may call what `scoreMod` defines.
   */
  scoreModGrad?: string | undefined;
  /**
   * A function in your own WGSL that hides keys:
   * `fn mask_mod(batch: u32, head: u32, q_idx: u32, kv_idx: u32) -> bool`, true where the row may attend.
   */
  maskMod?: string | undefined;
  /**
   * One array that `scoreMod` and `maskMod` read as `aux[i]`: f32, or u32 if it is a `Uint32Array` or a tensor of u32. An index past
   * its end reads the last entry.
   */
  aux?: Aux | undefined;
  /** The most turns that all loops of one call of `scoreMod` or `maskMod` take; 4096 if left out. */
  maxTurns?: number | undefined;
  /** ALiBi with the usual slopes: S becomes S − slope · |i + offset − j|, with the offset of the diagonal of `causal`. */
  alibi?: boolean | undefined;
  /** ALiBi with these slopes instead: `[numHeads]`, or `[batch, numHeads]`. */
  alibiSlopes?: readonly number[] | Float32Array | undefined;
  /** Added to the scores. */
  bias?: Bias | undefined;
  /** Hides keys from rows: a boolean mask. */
  mask?: Mask | undefined;
  /** Block-sparse attention. */
  blockMask?: BlockMask | undefined;
  /**
   * A logit for each head of Q, f32 `[numHeads]`, that joins the softmax's sum and has no value:
   * `LSE = ln(Σ exp(S) + exp(sink))`. `plan` takes `true` for it.
   */
  sink?: Float32Array | GpuTensor | true | undefined;
  /**
   * How many rows of each sequence exist, `[batch]`, at most `seqlen`, which it is for all if left out. O of the others is 0
   * and LSE −Infinity, and they have no gradient.
   */
  seqlensQ?: Lengths | undefined;
  /**
   * How many keys of each sequence exist, `[batch]`, at most `seqlenKv`, which it is for all if left out. The diagonal of
   * `causal` is that of the sequence: its last row sees its last key, so padded self-attention needs both lengths.
   */
  seqlensKv?: Lengths | undefined;
  /**
   * Packs Q, and all that has its rows, without padding: `[total, numHeads, headDim]`, LSE `[numHeads, total]`. Sequence b has the rows
   * from `cuSeqlensQ[b]` to before `cuSeqlensQ[b + 1]`. `shape.seqlen` is the most that one may have.
   */
  cuSeqlensQ?: Sums | undefined;
  /** The same for K and V, `[total, numHeadsKv, headDim]`; `shape.seqlenKv` is the most. */
  cuSeqlensKv?: Sums | undefined;
  /** K and V are a cache that `append` fills. For `forward` and `prepare`; all lengths then come with each call. */
  cache?: KvCache | undefined;
  /** None if left out. */
  dropout?: Dropout | undefined;
  /** `flash` (the default), or `standard`: the same meaning in three kernels that write the score matrix to memory. */
  algorithm?: 'flash' | 'standard' | undefined;
}

/** Tensors that one call takes: typed arrays, or tensors that are on the GPU already. */
export type TensorData = Float32Array | Uint16Array | Float16ArrayLike | GpuTensor;

/** How a call behaves, not what it computes. */
export interface RunOptions {
  /** Ends the call at once, whatever it does; it then throws the signal's reason. Dispatches that the GPU has already run to their end. */
  signal?: AbortSignal | undefined;
  /** Hears of long runs: dispatches done, and how many there are. */
  onProgress?: ((progress: { completed: number; total: number }) => void) | undefined;
  /**
   * Long problems run as many short dispatches, so that the page stays alive and no watchdog resets the GPU. A number
   * is the most floating-point operations in one dispatch; left out, as much as this GPU does in about 40 ms. `false`
   * runs everything at once.
   */
  boundedWork?: number | false | undefined;
  /** `true` measures the time on the GPU alone, `stats.gpuMilliseconds`, where the device has `timestamp-query`. */
  gpuTime?: boolean | undefined;
}

/** Everything that one call takes. */
export interface ForwardOptions<T extends TensorData = TensorData> extends AttentionProblem, RunOptions {
  /** Queries. */
  q: T;
  /** Keys. */
  k: T;
  /** Values. */
  v: T;
  /** The page of each sequence's positions, where the cache has pages: u32 `[batch, maxPages]`. */
  pageTable?: Uint32Array | GpuTensor | undefined;
}

/** Rotary embeddings: a pair (x, y) of a row's first `dim` dimensions becomes (x·cos − y·sin, x·sin + y·cos). */
export interface Rotary {
  /** Dimensions m and m + dim / 2 are a pair (Llama), or 2m and 2m + 1 (GPT-J). */
  pairs: 'halves' | 'interleaved';
  /** Dimensions that are turned: even; `headDim` if left out. */
  dim?: number | undefined;
  /** Positions that the tables have. `append` takes it from `rotaryCos`. */
  positions?: number | undefined;
  /** `true`: the tables have a row for each new token, not for each position. */
  perToken?: boolean | undefined;
}

/** New keys and values, and the cache that they go to. */
export interface AppendProblem {
  /** `seqlen` new tokens of each sequence, `seqlenKv` positions that each has in the cache. */
  shape: Shape;
  /** The type of the new K and V, and of Q. Left out, it is that of the tensors. */
  element?: Element | undefined;
  /** The cache. */
  cache: KvCache;
  /** Turns the new K. */
  rotary?: Rotary | undefined;
  /** Turns Q too: over itself, or into a tensor `qRotated`. */
  rotateQ?: 'in-place' | 'apart' | undefined;
  /**
   * Says by slots where tokens go, not by lengths: u32 `[batch, seqlen]`, or `[total]` of packed tokens. Slot s is row s % pageSize of
   * page ⌊s / pageSize⌋, where without pages a sequence is a page. 0xffffffff stores nothing. `prepareAppend` takes `true`.
   */
  slotMapping?: Uint32Array | GpuTensor | true | undefined;
  /** Packed tokens: Q, K and V are `[total, heads, dim]`. `shape.seqlen` is the most that a sequence may have. */
  cuSeqlensNew?: Sums | undefined;
  /** `true` gives the lengths after it, u32 `[batch]`. */
  newCacheSeqlens?: boolean | undefined;
}

/** Everything that one append takes. Token i of sequence b goes to position `cacheSeqlens[b] + i`. */
export interface AppendOptions extends AppendProblem, Omit<RunOptions, 'boundedWork'> {
  /** New keys, `[batch, seqlen, numHeadsKv, headDim]`. */
  k: TensorData;
  /** New values. */
  v: TensorData;
  /** The cache of keys, which is written; for `int8` words, `GpuTensor<'u32'>`. */
  kCache: GpuTensor;
  /** The cache of values. */
  vCache: GpuTensor;
  /** Positions that each sequence has before it, `[batch]`. */
  cacheSeqlens?: readonly number[] | Uint32Array | Int32Array | GpuTensor | undefined;
  /** The page of each sequence's positions, where the cache has pages: u32 `[batch, maxPages]`. */
  pageTable?: Uint32Array | GpuTensor | undefined;
  /** Cosines, f32 `[positions, dim / 2]`, or a row for each new token. */
  rotaryCos?: Float32Array | GpuTensor | undefined;
  /** Sines, likewise. */
  rotarySin?: Float32Array | GpuTensor | undefined;
  /** Queries that are turned, `[batch, seqlen, numHeads, headDim]`. */
  q?: TensorData | undefined;
}

/** Everything that one backward call takes; the problem, seed and offset of dropout included, is that of the forward call. */
export interface BackwardOptions<T extends TensorData = TensorData> extends AttentionProblem, RunOptions {
  /** Queries. */
  q: T;
  /** Keys. */
  k: T;
  /** Values. */
  v: T;
  /** The output of the forward call. */
  o: TensorData;
  /** The log-sum-exp of the forward call. */
  lse: TensorData;
  /** The gradient of O. */
  dO: TensorData;
  /** The gradient of LSE, f32, where LSE was used for more than this. */
  dLse?: TensorData | undefined;
  /** `f32` stores dQ, dK and dV in the type that they are summed in, whatever that of Q, K and V. */
  gradientElement?: 'f32' | undefined;
  /** `true` computes the gradient of `bias` too. */
  dBias?: boolean | undefined;
}

/** What a call of `probabilities` takes; the problem is that of the forward call. */
export interface ProbabilitiesOptions<T extends TensorData = TensorData> extends AttentionProblem, RunOptions {
  /** Queries. */
  q: T;
  /** Keys. */
  k: T;
  /** The log-sum-exp of the forward call, f32. */
  lse: TensorData;
  /** The heads of Q from the first, up to and without the end; all if left out. */
  heads?: readonly [first: number, end: number] | undefined;
  /** The rows of each head, in the same way. */
  rows?: readonly [first: number, end: number] | undefined;
}

/** @internal One of the operations, with all that tells it from the others. */
export type Task =
  | { direction: 'forward' | 'backward' }
  | { direction: 'append'; append: AppendTask }
  | { direction: 'probabilities'; heads: readonly [number, number]; rows: readonly [number, number] };

/** @internal What of dropout may change from call to call. */
export function dropoutSeed({ seed = 0, offset = 0 }: Partial<Dropout> = {}): { seed: bigint; offset: number } {
  return {
    seed: seedOf('dropout.seed', seed),
    offset: whole('dropout.offset', offset, U32),
  };
}

/** @internal The options of a problem. TypeScript refuses this list if one is missing. */
export const PROBLEM = Object.keys({
  shape: 0, element: 0, layout: 0, causal: 0, window: 0, softmaxScale: 0, softcap: 0, scoreMod: 0, scoreModGrad: 0, maskMod: 0, aux: 0,
  maxTurns: 0, alibi: 0, alibiSlopes: 0, bias: 0, mask: 0, blockMask: 0, sink: 0, seqlensQ: 0, seqlensKv: 0, cuSeqlensQ: 0,
  cuSeqlensKv: 0, cache: 0, dropout: 0, algorithm: 0, dBias: 0, gradientElement: 0,
} satisfies Record<keyof Asked, 0>);

/** @internal How a call behaves. */
export const RUN = Object.keys({
  signal: 0, onProgress: 0, boundedWork: 0, gpuTime: 0, output: 0,
} satisfies Record<keyof RunOptions | 'output', 0>);

/** @internal The options of all calls: one object may serve a forward call and its backward call. */
export const FOR_CALLS = [...PROBLEM, ...RUN, 'q', 'k', 'v', 'o', 'lse', 'dO', 'dLse', 'heads', 'rows', 'pageTable', 'stats'];

/** @internal Refuses what says nothing of how a call shall behave; throws the reason of a signal that is aborted. */
export function checkCall({ signal, onProgress, boundedWork, gpuTime, output }: RunOptions & { output?: unknown }): void {
  oneOf('output', output, ['gpu', 'array']);
  oneOf('gpuTime', gpuTime, [true, false]);
  if (onProgress !== undefined && typeof onProgress !== 'function') {
    throw new InvalidOptionError(`onProgress is ${describe(onProgress)}; pass a function`);
  }
  const isBound = typeof boundedWork === 'number' && boundedWork >= 1 && boundedWork <= Number.MAX_SAFE_INTEGER;
  if (boundedWork !== undefined && boundedWork !== false && !isBound) {
    throw new InvalidOptionError(`boundedWork = ${shown(boundedWork)}; it is a number of operations from 1, or false for no bound`);
  }
  checkSignal(signal);
}

/** @internal Whether the layout is one whose tensors have one length each, without gaps. */
export function isDense(problem: AttentionProblem): boolean {
  return problem.layout === undefined || problem.layout === 'bshd' || problem.layout === 'bhsd';
}

/** @internal A problem, and what of it only gradients have. */
export type Asked = AttentionProblem & Pick<Partial<BackwardOptions>, 'gradientElement' | 'dBias'>;

const TENSORS = ['q', 'k', 'v', 'o'] as const;

/** Options that are objects, and what is in them. */
function checkParts({ shape, dropout, bias, mask, layout, element }: Asked): void {
  checkOptions('shape', shape, ['batch', 'numHeads', 'numHeadsKv', 'seqlen', 'seqlenKv', 'headDim', 'headDimV']);
  oneOf('element', element, ['f32', 'f16', 'bf16']);
  if (dropout !== undefined) {
    checkOptions('dropout', dropout, ['p', 'seed', 'offset']);
    dropoutSeed(dropout);
  }
  if (hasEntries(bias)) checkOptions('bias', bias, ['data', 'shape', 'element']);
  if (hasEntries(mask)) checkOptions('mask', mask, ['data', 'shape']);
  if (typeof layout !== 'object') return;
  checkOptions('layout', layout, TENSORS);
  for (const tensor of TENSORS) checkOptions(`layout.${tensor}`, layout[tensor], ['offset', 'batch', 'row', 'head']);
}

/** What else a bias or a mask may be is refused where it is read. */
function hasEntries(value: unknown): boolean {
  return typeof value === 'object' && value !== null && !ArrayBuffer.isView(value) && !Array.isArray(value) && !(value instanceof GpuTensor);
}

/** @internal The problem as WebAssembly has it; what its numbers cannot say is refused here. */
export function toWasm(problem: Asked, element: Element, maxFlops: number | undefined): Problem {
  const { batch, numHeads, numHeadsKv, seqlen, seqlenKv, headDim, headDimV } = sizesOf(problem);
  checkParts(problem);
  const wasm = new Problem(batch, numHeads, numHeadsKv, seqlen, seqlenKv, headDim, headDimV);
  try {
    wasm.element(element);
    const { layout = 'bshd', causal, window, softmaxScale, dropout, algorithm } = problem;
    if (typeof layout !== 'string' && typeof layout !== 'object') {
      throw new InvalidProblemError(`layout = ${shown(layout)}; it is 'bshd', 'bhsd', 'packed-qkv' or strides`);
    }
    if (typeof layout === 'object') {
      for (const tensor of TENSORS) {
        const { offset = 0, batch, row, head } = layout[tensor];
        const strides = Object.entries({ offset, batch, row, head });
        const [a, b, c, d] = strides.map(([name, value]) => whole(`layout.${tensor}.${name}`, value, Number.MAX_SAFE_INTEGER));
        wasm.strides(tensor, a!, b!, c!, d!);
      }
    } else {
      wasm.layout(layout);
    }
    if (![undefined, true, false, 'bottom-right', 'top-left'].includes(causal)) {
      throw new InvalidProblemError(`causal = ${shown(causal)}; it is true, false, 'bottom-right' or 'top-left'`);
    }
    if (causal) wasm.causal(causal === 'top-left');
    if (window !== undefined) {
      if (!Array.isArray(window) || window.length !== 2) throw new InvalidProblemError(`window = ${shown(window)}; it is a pair [left, right], of whole numbers or null`);
      const [left, right] = window.map((value, side) =>
        value === null || value === Infinity ? undefined : whole(`window[${side}]`, value, U32));
      wasm.window(left, right);
    }
    if (softmaxScale !== undefined) wasm.softmax_scale(number('softmaxScale', softmaxScale));
    modify(wasm, problem, element);
    setSequences(wasm, problem, element);
    if (dropout !== undefined) wasm.dropout(number('dropout.p', dropout.p));
    if (algorithm === 'standard') wasm.standard();
    else if (algorithm !== undefined && algorithm !== 'flash') {
      throw new InvalidProblemError(`algorithm = ${shown(algorithm)}; it is 'flash' or 'standard'`);
    }
    if (layout === 'packed-qkv') wasm.dense_gradients();
    if (problem.gradientElement === 'f32') wasm.f32_gradients();
    else if (problem.gradientElement !== undefined) {
      throw new InvalidProblemError(`gradientElement = ${shown(problem.gradientElement)}; it is 'f32', or left out for the element of Q`);
    }
    if (problem.dBias !== undefined && typeof problem.dBias !== 'boolean') {
      throw new InvalidProblemError(`dBias = ${shown(problem.dBias)}; it is true or false`);
    }
    if (problem.dBias && problem.bias === undefined) throw new InvalidProblemError('dBias is true, and there is no bias');
    if (problem.dBias) wasm.bias_gradient();
    if (maxFlops !== undefined) wasm.bounded_work(maxFlops);
    return wasm;
  } catch (error) {
    wasm.free();
    throw inOptions(problem, fromWasm(error));
  }
}
