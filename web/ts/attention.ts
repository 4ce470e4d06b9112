import { APPEND, appendTask, outputsOfAppend, tablesOfAppend, tensorsOfAppend } from './append.js';
import { checkOptions, describe, has, oneOf, shown, sizesOf, whole } from './checks.js';
import { Device, checkDevice } from './device.js';
import { InvalidOptionError, InvalidProblemError, InvalidTensorError, fromWasm } from './errors.js';
import { checkSource, load, type WasmSource } from './load.js';
import { Operations } from './operations.js';
import { entriesOf } from './modifiers.js';
import { FOR_CALLS, PROBLEM, RUN, checkCall, isDense, toWasm } from './options.js';
import type {
  AppendOptions, AppendProblem, Asked, AttentionProblem, Aux, BackwardOptions, Element, ForwardOptions, ProbabilitiesOptions, RunOptions, Task, TensorData,
} from './options.js';
import { PreparedAppend, PreparedAttention, PreparedBackward, type Parts } from './prepared.js';
import type {
  Appended, BackwardArrays, BackwardTensors, ForwardArrays, ForwardTensors, Info, Plan, ProbabilitiesArray, ProbabilitiesTensor,
} from './results.js';
import { CALLED, NAMES, Runner, discardResults, type Answer, type Output } from './runner.js';
import { checkCache, checkPrepared, elementOfCache, tablesOf } from './sequences.js';
import { checkSignal, untilAborted } from './stop.js';
import { GpuTensor, arrayName, disposable, elementOf, elementSize, noTensor, tensorType } from './tensor.js';
import type { ArrayName, ElementOf, TensorElement } from './tensor.js';
import { Throughput } from './throughput.js';
import { BufferUsage } from './usage.js';

/** How `FlashAttention.create` gets its device. */
export interface CreateOptions {
  /** Which GPU, where a machine has two; the fast one if left out. */
  powerPreference?: 'high-performance' | 'low-power' | undefined;
  /** Your own device instead: its buffers can be passed through `wrap`, and it stays yours. */
  device?: GPUDevice | undefined;
  /** What `navigator.gpu` is in browsers, where there is none: in Node.js, `create([])` of the npm package `webgpu`. */
  gpu?: GPU | undefined;
  /** `false` does without subgroups where the browser has them. */
  subgroups?: boolean | undefined;
  /** `false` does without f16 arithmetic types where the browser has them; f16 tensors run all the same. */
  shaderF16?: boolean | undefined;
  /** Where `wasm_bg.wasm` is, if not beside this module: its address, its bytes, or the compiled module. */
  wasm?: WasmSource | undefined;
  /** Ends the wait; a device that comes later is destroyed. */
  signal?: AbortSignal | undefined;
}

/** How `prepare` and `prepareBackward` behave. */
export type PrepareOptions = Pick<RunOptions, 'signal' | 'boundedWork'>;

const CREATE = ['powerPreference', 'device', 'gpu', 'subgroups', 'shaderF16', 'wasm', 'signal'];

/** The typed array that comes back for one that went in. */
type Returned<T> = T extends Float32Array ? Float32Array<ArrayBuffer> : T extends Uint16Array ? Uint16Array<ArrayBuffer> : T;

/**
 * Exact attention on one GPU device.
 *
 * ```ts
 * const attention = await FlashAttention.create();
 * const shape = { batch: 1, numHeads: 8, seqlen: 1024, headDim: 64 };
 * const { o, lse } = await attention.forward({ q, k, v, shape, causal: true });
 * ```
 */
export class FlashAttention {
  readonly #device: Device;
  readonly #operations: Operations;
  readonly #throughput = new Throughput();
  readonly #runner: Runner;

  private constructor(device: Device) {
    if (!((device as unknown) instanceof Device)) throw new InvalidOptionError('a FlashAttention is made by await FlashAttention.create()');
    this.#device = device;
    this.#operations = new Operations(device);
    this.#runner = new Runner(device, this.#throughput);
  }

  /**
   * Loads the WebAssembly module and asks the browser for a GPU.
   *
   * @throws {InvalidOptionError} if an option does not exist, or has a value that is none for it
   * @throws {NoWebGPUError} if the browser, the page or the machine has no WebGPU
   * @throws {DeviceLostError} if the device that is given is lost
   */
  static async create(given: CreateOptions = {}): Promise<FlashAttention> {
    if (has(given, 'createBuffer')) throw new InvalidOptionError('create is given a GPUDevice; pass it as { device }');
    const options = checkOptions('create', given, CREATE);
    const { device, gpu, subgroups = true, shaderF16 = true, wasm, signal } = options;
    const powerPreference = oneOf('powerPreference', options.powerPreference, ['high-performance', 'low-power'] as const) ?? 'high-performance';
    oneOf('subgroups', subgroups, [true, false]);
    oneOf('shaderF16', shaderF16, [true, false]);
    checkDevice(options);
    checkSource(wasm);
    checkSignal(signal);
    const creating = load(wasm).then(async () => {
      signal?.throwIfAborted();
      return new FlashAttention(await Device.request({ gpu, powerPreference, device, subgroups, shaderF16 }));
    });
    return untilAborted(signal, creating, (late) => late.destroy());
  }

  /** The device it runs on, for your own WebGPU code beside it. */
  get device(): GPUDevice {
    return this.#device.gpu;
  }

  /** What it runs on. */
  async info(): Promise<Info> {
    this.#device.check();
    const { gpu, info } = this.#device;
    const { vendor = '', architecture = '', device = '', description = '', isFallbackAdapter = false } = info;
    const { subgroupMinSize: min = 0, subgroupMaxSize: max = 0 } = info;
    const { maxBufferSize, maxStorageBufferBindingSize, maxComputeWorkgroupStorageSize, maxComputeInvocationsPerWorkgroup } = gpu.limits;
    return {
      adapter: { vendor, architecture, device, description, isFallbackAdapter },
      shaderF16: gpu.features.has('shader-f16'),
      subgroups: gpu.features.has('subgroups') ? { min, max } : null,
      limits: { maxBufferSize, maxStorageBufferBindingSize, maxComputeWorkgroupStorageSize, maxComputeInvocationsPerWorkgroup },
    };
  }

  /** How a problem would run. Nothing is run, compiled or allocated. */
  async plan(given: AttentionProblem): Promise<Plan> {
    this.#device.check();
    const problem = checkOptions('plan', given, PROBLEM);
    let wasm;
    try {
      wasm = toWasm(problem, problem.element ?? 'f32', undefined);
      const plan = this.#device.wasm.plan(wasm);
      const { tile_q: tileQ, tile_kv: tileKv, tiles, extra_bytes: extraBytes } = plan;
      const length = (tensor: string): number => plan.required_len(tensor);
      const lengths = { q: length('q'), k: length('k'), v: length('v'), o: length('o'), lse: length('lse') };
      const kernels = plan.kernels.split(' ');
      plan.free();
      return { kernels, tileQ, tileKv, tiles, extraBytes, flops: wasm.flops, lengths };
    } catch (error) {
      throw this.#device.translate(error);
    } finally {
      wasm?.free();
    }
  }

  /**
   * Compiles the forward pass of a problem ahead. What is returned runs it, or records it into an encoder of yours, on tensors that
   * come with each call. Without `element` they are f32.
   *
   * @throws as `forward`
   */
  async prepare(problem: AttentionProblem, options: PrepareOptions = {}): Promise<PreparedAttention> {
    return this.#prepare('forward', problem, options, (parts) => new PreparedAttention(parts));
  }

  /**
   * As `prepare`, for the gradients.
   *
   * @throws as `forward`
   */
  async prepareBackward(
    problem: AttentionProblem & Pick<BackwardOptions, 'gradientElement' | 'dBias'>, options: PrepareOptions = {},
  ): Promise<PreparedBackward> {
    return this.#prepare('backward', problem, options, (parts) => new PreparedBackward(parts));
  }

  /**
   * As `prepare`, for an append to a cache. One prepared append serves all layers and steps of a generation.
   *
   * @throws as `forward`
   */
  async prepareAppend(given: AppendProblem, options: Pick<PrepareOptions, 'signal'> = {}): Promise<PreparedAppend> {
    const problem = checkOptions('prepareAppend', given, APPEND);
    const append = appendTask(problem);
    const { shape, element, cache } = problem;
    return this.#compile({ direction: 'append', append }, { shape, element, cache }, options, (parts) => new PreparedAppend(parts, append));
  }

  #prepare<T extends { destroy(): void }>(direction: 'forward' | 'backward', given: Asked, options: PrepareOptions, make: (parts: Parts) => T): Promise<T> {
    const problem = checkOptions('prepare', given, PROBLEM);
    checkPrepared(problem);
    return this.#compile({ direction }, problem, options, make);
  }

  async #compile<T extends { destroy(): void }>(task: Task, problem: Asked, given: PrepareOptions, make: (parts: Parts) => T): Promise<T> {
    const options = checkOptions('the second argument of prepare', given, ['signal', 'boundedWork']);
    checkCall(options);
    const { signal, boundedWork = this.#throughput.bound() } = options;
    return this.#device.call(signal, async () => {
      const { element = 'f32' } = problem;
      const operation = this.#operations.acquire(task, problem, element, boundedWork === false ? undefined : boundedWork);
      const release = (): void => this.#operations.release(operation);
      try {
        await operation.ready();
        this.#device.check();
        signal?.throwIfAborted();
      } catch (error) {
        release();
        throw error;
      }
      return make({ device: this.#device, runner: this.#runner, operation, problem, isUnbounded: boundedWork === false, release });
    }, (late) => late.destroy());
  }

  /**
   * Computes attention. Typed arrays in, typed arrays out; with Q on the GPU, the results stay there. `output` says
   * otherwise.
   *
   * @throws {InvalidOptionError} if an option does not exist, or has a value that is none for it
   * @throws {InvalidProblemError} if the problem contradicts itself
   * @throws {InvalidTensorError} if a tensor has another length or type than the problem says
   * @throws {UnsupportedError} if it passes a limit of this device
   * @throws {OutOfMemoryError} if the GPU has no memory left
   * @throws {DeviceLostError} if the device was lost before or during the call
   */
  forward(options: ForwardOptions & { output: 'gpu' }): Promise<ForwardTensors>;
  forward(options: ForwardOptions & { q: GpuTensor; output?: 'gpu' | undefined }): Promise<ForwardTensors>;
  forward(options: ForwardOptions & { q: GpuTensor; output: 'array' }): Promise<ForwardArrays>;
  forward<Q extends Exclude<TensorData, GpuTensor>>(
    options: ForwardOptions & { q: Q; output?: 'array' | undefined },
  ): Promise<ForwardArrays<Returned<Q>>>;
  forward(options: ForwardOptions & { output?: 'gpu' | 'array' | undefined }): Promise<ForwardArrays | ForwardTensors>;
  async forward(given: ForwardOptions & { output?: 'gpu' | 'array' | undefined }): Promise<ForwardArrays | ForwardTensors> {
    const options = checkOptions('forward', given, FOR_CALLS);
    const { q, k, v, sink, cache } = options;
    checkCache(cache);
    const { element, array } = tensorType(cache ? { q } : { q, k, v }, options.element);
    if (cache) tensorType({ k, v }, elementOfCache(cache, element));
    const ofHeads: Record<string, TensorData> = sink === undefined ? {} : { sink: sink as TensorData };
    tensorType(ofHeads, 'f32');
    const outputs: Output[] = [{ name: 'o', array }, { name: 'lse', array: 'Float32Array' }];
    const { tensors, stats } = await this.#compute({ direction: 'forward' }, options, element, { q, k, v, ...ofHeads }, outputs);
    return { o: tensors[0], lse: tensors[1], stats } as ForwardArrays | ForwardTensors;
  }

  /**
   * Computes the gradients of Q, K, V and the sinks from what the forward call took and gave, and the gradient of O. Arrays
   * and tensors on the GPU as in `forward`. The gradients have the layout of their tensors, or `bshd` for `packed-qkv`.
   *
   * @throws as `forward`
   */
  backward(options: BackwardOptions & { output: 'gpu' }): Promise<BackwardTensors>;
  backward(options: BackwardOptions & { q: GpuTensor; output?: 'gpu' | undefined }): Promise<BackwardTensors>;
  backward(options: BackwardOptions & { q: GpuTensor; output: 'array' }): Promise<BackwardArrays>;
  backward(options: BackwardOptions & { gradientElement: 'f32'; output?: 'array' | undefined }): Promise<BackwardArrays<Float32Array<ArrayBuffer>>>;
  backward<Q extends Exclude<TensorData, GpuTensor>>(
    options: BackwardOptions & { q: Q; output?: 'array' | undefined },
  ): Promise<BackwardArrays<Returned<Q>>>;
  backward(options: BackwardOptions & { output?: 'gpu' | 'array' | undefined }): Promise<BackwardArrays | BackwardTensors>;
  async backward(given: BackwardOptions & { output?: 'gpu' | 'array' | undefined }): Promise<BackwardArrays | BackwardTensors> {
    const options = checkOptions('backward', given, FOR_CALLS);
    const { q, k, v, o, lse, dO, dLse, sink, gradientElement } = options;
    const { element, array } = tensorType({ q, k, v, o, dO }, options.element);
    const inF32: Record<string, TensorData> = { lse, ...dLse === undefined ? {} : { dLse }, ...sink === undefined ? {} : { sink: sink as TensorData } };
    tensorType(inF32, 'f32');
    const kind = gradientElement === 'f32' ? 'Float32Array' : array;
    const { dLse: d_lse, ...others } = inF32;
    const inputs = { q, k, v, o, d_o: dO, ...others, ...d_lse === undefined ? {} : { d_lse } };
    const outputs: Output[] = ['dq', 'dk', 'dv'].map((name) => ({ name, array: kind }));
    if (sink !== undefined) outputs.push({ name: 'dsink', array: 'Float32Array' });
    if (options.dBias && options.bias) outputs.push({ name: 'dbias', array: arrayOf(options.bias.data) ?? 'Float32Array' });
    const { tensors, stats } = await this.#compute({ direction: 'backward' }, options, element, inputs, outputs);
    const results = outputs.map(({ name }, index) => [CALLED[name] ?? name, tensors[index]]);
    return { ...Object.fromEntries(results), stats } as BackwardArrays | BackwardTensors;
  }

  /**
   * Computes the probabilities of chosen heads and rows, `P = exp(S − LSE)`, from what the forward call took and its LSE: with all
   * modifiers and masks, before dropout. f32 `[batch, chosen heads, chosen rows, seqlenKv]`. `dropout` is not looked at.
   *
   * @throws as `forward`
   */
  probabilities(options: ProbabilitiesOptions & { output: 'gpu' }): Promise<ProbabilitiesTensor>;
  probabilities(options: ProbabilitiesOptions & { q: GpuTensor; output?: 'gpu' | undefined }): Promise<ProbabilitiesTensor>;
  probabilities(options: ProbabilitiesOptions & { output?: 'array' | undefined }): Promise<ProbabilitiesArray>;
  probabilities(options: ProbabilitiesOptions & { output?: 'gpu' | 'array' | undefined }): Promise<ProbabilitiesArray | ProbabilitiesTensor>;
  async probabilities(given: ProbabilitiesOptions & { output?: 'gpu' | 'array' | undefined }): Promise<ProbabilitiesArray | ProbabilitiesTensor> {
    const options = checkOptions('probabilities', given, FOR_CALLS);
    const { q, k, lse } = options;
    const { element } = tensorType({ q, k }, options.element);
    tensorType({ lse }, 'f32');
    const { numHeads, seqlen } = sizesOf(options);
    const [heads, rows] = [chosen('heads', options.heads, numHeads), chosen('rows', options.rows, seqlen)];
    const outputs: Output[] = [{ name: 'probabilities', array: 'Float32Array' }];
    const { tensors, stats } = await this.#compute({ direction: 'probabilities', heads, rows }, options, element, { q, k, lse }, outputs);
    return { probabilities: tensors[0], stats } as ProbabilitiesArray | ProbabilitiesTensor;
  }

  /**
   * Writes new keys and values into a cache on the GPU, in its type, and turns them and Q on request. Results are on the GPU.
   *
   * @throws as `forward`
   */
  async append(given: AppendOptions): Promise<Appended> {
    const ofCall = Object.keys({ k: 0, v: 0, kCache: 0, vCache: 0, cacheSeqlens: 0, pageTable: 0, rotaryCos: 0, rotarySin: 0, q: 0 });
    const options = checkOptions('append', given, [...APPEND, ...ofCall, ...RUN.filter((name) => name !== 'boundedWork' && name !== 'output')]);
    const append = appendTask(options);
    const { k, v, q, kCache, vCache, rotaryCos, rotarySin, shape, cache, signal, onProgress, gpuTime } = options;
    for (const [name, tensor] of Object.entries({ kCache, vCache })) {
      if (!((tensor as unknown) instanceof GpuTensor)) throw new InvalidTensorError(`${name} is ${noTensor(tensor)}; pass a GpuTensor: it is written`);
    }
    const all: Record<string, unknown> = { k, v, kCache, vCache, q, rotaryCos, rotarySin };
    const needed = tensorsOfAppend(append, cache.pageSize !== undefined).filter((name) => name in all);
    const those = (names: string[]): Record<string, TensorData> => Object.fromEntries(names.map((name) => [name, all[name] as TensorData]));
    const { element, array } = tensorType(those(needed.filter((name) => ['k', 'v', 'q'].includes(name))), options.element);
    tensorType(those(['kCache', 'vCache']), elementOfCache(cache, element));
    tensorType(those(needed.filter((name) => name.startsWith('rotary'))), 'f32');
    if (append.rotateQ === 'in-place' && !(q instanceof GpuTensor)) {
      throw new InvalidTensorError(`q is ${describe(q)}; to be turned in place it must be a GpuTensor`);
    }
    const inputs = Object.fromEntries(needed.map((name) => [NAMES[name] ?? name, all[name] as TensorData]));
    const outputs: Output[] = outputsOfAppend(append).map((name) => ({ name: NAMES[name] ?? name, array: name === 'qRotated' ? array : 'Uint32Array' }));
    const asked = { shape, element, cache, signal, onProgress, gpuTime, output: 'gpu' as const };
    const tables = tablesOfAppend(options, append);
    const { tensors, stats } = await this.#compute({ direction: 'append', append }, asked, element, { ...inputs, ...tables }, outputs);
    return { ...Object.fromEntries(outputs.map(({ name }, index) => [CALLED[name], tensors[index]])), stats } as Appended;
  }

  /**
   * Copies a typed array to the GPU, where it stays until `destroy()`. A `Uint16Array` holds f16 bits, or bf16 bits with
   * `element: 'bf16'`; a `Uint32Array` holds the bits of a mask, as `packMask` makes them.
   *
   * @throws {InvalidTensorError} if it is no such array
   * @throws {OutOfMemoryError} if the GPU has no memory left
   * @throws {DeviceLostError} if the device was lost before or during the call
   */
  upload(data: Uint16Array, options: { element: 'bf16' }): Promise<GpuTensor<'bf16'>>;
  upload<T extends Exclude<TensorData, GpuTensor> | Uint32Array>(data: T, options?: { element?: Element | undefined }): Promise<GpuTensor<ElementOf<T>>>;
  async upload(data: Exclude<TensorData, GpuTensor> | Uint32Array, given: { element?: Element | undefined } = {}): Promise<GpuTensor> {
    const options = checkOptions('upload', given, ['element']);
    const array = arrayName(data);
    if (array === undefined) {
      throw new InvalidTensorError(`upload is given something ${describe(data)}; it takes a Float32Array, Uint16Array, Float16Array or Uint32Array`);
    }
    const element = elementOf('the array', array, options.element);
    return this.#device.call(undefined, async () => {
      const { result: tensor, error } = this.#device.caught('uploading a tensor', () => this.#runner.upload(data, element));
      try {
        await error;
        this.#device.check();
        return tensor;
      } catch (error) {
        tensor.destroy();
        throw error;
      }
    });
  }

  /**
   * Your own buffer of this device as a tensor, without a copy. It needs `GPUBufferUsage.STORAGE` (and `COPY_SRC` for
   * `read`), holds the elements from the byte `offset`, a multiple of 4 (0 if left out), and stays yours to destroy. That of a mask has
   * `element: 'u32'`.
   *
   * @throws {InvalidTensorError} if the buffer lacks a usage or is too small
   */
  wrap(buffer: GPUBuffer, options?: { element?: 'f32' | undefined; offset?: number | undefined; length?: number | undefined }): GpuTensor<'f32'>;
  wrap<E extends TensorElement>(buffer: GPUBuffer, options: { element: E; offset?: number | undefined; length?: number | undefined }): GpuTensor<E>;
  wrap(
    buffer: GPUBuffer, given: { element?: TensorElement | undefined; offset?: number | undefined; length?: number | undefined } = {},
  ): GpuTensor {
    this.#device.check();
    const options = checkOptions('wrap', given, ['element', 'offset', 'length']);
    const element = oneOf('element', options.element, ['f32', 'f16', 'bf16', 'u32'] as const) ?? 'f32';
    if (!isBuffer(buffer)) {
      throw new InvalidTensorError(`wrap is given something ${describe(buffer)}; it takes a GPUBuffer`);
    }
    if (!(buffer.usage & BufferUsage.STORAGE)) throw new InvalidTensorError('the buffer was created without GPUBufferUsage.STORAGE');
    if (buffer.size % 4 !== 0) throw new InvalidTensorError(`the buffer has ${buffer.size} bytes; make it a multiple of 4`);
    const offset = sizeIn('offset', options.offset ?? 0);
    const length = sizeIn('length', options.length ?? Math.max(0, Math.floor((buffer.size - offset) / elementSize(element))));
    return this.#runner.wrap(buffer, element, offset, length);
  }

  /**
   * Frees everything, and the device unless it was yours. Calls that are under way, and those after it, throw `DeviceLostError`. It may
   * be called at any time, and again.
   */
  destroy(): void {
    this.#device.destroy();
    this.#operations.destroy();
  }

  /** Checks a call, uploads, runs and reads back, or leaves the outputs on the GPU. */
  async #compute(
    task: Task,
    options: Asked & RunOptions & { q?: TensorData; output?: 'gpu' | 'array' | undefined },
    element: Element,
    given: Record<string, TensorData | Aux>,
    outputs: Output[],
  ): Promise<Answer> {
    const { aux, signal, output } = options;
    checkCall(options);
    return this.#device.call(signal, async () => {
      const { boundedWork = this.#throughput.bound() } = options;
      const onGpu = (output ?? (options.q instanceof GpuTensor ? 'gpu' : 'array')) === 'gpu';
      const operation = this.#operations.acquire(task, options, element, boundedWork === false ? undefined : boundedWork);
      try {
        const tables = task.direction === 'append' ? {} : tablesOf(options);
        const inputs = { ...given, ...entriesOf(options, element), ...tables, ...aux === undefined ? {} : { aux } };
        const request = { operation, inputs, outputs, onGpu, isUnbounded: boundedWork === false, options };
        this.#runner.check(request, (name) => isDense(options) || !operation.needs(name).hasLayout);
        return await this.#runner.run(request);
      } finally {
        this.#operations.release(operation);
      }
    }, (late) => discardResults(late, outputs));
  }
}

/** It can be declared with `using`. */
export interface FlashAttention {
  [Symbol.dispose](): void;
}
disposable(FlashAttention);

function isBuffer(value: unknown): boolean {
  try {
    const { mapAsync, size, usage } = Object(value) as Partial<GPUBuffer>;
    return typeof mapAsync === 'function' && typeof size === 'number' && typeof usage === 'number';
  } catch {
    return false;
  }
}

/** The kind of array that a tensor comes in. */
function arrayOf(data: TensorData | undefined): ArrayName | undefined {
  return data instanceof GpuTensor ? data.array : arrayName(data);
}

/** A range of the heads or rows of a problem. */
function chosen(name: string, range: unknown, count: number): [number, number] {
  if (range === undefined) return [0, count];
  if (!Array.isArray(range) || range.length !== 2) throw new InvalidProblemError(`${name} = ${shown(range)}; it is a pair [first, end]`);
  return [whole(`${name}[0]`, range[0], count), whole(`${name}[1]`, range[1], count)];
}

/** An offset or a length in a buffer. */
function sizeIn(name: string, value: unknown): number {
  if (Number.isSafeInteger(value) && (value as number) >= 0) return value as number;
  throw new InvalidOptionError(`${name} = ${shown(value)}; it must be a whole number`);
}
