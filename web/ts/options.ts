import { InvalidProblemError, fromWasm } from './errors.js';
import type { Float16ArrayLike, GpuTensor } from './tensor.js';
import { Problem } from './wasm.js';

/** The type that Q, K, V and O are stored in; all arithmetic is f32. */
export type Element = 'f32' | 'f16' | 'bf16';

/** Lengths, heads and head dimensions: whole numbers. */
export interface Shape {
  /** Independent sequences; 1 if left out. */
  batch?: number;
  /** Heads of Q and O; 1 if left out. */
  numHeads?: number;
  /** Heads of K and V, of which `numHeads` is a multiple (grouped-query attention); `numHeads` if left out. */
  numHeadsKv?: number;
  /** Rows of Q, and of K and V unless `seqlenKv` is given. */
  seqlen: number;
  /** Rows of K and V; `seqlen` if left out. */
  seqlenKv?: number;
  /** Width of Q and K, 1 to 256. */
  headDim: number;
  /** Width of V and O, 1 to 256; `headDim` if left out. */
  headDimV?: number;
}

/** Where (batch, row, head, 0) of a tensor lies: `offset + batch · batch + row · row + head · head`, in elements. */
export interface Strides {
  /** First element; 0 if left out. */
  offset?: number;
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
  seed?: number | bigint;
  /** A second number that the mask depends on, up to 32 bits; 0 if left out. */
  offset?: number;
}

/**
 * `O = dropout(softmax(mask(softmaxScale · Q Kᵀ))) V`, without the tensors.
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
  /** None if left out. */
  dropout?: Dropout | undefined;
  /** `flash` (the default), or `standard`: the same meaning in three kernels that write the score matrix to memory. */
  algorithm?: 'flash' | 'standard' | undefined;
}

/** Tensors that one call takes: typed arrays, or tensors that are on the GPU already. */
export type TensorData = Float32Array | Uint16Array | Float16ArrayLike | GpuTensor;

/** How a call behaves, not what it computes. */
export interface RunOptions {
  /** Stops between two dispatches; the call then throws the signal's reason. */
  signal?: AbortSignal | undefined;
  /** Hears of long runs: dispatches done, and how many there are. */
  onProgress?: ((progress: { completed: number; total: number }) => void) | undefined;
  /**
   * Long problems run as many short dispatches, so that the page stays alive and no watchdog resets the GPU. A number
   * is the most floating-point operations in one dispatch; left out, as much as this GPU does in about 40 ms. `false`
   * runs everything at once.
   */
  boundedWork?: number | false | undefined;
}

/** Everything that one call takes. */
export interface ForwardOptions<T extends TensorData = TensorData> extends AttentionProblem, RunOptions {
  /** Queries. */
  q: T;
  /** Keys. */
  k: T;
  /** Values. */
  v: T;
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
}

/** @internal Which of the two operations. */
export type Direction = 'forward' | 'backward';

function whole(name: string, value: unknown, max: number): number {
  if (typeof value === 'number' && Number.isInteger(value) && value >= 0 && value <= max) return value;
  throw new InvalidProblemError(`${name} = ${String(value)}; it must be a whole number from 0 to ${max}`);
}

function number(name: string, value: unknown): number {
  if (typeof value === 'number') return value;
  throw new InvalidProblemError(`${name} = ${String(value)}; it must be a number`);
}

const U32 = 0xffff_ffff;

/** @internal What of dropout may change from call to call. */
export function dropoutSeed({ seed = 0, offset = 0 }: Partial<Dropout> = {}): { seed: bigint; offset: number } {
  return {
    seed: typeof seed === 'bigint' ? BigInt.asUintN(64, seed) : BigInt(whole('dropout.seed', seed, Number.MAX_SAFE_INTEGER)),
    offset: whole('dropout.offset', offset, U32),
  };
}

/** @internal Whether the layout is one whose tensors have one length each, without gaps. */
export function isDense(problem: AttentionProblem): boolean {
  return problem.layout === undefined || problem.layout === 'bshd' || problem.layout === 'bhsd';
}

/** @internal The problem as WebAssembly has it; what its numbers cannot say is refused here. */
export function toWasm(problem: AttentionProblem & Pick<Partial<BackwardOptions>, 'gradientElement'>, element: Element, maxFlops: number | undefined): Problem {
  const { shape } = problem;
  if (typeof shape !== 'object' || shape === null) {
    throw new InvalidProblemError('shape is missing: pass { batch, numHeads, seqlen, headDim }');
  }
  const { batch = 1, numHeads = 1, numHeadsKv = numHeads, seqlen, seqlenKv = seqlen, headDim, headDimV = headDim } = shape;
  const sizes = { batch, numHeads, numHeadsKv, seqlen, seqlenKv, headDim, headDimV };
  for (const [name, value] of Object.entries(sizes)) whole(`shape.${name}`, value, U32);
  const wasm = new Problem(batch, numHeads, numHeadsKv, seqlen, seqlenKv, headDim, headDimV);
  try {
    wasm.element(element);
    const { layout = 'bshd', causal, window, softmaxScale, dropout, algorithm } = problem;
    if (typeof layout === 'object') {
      for (const tensor of ['q', 'k', 'v', 'o'] as const) {
        const { offset = 0, batch, row, head } = layout[tensor];
        const strides = Object.entries({ offset, batch, row, head });
        const [a, b, c, d] = strides.map(([name, value]) => whole(`layout.${tensor}.${name}`, value, Number.MAX_SAFE_INTEGER));
        wasm.strides(tensor, a!, b!, c!, d!);
      }
    } else {
      wasm.layout(layout);
    }
    if (![undefined, true, false, 'bottom-right', 'top-left'].includes(causal)) {
      throw new InvalidProblemError(`causal = ${String(causal)}; it is true, false, 'bottom-right' or 'top-left'`);
    }
    if (causal) wasm.causal(causal === 'top-left');
    if (window !== undefined) {
      if (!Array.isArray(window) || window.length !== 2) throw new InvalidProblemError('window is a pair [left, right]');
      const [left, right] = window.map((value, side) =>
        value === null || value === Infinity ? undefined : whole(`window[${side}]`, value, U32));
      wasm.window(left, right);
    }
    if (softmaxScale !== undefined) wasm.softmax_scale(number('softmaxScale', softmaxScale));
    if (dropout !== undefined) wasm.dropout(number('dropout.p', dropout.p));
    if (algorithm === 'standard') wasm.standard();
    else if (algorithm !== undefined && algorithm !== 'flash') {
      throw new InvalidProblemError(`algorithm = ${String(algorithm)}; it is 'flash' or 'standard'`);
    }
    if (layout === 'packed-qkv') wasm.dense_gradients();
    if (problem.gradientElement === 'f32') wasm.f32_gradients();
    else if (problem.gradientElement !== undefined) {
      throw new InvalidProblemError(`gradientElement = ${String(problem.gradientElement)}; it is 'f32', or left out for the element of Q`);
    }
    if (maxFlops !== undefined) wasm.bounded_work(maxFlops);
    return wasm;
  } catch (error) {
    wasm.free();
    throw fromWasm(error);
  }
}
