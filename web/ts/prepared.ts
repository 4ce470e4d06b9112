import { outputsOfAppend, tensorsOfAppend, type AppendTask } from './append.js';
import { checkOptions, describe } from './checks.js';
import type { Device } from './device.js';
import { InvalidOptionError, InvalidProblemError, InvalidTensorError } from './errors.js';
import type { Operation } from './operations.js';
import { RUN, checkCall, isDense, type Asked, type Dropout, type RunOptions } from './options.js';
import type { Appended, BackwardTensors, ForwardTensors } from './results.js';
import { CALLED, NAMES, discardResults, type Output, type Request, type Runner } from './runner.js';
import { lengthsOfCalls } from './sequences.js';
import { GpuTensor, disposable, noTensor } from './tensor.js';
import type { ArrayName } from './tensor.js';

/** Tensors on the GPU for one call of a prepared forward pass. */
export interface PreparedTensors {
  /** Queries. */
  q: GpuTensor;
  /** Keys. */
  k: GpuTensor;
  /** Values. */
  v: GpuTensor;
  /** The entries of the problem's bias. */
  bias?: GpuTensor | undefined;
  /** The packed bits of the problem's mask. */
  mask?: GpuTensor<'u32'> | undefined;
  /** The logits of the problem's sinks. */
  sink?: GpuTensor<'f32'> | undefined;
  /** The data of the problem's own functions. */
  aux?: GpuTensor | undefined;
  /** The lengths of the problem, where they come with each call. */
  seqlensQ?: GpuTensor<'u32'> | undefined;
  seqlensKv?: GpuTensor<'u32'> | undefined;
  cuSeqlensQ?: GpuTensor<'u32'> | undefined;
  cuSeqlensKv?: GpuTensor<'u32'> | undefined;
  /** The pages of the problem's cache. */
  pageTable?: GpuTensor<'u32'> | undefined;
}

/** Where a forward pass writes. */
export interface PreparedOutputs {
  /** The output. */
  o: GpuTensor;
  /** The log-sum-exp of each row. */
  lse: GpuTensor;
}

/** Tensors on the GPU for one call of a prepared backward pass. */
export interface PreparedBackwardTensors extends PreparedTensors {
  /** The output of the forward call. */
  o: GpuTensor;
  /** The log-sum-exp of the forward call. */
  lse: GpuTensor<'f32'>;
  /** The gradient of O. */
  dO: GpuTensor;
  /** The gradient of LSE. */
  dLse?: GpuTensor<'f32'> | undefined;
}

/** Where a backward pass writes. */
export interface PreparedGradients {
  /** The gradient of Q. */
  dq: GpuTensor;
  /** The gradient of K. */
  dk: GpuTensor;
  /** The gradient of V. */
  dv: GpuTensor;
  /** The gradient of the sinks, where there are sinks. */
  dSink?: GpuTensor | undefined;
  /** The gradient of the bias, where `dBias` asked for it. */
  dBias?: GpuTensor | undefined;
}

/** Tensors on the GPU for one call of a prepared append: those that its problem has. */
export interface PreparedAppendTensors {
  /** New keys. */
  k: GpuTensor;
  /** New values. */
  v: GpuTensor;
  /** The cache of keys, which is written. */
  kCache: GpuTensor;
  /** The cache of values, which is written. */
  vCache: GpuTensor;
  cacheSeqlens?: GpuTensor<'u32'> | undefined;
  pageTable?: GpuTensor<'u32'> | undefined;
  slotMapping?: GpuTensor<'u32'> | undefined;
  cuSeqlensNew?: GpuTensor<'u32'> | undefined;
  rotaryCos?: GpuTensor<'f32'> | undefined;
  rotarySin?: GpuTensor<'f32'> | undefined;
  /** Queries that are turned. */
  q?: GpuTensor | undefined;
}

/** Where an append writes beside the cache: what its problem asks for. */
export interface PreparedAppended {
  qRotated?: GpuTensor | undefined;
  newCacheSeqlens?: GpuTensor<'u32'> | undefined;
}

/** What may change from call to call beside the tensors. */
export type PreparedDropout = Pick<Dropout, 'seed' | 'offset'>;

/** How a call of a prepared operation behaves. */
export type PreparedRun = Omit<RunOptions, 'boundedWork'> & { dropout?: PreparedDropout | undefined };

const OF_PROBLEM = ['bias', 'mask', 'sink', 'aux'] as const;

/** @internal What a prepared operation is made of. */
export interface Parts {
  device: Device;
  runner: Runner;
  operation: Operation;
  problem: Asked;
  isUnbounded: boolean;
  release: () => void;
}

/** A pass that is compiled. `I` are the tensors that it reads, `O` those that it writes, `R` is what `run` gives. */
export abstract class Prepared<I extends object, O extends object, R> {
  readonly #parts: Parts;
  readonly #needed: readonly string[];
  readonly #optional: readonly string[];
  readonly #outputs: readonly string[];
  #isDestroyed = false;

  /** @internal */
  constructor(parts: Parts, needed: readonly string[], optional: readonly string[], outputs: readonly string[]) {
    this.#parts = parts;
    this.#needed = needed;
    this.#optional = optional;
    this.#outputs = outputs;
  }

  /** Elements that each tensor needs. */
  get lengths(): { [Name in keyof (I & O)]: number } {
    this.#check();
    const { operation } = this.#parts;
    const lengths = [...this.#needed, ...this.#outputs].map((name) => [name, operation.needs(NAMES[name] ?? name).length]);
    return Object.fromEntries(lengths) as { [Name in keyof (I & O)]: number };
  }

  /**
   * Runs it. Calls that do not wait for each other are submitted together. Results for which no tensor is given are new tensors.
   *
   * @throws as `forward`
   */
  async run(given: I & Partial<O> & PreparedRun): Promise<R> {
    this.#check();
    const known = ['dropout', ...RUN.filter((name) => name !== 'boundedWork' && name !== 'output')];
    const options = checkOptions('run', given, [...this.#needed, ...this.#optional, ...this.#outputs, ...known]);
    checkCall(options);
    const { device, runner, operation } = this.#parts;
    const request = this.#request(options, options);
    operation.users++;
    const { tensors, stats } = await device.call(options.signal, async () => {
      try {
        return await runner.run(request);
      } finally {
        operation.users--;
        operation.freeIfUnused();
      }
    }, (late) => discardResults(late, request.outputs));
    return { ...Object.fromEntries(this.#outputs.map((name, index) => [name, tensors[index]])), stats } as R;
  }

  /**
   * Records it into your encoder as one compute pass, and submits nothing. What the browser has against it, it tells when you finish
   * or submit the encoder. Calls of one prepared operation share its scratch memory: those of one queue run one after the other.
   *
   * @throws {InvalidTensorError} if a tensor does not fit; the encoder is then as it was
   */
  encode(encoder: GPUCommandEncoder, given: I & O, others: { dropout?: PreparedDropout | undefined } = {}): void {
    this.#check();
    if (!isEncoder(encoder)) throw new InvalidOptionError(`encoder is ${describe(encoder)}; pass a GPUCommandEncoder of attention.device`);
    const tensors = checkOptions('encode', given, [...this.#needed, ...this.#optional, ...this.#outputs]);
    const { dropout } = checkOptions('the third argument of encode', others, ['dropout']);
    const { inputs, outputs, options } = this.#request(tensors, { dropout });
    const missing = outputs.find(({ tensor }) => tensor === undefined);
    if (missing) throw new InvalidTensorError(`${CALLED[missing.name] ?? missing.name} is missing; pass a GpuTensor that it is written to`);
    const bound = { ...inputs as Record<string, GpuTensor>, ...Object.fromEntries(outputs.map(({ name, tensor }) => [name, tensor!])) };
    const { device, runner, operation: { prepared, dispatches } } = this.#parts;
    // Calls that were made before run before.
    device.flush();
    runner.encode(prepared!, bound, [0, dispatches], encoder, options);
  }

  /** Lets go of it; calls that are under way end well. */
  destroy(): void {
    if (this.#isDestroyed) return;
    this.#isDestroyed = true;
    this.#parts.release();
  }

  #check(): void {
    this.#parts.device.check();
    if (this.#isDestroyed) throw new InvalidOptionError('this prepared operation was destroyed; prepare it again');
  }

  #request(given: object, options: PreparedRun): Request {
    const { device, runner, operation, problem, isUnbounded } = this.#parts;
    const tensors = given as Record<string, unknown>;
    const fit = (called: string): GpuTensor => {
      const tensor = tensors[called];
      if (!(tensor instanceof GpuTensor)) throw new InvalidTensorError(`${called} is ${noTensor(tensor)}; pass a GpuTensor`);
      tensor.use(device, called);
      const { element: needed } = operation.needs(NAMES[called] ?? called);
      if (needed === undefined || tensor.element === needed || called === 'aux') return tensor;
      throw new InvalidTensorError(`${called} holds ${tensor.element}, but ${needed} is expected; convert it`);
    };
    const present = [...this.#needed, ...this.#optional.filter((name) => tensors[name] !== undefined)];
    const inputs = Object.fromEntries(present.map((name) => [NAMES[name] ?? name, fit(name)]));
    const { array } = (inputs['q'] ?? inputs['k'])!;
    const outputs: Output[] = this.#outputs.map((called) => {
      const name = NAMES[called] ?? called;
      const ofElement: Partial<Record<string, ArrayName>> = { f32: 'Float32Array', u32: 'Uint32Array' };
      const tensor = tensors[called] === undefined ? undefined : fit(called);
      return { name, array: ofElement[operation.needs(name).element ?? ''] ?? array, tensor };
    });
    if (options.dropout !== undefined) {
      if (problem.dropout === undefined) throw new InvalidProblemError('dropout is given, but what was prepared has none; prepare it with dropout: { p }');
      checkOptions('dropout', options.dropout, ['seed', 'offset']);
    }
    const { p = 0, seed, offset } = problem.dropout ?? {};
    const dropout = { p, seed: options.dropout?.seed ?? seed, offset: options.dropout?.offset ?? offset };
    const request = { operation, inputs, outputs, onGpu: true, isUnbounded, options: { ...options, dropout } };
    runner.check(request, (name) => isDense(problem) || !operation.needs(name).hasLayout);
    return request;
  }
}

/** A browser's own, whose methods work: what throws inside WebAssembly leaves it broken. */
function isEncoder(value: unknown): boolean {
  try {
    const { beginComputePass, finish, label } = Object(value) as Partial<GPUCommandEncoder>;
    return typeof beginComputePass === 'function' && typeof finish === 'function' && typeof label === 'string';
  } catch {
    return false;
  }
}

/** It can be declared with `using`. */
export interface Prepared<I extends object, O extends object, R> {
  [Symbol.dispose](): void;
}
disposable(Prepared);

/** Tensors that calls take beside those of their direction, if the problem has them. */
function ofProblem(problem: Asked): [needed: string[], optional: string[]] {
  const all = [...OF_PROBLEM.filter((name) => problem[name] !== undefined), ...lengthsOfCalls(problem), ...problem.cache?.pageSize === undefined ? [] : ['pageTable']];
  // What the problem has not is refused in the crate's words.
  return [all, OF_PROBLEM.filter((name) => problem[name] === undefined)];
}

/** A forward pass that is compiled: `await attention.prepare(problem)`. */
export class PreparedAttention extends Prepared<PreparedTensors, PreparedOutputs, ForwardTensors> {
  /** @internal */
  constructor(parts: Parts) {
    const [needed, optional] = ofProblem(parts.problem);
    super(parts, ['q', 'k', 'v', ...needed], optional, ['o', 'lse']);
  }
}

/** A backward pass that is compiled: `await attention.prepareBackward(problem)`. */
export class PreparedBackward extends Prepared<PreparedBackwardTensors, PreparedGradients, BackwardTensors> {
  /** @internal */
  constructor(parts: Parts) {
    const { sink, dBias } = parts.problem;
    const [needed, optional] = ofProblem(parts.problem);
    const outputs = ['dq', 'dk', 'dv', ...sink === undefined ? [] : ['dSink'], ...dBias ? ['dBias'] : []];
    super(parts, ['q', 'k', 'v', 'o', 'lse', 'dO', ...needed], ['dLse', ...optional], outputs);
  }
}

/** An append that is compiled: `await attention.prepareAppend(problem)`. */
export class PreparedAppend extends Prepared<PreparedAppendTensors, PreparedAppended, Appended> {
  /** @internal */
  constructor(parts: Parts, task: AppendTask) {
    super(parts, tensorsOfAppend(task, parts.problem.cache?.pageSize !== undefined), [], outputsOfAppend(task));
  }
}
