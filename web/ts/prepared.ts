import { checkOptions, describe } from './checks.js';
import type { Device } from './device.js';
import { InvalidOptionError, InvalidTensorError } from './errors.js';
import type { Operation } from './operations.js';
import { RUN, checkCall, dropoutSeed, isDense, type AttentionProblem, type Dropout, type RunOptions } from './options.js';
import type { ForwardTensors } from './results.js';
import type { Output, Request, Runner } from './runner.js';
import { GpuTensor, disposable } from './tensor.js';
import type { TensorElement } from './tensor.js';

/** Tensors on the GPU for one call of a prepared operation. */
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
}

/** Where results are written. */
export interface PreparedOutputs {
  /** The output. */
  o: GpuTensor;
  /** The log-sum-exp of each row. */
  lse: GpuTensor;
}

/** What may change from call to call beside the tensors. */
export type PreparedDropout = Pick<Dropout, 'seed' | 'offset'>;

const INPUTS = ['q', 'k', 'v', 'bias', 'mask', 'sink', 'aux'] as const;
const NAMES: Record<string, string> = { mask: 'key_mask' };

/** A forward pass that is compiled: `await attention.prepare(problem)`. */
export class PreparedAttention {
  readonly #device: Device;
  readonly #runner: Runner;
  readonly #operation: Operation;
  readonly #problem: AttentionProblem;
  readonly #isUnbounded: boolean;
  #release: (() => void) | undefined;

  /** @internal */
  constructor(device: Device, runner: Runner, operation: Operation, problem: AttentionProblem, isUnbounded: boolean, release: () => void) {
    this.#device = device;
    this.#runner = runner;
    this.#operation = operation;
    this.#problem = problem;
    this.#isUnbounded = isUnbounded;
    this.#release = release;
  }

  /** Elements that each tensor needs. */
  get lengths(): { q: number; k: number; v: number; o: number; lse: number } {
    this.#check();
    const { planned } = this.#operation;
    const length = (name: string): number => planned.required_len(name);
    return { q: length('q'), k: length('k'), v: length('v'), o: length('o'), lse: length('lse') };
  }

  /**
   * Runs it. Calls that do not wait for each other are submitted together. Without `o` and `lse`, the results are new tensors.
   *
   * @throws as `forward`
   */
  async run(
    options: PreparedTensors & Partial<PreparedOutputs> & Omit<RunOptions, 'boundedWork'> & { dropout?: PreparedDropout | undefined },
  ): Promise<ForwardTensors> {
    this.#check();
    checkOptions('run', options, [...INPUTS, 'o', 'lse', 'dropout', ...RUN.filter((name) => name !== 'boundedWork' && name !== 'output')]);
    checkCall(options);
    const request = this.#request(options, options);
    this.#operation.users++;
    return this.#device.call(options.signal, async () => {
      try {
        const { tensors, stats } = await this.#runner.run(request);
        return { o: tensors[0], lse: tensors[1], stats } as ForwardTensors;
      } finally {
        this.#operation.users--;
        this.#operation.freeIfUnused();
      }
    });
  }

  /**
   * Records it into your encoder as one compute pass, and submits nothing. What the browser has against it, it tells when you finish
   * or submit the encoder. Calls of one prepared operation share its scratch memory: those of one queue run one after the other.
   *
   * @throws {InvalidTensorError} if a tensor does not fit; the encoder is then as it was
   */
  encode(encoder: GPUCommandEncoder, tensors: PreparedTensors & PreparedOutputs, { dropout }: { dropout?: PreparedDropout | undefined } = {}): void {
    this.#check();
    if (typeof (Object(encoder) as Partial<GPUCommandEncoder>).beginComputePass !== 'function') {
      throw new InvalidOptionError(`encoder is ${describe(encoder)}; pass a GPUCommandEncoder of attention.device`);
    }
    checkOptions('encode', tensors, [...INPUTS, 'o', 'lse']);
    const { o, lse } = tensors;
    if (!o || !lse) throw new InvalidTensorError(`${o ? 'lse' : 'o'} is missing; pass a GpuTensor that it is written to`);
    const { inputs, outputs } = this.#request(tensors, { dropout });
    const bound = { ...inputs as Record<string, GpuTensor>, ...Object.fromEntries(outputs.map(({ name, tensor }) => [name, tensor!])) };
    // Calls that were made before run before.
    this.#device.flush();
    const { prepared, dispatches } = this.#operation;
    this.#runner.encode(prepared!, bound, [0, dispatches], encoder, { dropout: this.#dropout(dropout) });
  }

  /** Lets go of it; calls that are under way end well. */
  destroy(): void {
    this.#release?.();
    this.#release = undefined;
  }

  #check(): void {
    this.#device.check();
    if (!this.#release) throw new InvalidOptionError('this prepared operation was destroyed; prepare it again');
  }

  #dropout(given: PreparedDropout | undefined): Dropout {
    const { p = 0, seed, offset } = this.#problem.dropout ?? {};
    const dropout = { p, seed: given?.seed ?? seed, offset: given?.offset ?? offset };
    dropoutSeed(dropout);
    return dropout;
  }

  #request(
    tensors: PreparedTensors & Partial<PreparedOutputs>, options: Omit<RunOptions, 'boundedWork'> & { dropout?: PreparedDropout | undefined },
  ): Request {
    const { planned } = this.#operation;
    const fit = (called: string, tensor: unknown): GpuTensor => {
      if (!(tensor instanceof GpuTensor)) throw new InvalidTensorError(`${called} is ${describe(tensor)}; pass a GpuTensor`);
      const needed = planned.element(NAMES[called] ?? called) as TensorElement | undefined;
      if (needed === undefined || tensor.element === needed || called === 'aux') return tensor;
      throw new InvalidTensorError(`${called} holds ${tensor.element}, but ${needed} is expected; convert it`);
    };
    const inputs: Record<string, GpuTensor> = {};
    for (const name of INPUTS) {
      const isNeeded = name === 'q' || name === 'k' || name === 'v' || this.#problem[name] !== undefined;
      if (isNeeded || tensors[name] !== undefined) inputs[NAMES[name] ?? name] = fit(name, tensors[name]);
    }
    const array = inputs['q']!.array;
    const outputs: Output[] = [{ name: 'o', array }, { name: 'lse', array: 'Float32Array' as const }].map((output) => {
      const tensor = tensors[output.name as 'o' | 'lse'];
      return tensor === undefined ? output : { ...output, tensor: fit(output.name, tensor) };
    });
    const request = {
      operation: this.#operation, inputs, outputs, onGpu: true, isUnbounded: this.#isUnbounded,
      options: { ...options, dropout: this.#dropout(options.dropout) },
    };
    this.#runner.check(request, (name) => isDense(this.#problem) || !planned.has_layout(name));
    return request;
  }
}

/** It can be declared with `using`. */
export interface PreparedAttention {
  [Symbol.dispose](): void;
}
disposable(PreparedAttention);
