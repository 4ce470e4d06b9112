import { Device } from './device.js';
import { sizesOf, whole } from './checks.js';
import { InvalidProblemError, InvalidTensorError } from './errors.js';
import { load, type WasmSource } from './load.js';
import { Operations } from './operations.js';
import { entriesOf } from './modifiers.js';
import { dropoutSeed, isDense, toWasm } from './options.js';
import type {
  AttentionProblem, Aux, BackwardOptions, Element, ForwardOptions, ProbabilitiesOptions, Task, TensorData,
} from './options.js';
import type {
  BackwardArrays, BackwardTensors, ForwardArrays, ForwardTensors, Info, Plan, ProbabilitiesArray, ProbabilitiesTensor, RunStats,
} from './results.js';
import { GpuTensor, arrayName, bufferBytes, elementOf, elementSize, tensorType } from './tensor.js';
import type { ArrayName, TensorArray, TensorElement } from './tensor.js';
import { Throughput } from './throughput.js';
import { BufferUsage } from './usage.js';
import { Tensors, type Prepared } from './wasm.js';

/** How `FlashAttention.create` gets its device. */
export interface CreateOptions {
  /** Which GPU, where a machine has two; the fast one if left out. */
  powerPreference?: 'high-performance' | 'low-power' | undefined;
  /** Your own device instead: its buffers can be passed through `wrap`, and it stays yours. */
  device?: GPUDevice | undefined;
  /** `false` does without subgroups where the browser has them. */
  subgroups?: boolean | undefined;
  /** `false` does without f16 arithmetic types where the browser has them; f16 tensors run all the same. */
  shaderF16?: boolean | undefined;
  /** Where `wasm_bg.wasm` is, if not beside this module: its address, its bytes, or the compiled module. */
  wasm?: WasmSource | undefined;
}

/** The typed array that comes back for one that went in. */
type Returned<T> = T extends Float32Array ? Float32Array<ArrayBuffer> : T extends Uint16Array ? Uint16Array<ArrayBuffer> : T;

interface Output {
  /** The crate's name. */
  name: string;
  array: ArrayName;
}

/** What tensors are called here, where the crate's name differs. */
const CALLED: Record<string, string> = { d_o: 'dO', d_lse: 'dLse', bias: 'bias.data', key_mask: 'mask.data', dsink: 'dSink', dbias: 'dBias' };

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
  /** Operations that have run: browsers may compile at the first run, which says nothing of speed. */
  readonly #warm = new WeakSet<Prepared>();

  private constructor(device: Device) {
    this.#device = device;
    this.#operations = new Operations(device);
  }

  /**
   * Loads the WebAssembly module and asks the browser for a GPU.
   *
   * @throws {NoWebGPUError} if the browser, the page or the machine has no WebGPU
   */
  static async create(options: CreateOptions = {}): Promise<FlashAttention> {
    const { powerPreference = 'high-performance', device, subgroups = true, shaderF16 = true, wasm } = options;
    await load(wasm);
    return new FlashAttention(await Device.request({ powerPreference, device, subgroups, shaderF16 }));
  }

  /** The device it runs on, for your own WebGPU code beside it. */
  get device(): GPUDevice {
    return this.#device.gpu;
  }

  /** What it runs on. */
  async info(): Promise<Info> {
    const { gpu } = this.#device;
    const { vendor = '', architecture = '', device = '', description = '', ...rest } = gpu.adapterInfo ?? {};
    const { subgroupMinSize: min = 0, subgroupMaxSize: max = 0, isFallbackAdapter = false } = gpu.adapterInfo ?? rest;
    const { maxBufferSize, maxStorageBufferBindingSize, maxComputeWorkgroupStorageSize, maxComputeInvocationsPerWorkgroup } = gpu.limits;
    return {
      adapter: { vendor, architecture, device, description, isFallbackAdapter },
      shaderF16: gpu.features.has('shader-f16'),
      subgroups: gpu.features.has('subgroups') ? { min, max } : null,
      limits: { maxBufferSize, maxStorageBufferBindingSize, maxComputeWorkgroupStorageSize, maxComputeInvocationsPerWorkgroup },
    };
  }

  /** How a problem would run. Nothing is run, compiled or allocated. */
  async plan(problem: AttentionProblem): Promise<Plan> {
    this.#device.check();
    const wasm = toWasm(problem, problem.element ?? 'f32', undefined);
    try {
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
      wasm.free();
    }
  }

  /**
   * Computes attention. Typed arrays in, typed arrays out; with Q on the GPU, the results stay there. `output` says
   * otherwise.
   *
   * @throws {InvalidProblemError} if the problem contradicts itself
   * @throws {InvalidTensorError} if a tensor has another length or type than the problem says
   * @throws {UnsupportedError} if it passes a limit of this device
   * @throws {OutOfMemoryError} if the GPU has no memory left
   * @throws {DeviceLostError} if the device was lost before or during the call
   */
  forward(options: ForwardOptions & { output: 'gpu' }): Promise<ForwardTensors>;
  forward(options: ForwardOptions & { q: GpuTensor; output?: 'gpu' }): Promise<ForwardTensors>;
  forward(options: ForwardOptions & { q: GpuTensor; output: 'array' }): Promise<ForwardArrays>;
  forward<Q extends Exclude<TensorData, GpuTensor>>(
    options: ForwardOptions & { q: Q; output?: 'array' },
  ): Promise<ForwardArrays<Returned<Q>>>;
  async forward(options: ForwardOptions & { output?: 'gpu' | 'array' }): Promise<ForwardArrays | ForwardTensors> {
    const { q, k, v, sink } = options;
    const { element, array } = tensorType({ q, k, v }, options.element);
    const ofHeads: Record<string, TensorData> = sink === undefined ? {} : { sink };
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
  backward(options: BackwardOptions & { q: GpuTensor; output?: 'gpu' }): Promise<BackwardTensors>;
  backward(options: BackwardOptions & { q: GpuTensor; output: 'array' }): Promise<BackwardArrays>;
  backward(options: BackwardOptions & { gradientElement: 'f32'; output?: 'array' }): Promise<BackwardArrays<Float32Array<ArrayBuffer>>>;
  backward<Q extends Exclude<TensorData, GpuTensor>>(
    options: BackwardOptions & { q: Q; output?: 'array' },
  ): Promise<BackwardArrays<Returned<Q>>>;
  async backward(options: BackwardOptions & { output?: 'gpu' | 'array' }): Promise<BackwardArrays | BackwardTensors> {
    const { q, k, v, o, lse, dO, dLse, sink, gradientElement } = options;
    const { element, array } = tensorType({ q, k, v, o, dO }, options.element);
    const inF32: Record<string, TensorData> = { lse, ...dLse === undefined ? {} : { dLse }, ...sink === undefined ? {} : { sink } };
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
  probabilities(options: ProbabilitiesOptions & { q: GpuTensor; output?: 'gpu' }): Promise<ProbabilitiesTensor>;
  probabilities(options: ProbabilitiesOptions & { output?: 'array' }): Promise<ProbabilitiesArray>;
  async probabilities(options: ProbabilitiesOptions & { output?: 'gpu' | 'array' }): Promise<ProbabilitiesArray | ProbabilitiesTensor> {
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
   * Copies a typed array to the GPU, where it stays until `destroy()`. A `Uint16Array` holds f16 bits, or bf16 bits with
   * `element: 'bf16'`; a `Uint32Array` holds the bits of a mask, as `packMask` makes them.
   */
  async upload(data: Exclude<TensorData, GpuTensor> | Uint32Array, { element }: { element?: Element } = {}): Promise<GpuTensor> {
    this.#device.check();
    const array = arrayName(data);
    if (array === undefined) throw new InvalidTensorError('upload takes a Float32Array, Uint16Array, Float16Array or Uint32Array');
    return this.#upload(data, elementOf('the array', array, element), []);
  }

  /**
   * Your own buffer of this device as a tensor, without a copy. It needs `GPUBufferUsage.STORAGE` (and `COPY_SRC` for
   * `read`), holds the elements from byte 0, and stays yours to destroy. That of a mask has `element: 'u32'`.
   */
  wrap(buffer: GPUBuffer, { element = 'f32', length = Math.floor(buffer.size / elementSize(element)) }: { element?: TensorElement; length?: number } = {}): GpuTensor {
    this.#device.check();
    if (!(buffer.usage & BufferUsage.STORAGE)) throw new InvalidTensorError('the buffer was created without GPUBufferUsage.STORAGE');
    if (buffer.size % 4 !== 0) throw new InvalidTensorError(`the buffer has ${buffer.size} bytes; make it a multiple of 4`);
    if (length * elementSize(element) > buffer.size) {
      throw new InvalidTensorError(`${length} elements of ${element} do not fit a buffer of ${buffer.size} bytes`);
    }
    const array = element === 'f32' ? 'Float32Array' : element === 'u32' ? 'Uint32Array' : 'Uint16Array';
    return new GpuTensor(this.#device, buffer, this.#device.adopt(buffer), length, element, array, false);
  }

  /** Frees everything, and the device unless it was yours. Calls after it throw `DeviceLostError`. */
  destroy(): void {
    this.#operations.destroy();
    this.#device.destroy();
  }

  /** Uploads, runs and reads back, or leaves the outputs on the GPU. */
  async #compute(
    task: Task,
    options: (ForwardOptions | BackwardOptions | ProbabilitiesOptions) & { output?: 'gpu' | 'array' },
    element: Element,
    given: Record<string, TensorData>,
    outputs: Output[],
  ): Promise<{ tensors: (TensorArray | GpuTensor)[]; stats: RunStats }> {
    this.#device.check();
    options.signal?.throwIfAborted();
    const { aux } = options;
    const inputs = { ...given, ...entriesOf(options, element), ...aux === undefined ? {} : { aux } };
    const { boundedWork = this.#throughput.bound() } = options;
    const onGpu = (options.output ?? (options.q instanceof GpuTensor ? 'gpu' : 'array')) === 'gpu';
    return this.#operations.use(task, options, element, boundedWork === false ? undefined : boundedWork, async (prepared, flops) => {
      for (const [name, data] of Object.entries(given)) {
        const isExact = isDense(options) || !prepared.has_layout(name);
        checkLength(CALLED[name] ?? name, data, prepared.required_len(name), isExact);
      }
      const made: GpuTensor[] = [];
      try {
        // One array that is passed twice (packed layouts) is uploaded once.
        const uploaded = new Map<TensorData | Aux, GpuTensor>();
        const tensors: Record<string, GpuTensor> = {};
        for (const [name, data] of Object.entries(inputs)) {
          const tensor = data instanceof GpuTensor ? data
            : uploaded.get(data) ?? await this.#upload(data, elementIn(prepared, name), made);
          uploaded.set(data, tensor);
          tensors[name] = tensor;
        }
        const results: GpuTensor[] = [];
        for (const { name, array } of outputs) {
          const tensor = await this.#allocate(prepared.required_len(name), elementIn(prepared, name), array, made);
          results.push(tensors[name] = tensor);
        }
        const stats = await this.#run(prepared, tensors, flops, options);
        if (!onGpu) return { tensors: await Promise.all(results.map((tensor) => tensor.read())), stats };
        made.splice(0, made.length, ...made.filter((tensor) => !results.includes(tensor)));
        return { tensors: results, stats };
      } finally {
        for (const tensor of made) tensor.destroy();
      }
    });
  }

  async #run(
    prepared: Prepared,
    tensors: Record<string, GpuTensor>,
    flops: number,
    { signal, onProgress, boundedWork, dropout }: ForwardOptions | BackwardOptions | ProbabilitiesOptions,
  ): Promise<RunStats> {
    const device = this.#device;
    const total = prepared.num_dispatches;
    const { seed, offset } = dropoutSeed(dropout);
    const bound = new Tensors();
    try {
      for (const [name, tensor] of Object.entries(tensors)) bound.add(name, tensor.use(device, CALLED[name] ?? name));
      const began = performance.now();
      // Dispatches in a submission: as many as keep the GPU busy and the page alive.
      let batch = boundedWork === false ? total : 1;
      for (let start = 0; start < total;) {
        signal?.throwIfAborted();
        const end = Math.min(total, start + batch);
        const submitted = performance.now();
        const { error } = device.caught('running attention', () => prepared.submit(device.wasm, bound, start, end, seed, offset));
        // A lost device may reject here; `error` tells.
        await device.gpu.queue.onSubmittedWorkDone().catch(() => undefined);
        await error;
        const milliseconds = performance.now() - submitted;
        if (this.#warm.has(prepared)) this.#throughput.learn(flops * (end - start) / total, milliseconds);
        this.#warm.add(prepared);
        if (milliseconds < 20) batch *= 2;
        else if (milliseconds > 80) batch = Math.max(1, Math.floor(batch / 2));
        start = end;
        onProgress?.({ completed: start, total });
      }
      signal?.throwIfAborted();
      return { milliseconds: performance.now() - began, flops, dispatches: total };
    } finally {
      bound.free();
    }
  }

  async #upload(data: Exclude<TensorData, GpuTensor> | Uint32Array, element: TensorElement, made: GpuTensor[]): Promise<GpuTensor> {
    const tensor = await this.#allocate(data.length, element, arrayName(data)!, made);
    const { error } = this.#device.caught('uploading a tensor', () => {
      const { queue } = this.#device.gpu;
      // Writes are of whole words: an odd last element goes with zeros behind it.
      const body = data.byteLength - data.byteLength % 4;
      const source = data.buffer as ArrayBuffer;
      if (body > 0) queue.writeBuffer(tensor.buffer, 0, source, data.byteOffset, body);
      if (body < data.byteLength) {
        const tail = new Uint8Array(4);
        tail.set(new Uint8Array(source, data.byteOffset + body, data.byteLength - body));
        queue.writeBuffer(tensor.buffer, body, tail);
      }
    });
    await error;
    return tensor;
  }

  async #allocate(length: number, element: TensorElement, array: ArrayName, made: GpuTensor[]): Promise<GpuTensor> {
    const usage = BufferUsage.STORAGE | BufferUsage.COPY_SRC | BufferUsage.COPY_DST;
    const size = bufferBytes(length, element);
    const { result: buffer, error } = this.#device.caught(`allocating ${size} bytes`, () => this.#device.gpu.createBuffer({ size, usage }));
    const tensor = new GpuTensor(this.#device, buffer, this.#device.adopt(buffer), length, element, array, true);
    made.push(tensor);
    await error;
    return tensor;
  }
}

/** The element that an operation stores a tensor in, by the crate's name. */
function elementIn(prepared: Prepared, name: string): TensorElement {
  return prepared.element(name) as TensorElement;
}

/** The kind of array that a tensor comes in. */
function arrayOf(data: TensorData): ArrayName | undefined {
  return data instanceof GpuTensor ? data.array : arrayName(data);
}

/** A range of the heads or rows of a problem. */
function chosen(name: string, range: unknown, count: number): [number, number] {
  if (range === undefined) return [0, count];
  if (!Array.isArray(range) || range.length !== 2) throw new InvalidProblemError(`${name} is a pair [first, end]`);
  return [whole(`${name}[0]`, range[0], count), whole(`${name}[1]`, range[1], count)];
}

function checkLength(name: string, { length }: TensorData, needed: number, isDense: boolean): void {
  if (isDense ? length === needed : length >= needed) return;
  throw new InvalidTensorError(`${name} has ${length} elements, but its shape needs ${isDense ? '' : 'at least '}${needed}`);
}
