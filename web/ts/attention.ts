import { Device } from './device.js';
import { InvalidTensorError } from './errors.js';
import { load, type WasmSource } from './load.js';
import { Operations } from './operations.js';
import { dropoutSeed, isDense, toWasm, type AttentionProblem, type Element, type ForwardOptions, type TensorData } from './options.js';
import { GpuTensor, arrayName, bufferBytes, elementSize, type Float16ArrayLike, type TensorArray } from './tensor.js';
import { Throughput } from './throughput.js';
import { BufferUsage } from './usage.js';
import type { Prepared } from './wasm.js';

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

/** What a run did. */
export interface RunStats {
  /** From the first submission until the GPU had finished, in milliseconds. */
  milliseconds: number;
  /** Floating-point operations: 2 · (headDim + headDimV) for each visible (row, key) pair. */
  flops: number;
  /** Into how many dispatches the work was split. */
  dispatches: number;
}

/** O and LSE as typed arrays. */
export interface ForwardArrays<T = TensorArray> {
  /** The output, in the kind of array that Q came in. */
  o: T;
  /** The natural log-sum-exp of each row, `[batch, numHeads, seqlen]`; −Infinity for a row that sees no key. */
  lse: Float32Array<ArrayBuffer>;
  stats: RunStats;
}

/** O and LSE, still on the GPU. */
export interface ForwardTensors {
  /** The output. */
  o: GpuTensor;
  /** The natural log-sum-exp of each row, f32. */
  lse: GpuTensor;
  stats: RunStats;
}

/** How a problem would run. */
export interface Plan {
  /** The kernels, in order. */
  kernels: string[];
  /** Rows of Q in a tile. */
  tileQ: number;
  /** Keys in a tile. */
  tileKv: number;
  /** The tiles in words. */
  tiles: string;
  /** Bytes of GPU memory beyond Q, K, V and O. */
  extraBytes: number;
  /** Floating-point operations. */
  flops: number;
  /** Elements that each tensor needs. */
  lengths: { q: number; k: number; v: number; o: number; lse: number };
}

/** What it runs on. */
export interface Info {
  /** What the browser tells of the GPU; much of it may be empty. */
  adapter: { vendor: string; architecture: string; device: string; description: string; isFallbackAdapter: boolean };
  /** Whether shaders have f16. */
  shaderF16: boolean;
  /** The sizes of subgroups, or `null` if shaders have none. */
  subgroups: { min: number; max: number } | null;
  /** The limits that matter here. */
  limits: {
    maxBufferSize: number;
    maxStorageBufferBindingSize: number;
    maxComputeWorkgroupStorageSize: number;
    maxComputeInvocationsPerWorkgroup: number;
  };
}

/** The typed array that comes back for one that went in. */
type Returned<T> = T extends Float32Array ? Float32Array<ArrayBuffer> : T extends Uint16Array ? Uint16Array<ArrayBuffer> : T;

const NAMES = ['q', 'k', 'v'] as const;
type ArrayName = NonNullable<ReturnType<typeof arrayName>>;

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
    this.#device.check();
    options.signal?.throwIfAborted();
    const { element, array } = tensorType(options);
    const { boundedWork = this.#throughput.bound() } = options;
    const onGpu = (options.output ?? (options.q instanceof GpuTensor ? 'gpu' : 'array')) === 'gpu';
    return this.#operations.use(options, element, boundedWork === false ? undefined : boundedWork, async (prepared, flops) => {
      for (const name of NAMES) checkLength(name, options[name], prepared.required_len(name), isDense(options));
      const made: GpuTensor[] = [];
      try {
        // One array that is passed twice (packed layouts) is uploaded once.
        const inputs = new Map<TensorData, GpuTensor>();
        for (const name of NAMES) {
          const data = options[name];
          if (data instanceof GpuTensor) inputs.set(data, data);
          else if (!inputs.has(data)) inputs.set(data, await this.#upload(data, element, made));
        }
        const [q, k, v] = NAMES.map((name) => inputs.get(options[name])!);
        const o = await this.#allocate(prepared.required_len('o'), element, array, made);
        const lse = await this.#allocate(prepared.required_len('lse'), 'f32', 'Float32Array', made);
        const stats = await this.#run(prepared, { q: q!, k: k!, v: v!, o, lse }, flops, options);
        if (onGpu) {
          made.splice(0, made.length, ...made.filter((tensor) => tensor !== o && tensor !== lse));
          return { o, lse, stats };
        }
        const [oArray, lseArray] = await Promise.all([o.read(), lse.read()]);
        return { o: oArray, lse: lseArray as Float32Array<ArrayBuffer>, stats };
      } finally {
        for (const tensor of made) tensor.destroy();
      }
    });
  }

  /**
   * Copies a typed array to the GPU, where it stays until `destroy()`. A `Uint16Array` holds f16 bits, or bf16 bits with
   * `element: 'bf16'`.
   */
  async upload(data: Exclude<TensorData, GpuTensor>, { element }: { element?: Element } = {}): Promise<GpuTensor> {
    this.#device.check();
    const array = arrayName(data);
    if (array === undefined) throw new InvalidTensorError('upload takes a Float32Array, Uint16Array or Float16Array');
    return this.#upload(data, elementOf('the array', array, element), []);
  }

  /**
   * Your own buffer of this device as a tensor, without a copy. It needs `GPUBufferUsage.STORAGE` (and `COPY_SRC` for
   * `read`), holds the elements from byte 0, and stays yours to destroy.
   */
  wrap(buffer: GPUBuffer, { element = 'f32', length = Math.floor(buffer.size / elementSize(element)) }: { element?: Element; length?: number } = {}): GpuTensor {
    this.#device.check();
    if (!(buffer.usage & BufferUsage.STORAGE)) throw new InvalidTensorError('the buffer was created without GPUBufferUsage.STORAGE');
    if (buffer.size % 4 !== 0) throw new InvalidTensorError(`the buffer has ${buffer.size} bytes; make it a multiple of 4`);
    if (length * elementSize(element) > buffer.size) {
      throw new InvalidTensorError(`${length} elements of ${element} do not fit a buffer of ${buffer.size} bytes`);
    }
    const array = element === 'f32' ? 'Float32Array' : 'Uint16Array';
    return new GpuTensor(this.#device, buffer, this.#device.adopt(buffer), length, element, array, false);
  }

  /** Frees everything, and the device unless it was yours. Calls after it throw `DeviceLostError`. */
  destroy(): void {
    this.#operations.destroy();
    this.#device.destroy();
  }

  async #run(
    prepared: Prepared,
    tensors: Record<'q' | 'k' | 'v' | 'o' | 'lse', GpuTensor>,
    flops: number,
    { signal, onProgress, boundedWork, dropout }: ForwardOptions,
  ): Promise<RunStats> {
    const device = this.#device;
    const total = prepared.num_dispatches;
    const { seed, offset } = dropoutSeed(dropout);
    const began = performance.now();
    // Dispatches in a submission: as many as keep the GPU busy and the page alive.
    let batch = boundedWork === false ? total : 1;
    for (let start = 0; start < total;) {
      signal?.throwIfAborted();
      const end = Math.min(total, start + batch);
      const submitted = performance.now();
      const [q, k, v, o, lse] = (['q', 'k', 'v', 'o', 'lse'] as const).map((name) => tensors[name].use(device, name));
      const { error } = device.caught('running attention', () =>
        prepared.submit(q!, k!, v!, o!, lse!, start, end, seed, offset, device.wasm));
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
  }

  async #upload(data: Exclude<TensorData, GpuTensor>, element: Element, made: GpuTensor[]): Promise<GpuTensor> {
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

  async #allocate(length: number, element: Element, array: ArrayName, made: GpuTensor[]): Promise<GpuTensor> {
    const usage = BufferUsage.STORAGE | BufferUsage.COPY_SRC | BufferUsage.COPY_DST;
    const size = bufferBytes(length, element);
    const { result: buffer, error } = this.#device.caught(`allocating ${size} bytes`, () => this.#device.gpu.createBuffer({ size, usage }));
    const tensor = new GpuTensor(this.#device, buffer, this.#device.adopt(buffer), length, element, array, true);
    made.push(tensor);
    await error;
    return tensor;
  }
}

/** The element of the problem, and the kind of array that O comes back in. */
function tensorType(options: ForwardOptions): { element: Element; array: ArrayName } {
  let element = options.element;
  for (const name of NAMES) {
    const data: unknown = options[name];
    const array = data instanceof GpuTensor ? undefined : arrayName(data);
    if (!(data instanceof GpuTensor) && array === undefined) {
      throw new InvalidTensorError(`${name} is ${describe(data)}; pass a Float32Array, Uint16Array, Float16Array or GpuTensor`);
    }
    const found = data instanceof GpuTensor ? data.element : elementOf(name, array!, element);
    element ??= found;
    if (found !== element) throw new InvalidTensorError(`${name} holds ${found}, but the problem is in ${element}; convert one of them`);
  }
  return { element: element!, array: options.q instanceof GpuTensor ? options.q.array : arrayName(options.q)! };
}

function elementOf(name: string, array: ArrayName, element: Element | undefined): Element {
  const fits = { Float32Array: ['f32'], Uint16Array: ['f16', 'bf16'], Float16Array: ['f16'] }[array] as Element[];
  if (element === undefined || fits.includes(element)) return element ?? fits[0]!;
  const helper = array === 'Float32Array' ? `; convert it with ${element === 'f16' ? 'toF16' : 'toBf16'}` : '';
  throw new InvalidTensorError(`element is '${element}', but ${name} is a ${array}${helper}`);
}

function checkLength(name: string, { length }: TensorData, needed: number, isDense: boolean): void {
  if (isDense ? length === needed : length >= needed) return;
  throw new InvalidTensorError(`${name} has ${length} elements, but its shape needs ${isDense ? '' : 'at least '}${needed}`);
}

function describe(data: unknown): string {
  if (data === undefined || data === null) return String(data);
  return `of type ${(data as object).constructor?.name ?? typeof data}`;
}
