import type { Device } from './device.js';
import { InvalidTensorError, UnsupportedError } from './errors.js';
import type { Operation } from './operations.js';
import { dropoutSeed } from './options.js';
import type { Aux, Dropout, RunOptions, TensorData } from './options.js';
import type { RunStats } from './results.js';
import { CallersError } from './stop.js';
import { Stopwatch } from './stopwatch.js';
import { GpuTensor, arrayName, bufferBytes, copyBack, elementSize } from './tensor.js';
import type { ArrayName, TensorArray, TensorElement } from './tensor.js';
import type { Throughput } from './throughput.js';
import { BufferUsage } from './usage.js';
import { Tensors, type Prepared } from './wasm.js';

/** @internal The crate's names of tensors, where they differ from those here. */
export const NAMES: Record<string, string> = {
  mask: 'key_mask', dO: 'd_o', dLse: 'd_lse', dSink: 'dsink', dBias: 'dbias', seqlensQ: 'seqlens_q', seqlensKv: 'seqlens_kv',
  cuSeqlensQ: 'cu_seqlens_q', cuSeqlensKv: 'cu_seqlens_kv', pageTable: 'page_table', kCache: 'k_cache', vCache: 'v_cache',
  cacheSeqlens: 'cache_seqlens', newCacheSeqlens: 'new_cache_seqlens', slotMapping: 'slot_mapping', cuSeqlensNew: 'cu_seqlens_new',
  rotaryCos: 'rotary_cos', rotarySin: 'rotary_sin', qRotated: 'q_rotated',
};

/** @internal What tensors are called here, where the crate's name differs. */
export const CALLED: Record<string, string> = {
  ...Object.fromEntries(Object.entries(NAMES).map(([name, crates]) => [crates, name])), bias: 'bias.data', key_mask: 'mask.data',
};

/** @internal A tensor that a call makes. */
export interface Output {
  /** The crate's name. */
  name: string;
  array: ArrayName;
  /** Where it is to be written, if the caller says so. */
  tensor?: GpuTensor | undefined;
}

/** @internal One call. */
export interface Request {
  operation: Operation;
  /** By the crate's names. */
  inputs: Record<string, TensorData | Aux>;
  outputs: readonly Output[];
  onGpu: boolean;
  /** Whether all dispatches go at once, however many. */
  isUnbounded: boolean;
  options: RunOptions & { dropout?: Dropout | undefined };
}

/** @internal What a call gives: its outputs in their order. */
export interface Answer {
  tensors: (TensorArray | GpuTensor)[];
  stats: RunStats;
}

type Bound = Record<string, GpuTensor>;

/** @internal Uploads, runs and reads back. */
export class Runner {
  readonly #device: Device;
  readonly #throughput: Throughput;
  /** Operations that have run: browsers may compile at the first run, which says nothing of speed. */
  readonly #warm = new WeakSet<Operation>();

  constructor(device: Device, throughput: Throughput) {
    this.#device = device;
    this.#throughput = throughput;
  }

  /** What of a call can be refused without compiling. */
  check({ operation, inputs, outputs, options }: Request, isExact: (name: string) => boolean): void {
    dropoutSeed(options.dropout);
    const given: [string, { length: number }][] = Object.entries(inputs);
    for (const { name, tensor } of outputs) if (tensor) given.push([name, tensor]);
    for (const [name, data] of given) {
      const called = CALLED[name] ?? name;
      if (data instanceof GpuTensor) data.use(this.#device, called);
      const { length: needed } = operation.needs(name);
      if (isExact(name) && name !== 'aux' ? data.length === needed : data.length >= needed) continue;
      const least = isExact(name) ? '' : 'at least ';
      throw new InvalidTensorError(`${called} has ${data.length} elements, but its shape needs ${least}${needed}`);
    }
  }

  async run(request: Request): Promise<Answer> {
    const { operation, isUnbounded, options } = request;
    const prepared = operation.prepared ?? await operation.ready();
    options.signal?.throwIfAborted();
    if (isUnbounded || operation.dispatches <= 1) return this.#runAtOnce(request, prepared);
    return operation.inTurn(() => this.#runInParts(request, prepared));
  }

  /** Allocation, upload, kernels and the copy back, in one submission. */
  async #runAtOnce({ operation, inputs, outputs, onGpu, options }: Request, prepared: Prepared): Promise<Answer> {
    const device = this.#device;
    const made: GpuTensor[] = [];
    const { flops, dispatches } = operation;
    try {
      const { tensors, results, milliseconds, gpuMilliseconds } = await device.submit('running attention', (encoder) => {
        const { bound, results } = this.#bind(operation, inputs, outputs, made);
        const timed = this.encode(prepared, bound, [0, dispatches], encoder, options);
        const read = onGpu ? () => device.done().then(() => results) : copyBack(device.gpu, encoder, results);
        return async () => {
          const began = performance.now();
          const [tensors, gpuMilliseconds] = await Promise.all([read(), timed()]);
          return { tensors, results, milliseconds: performance.now() - began, gpuMilliseconds };
        };
      });
      this.#learn(operation, flops, milliseconds);
      options.signal?.throwIfAborted();
      progress(options, dispatches, dispatches);
      if (onGpu) keep(made, results);
      return { tensors, stats: { milliseconds, flops, dispatches, ...gpuMilliseconds === undefined ? {} : { gpuMilliseconds } } };
    } finally {
      for (const tensor of made) tensor.destroy();
    }
  }

  /** Many dispatches, a few in each submission: as many as keep the GPU busy and the page alive. */
  async #runInParts({ operation, inputs, outputs, onGpu, options }: Request, prepared: Prepared): Promise<Answer> {
    const device = this.#device;
    const made: GpuTensor[] = [];
    const { flops, dispatches: total } = operation;
    let gpuMilliseconds: number | undefined;
    try {
      options.signal?.throwIfAborted();
      const { result: { bound, results }, error } = device.caught('allocating tensors', () => this.#bind(operation, inputs, outputs, made));
      await error;
      const began = performance.now();
      let batch = 1;
      for (let start = 0; start < total;) {
        options.signal?.throwIfAborted();
        const end = Math.min(total, start + batch);
        const submitted = performance.now();
        const took = await device.submit('running attention', (encoder) => {
          const timed = this.encode(prepared, bound, [start, end], encoder, options);
          return async () => (await Promise.all([timed(), device.done()]))[0];
        });
        if (took !== undefined) gpuMilliseconds = (gpuMilliseconds ?? 0) + took;
        const milliseconds = performance.now() - submitted;
        this.#learn(operation, flops * (end - start) / total, milliseconds);
        if (milliseconds < 20) batch *= 2;
        else if (milliseconds > 80) batch = Math.max(1, Math.floor(batch / 2));
        start = end;
        // Whoever has aborted has the answer already.
        options.signal?.throwIfAborted();
        progress(options, start, total);
      }
      const stats = { milliseconds: performance.now() - began, flops, dispatches: total, ...gpuMilliseconds === undefined ? {} : { gpuMilliseconds } };
      if (onGpu) keep(made, results);
      const tensors = onGpu ? results : await device.submit('reading the results back', (encoder) => copyBack(device.gpu, encoder, results));
      return { tensors, stats };
    } finally {
      for (const tensor of made) tensor.destroy();
    }
  }

  /** Records dispatches; what is returned waits for their time on the GPU, if that was asked for. */
  encode(
    prepared: Prepared,
    bound: Bound,
    [start, end]: readonly [number, number],
    encoder: GPUCommandEncoder,
    { dropout, gpuTime }: Request['options'],
  ): () => Promise<number | undefined> {
    const device = this.#device;
    const { seed, offset } = dropoutSeed(dropout);
    const stopwatch = gpuTime && Stopwatch.canMeasure(device.gpu) ? new Stopwatch(device.gpu) : undefined;
    const tensors = new Tensors();
    try {
      for (const [name, tensor] of Object.entries(bound)) {
        tensors.add(name, tensor.use(device, CALLED[name] ?? name), tensor.byteOffset, tensor.buffer.size);
      }
      const target = stopwatch ? stopwatch.around(encoder) : encoder;
      device.record(target, () => prepared.encode(device.wasm, tensors, start, end, seed, offset));
    } catch (error) {
      throw device.translate(error);
    } finally {
      tensors.free();
    }
    return stopwatch ? stopwatch.stop(encoder) : async () => undefined;
  }

  #learn(operation: Operation, flops: number, milliseconds: number): void {
    if (this.#warm.has(operation) && flops > 0) this.#throughput.learn(flops, milliseconds);
    this.#warm.add(operation);
  }

  /** All tensors of a call on the GPU. */
  #bind(operation: Operation, inputs: Request['inputs'], outputs: readonly Output[], made: GpuTensor[]): { bound: Bound; results: GpuTensor[] } {
    // One array that is passed twice (packed layouts) is uploaded once.
    const uploaded = new Map<TensorData | Aux, GpuTensor>();
    const bound: Bound = {};
    for (const [name, data] of Object.entries(inputs)) {
      const { length, element } = operation.needs(name);
      // Those of `aux` are as many as there are.
      if (!(data instanceof GpuTensor) && data.length < length) {
        throw new InvalidTensorError(`${CALLED[name] ?? name} has ${data.length} elements now, but its shape needs ${length}; leave arrays as they are until the call has ended`);
      }
      const tensor = data instanceof GpuTensor ? data : uploaded.get(data) ?? this.upload(data, element!);
      if (!(data instanceof GpuTensor) && !uploaded.has(data)) made.push(tensor);
      uploaded.set(data, tensor);
      bound[name] = tensor;
    }
    const results = outputs.map(({ name, array, tensor: given }) => {
      const { length, element } = operation.needs(name);
      const tensor = given ?? this.#allocate(length, element!, array);
      if (!given) made.push(tensor);
      return bound[name] = tensor;
    });
    return { bound, results };
  }

  /** Copies an array to a tensor of its own. Errors come to the scopes that are open. */
  upload<E extends TensorElement>(given: Exclude<TensorData, GpuTensor> | Uint32Array, element: E): GpuTensor<E> {
    const tensor = this.#allocate(given.length, element, arrayName(given)!);
    const view = new Uint8Array(given.buffer, given.byteOffset, given.byteLength);
    // Not all implementations of WebGPU write from shared memory.
    const isShared = typeof SharedArrayBuffer === 'function' && given.buffer instanceof SharedArrayBuffer;
    const bytes = isShared ? view.slice() : view;
    const { queue } = this.#device.gpu;
    // Writes are of whole words: an odd last element goes with zeros behind it.
    const body = bytes.length - bytes.length % 4;
    if (body > 0) queue.writeBuffer(tensor.buffer, 0, bytes.buffer as ArrayBuffer, bytes.byteOffset, body);
    if (body < bytes.length) {
      const tail = new Uint8Array(4);
      tail.set(bytes.subarray(body));
      queue.writeBuffer(tensor.buffer, body, tail);
    }
    return tensor;
  }

  #allocate<E extends TensorElement>(length: number, element: E, array: ArrayName): GpuTensor<E> {
    const usage = BufferUsage.STORAGE | BufferUsage.COPY_SRC | BufferUsage.COPY_DST;
    const size = bufferBytes(length, element);
    const { maxBufferSize } = this.#device.gpu.limits;
    if (size > maxBufferSize) throw new UnsupportedError(`a tensor of ${size} bytes is too large for this device, whose maxBufferSize is ${maxBufferSize}`);
    const buffer = this.#device.gpu.createBuffer({ size, usage });
    return new GpuTensor(this.#device, element, { buffer, tensor: this.#device.adopt(buffer), byteOffset: 0, length, array, isOwned: true });
  }

  /** A tensor in a buffer of the caller's. */
  wrap<E extends TensorElement>(buffer: GPUBuffer, element: E, byteOffset: number, length: number): GpuTensor<E> {
    if (byteOffset % 4 !== 0) throw new InvalidTensorError(`offset = ${byteOffset}; it must be a multiple of 4 bytes`);
    if (byteOffset + length * elementSize(element) > buffer.size) {
      throw new InvalidTensorError(`${length} elements of ${element}${byteOffset ? ` from byte ${byteOffset}` : ''} do not fit a buffer of ${buffer.size} bytes`);
    }
    const array = element === 'f32' ? 'Float32Array' : element === 'u32' ? 'Uint32Array' : 'Uint16Array';
    return new GpuTensor(this.#device, element, { buffer, tensor: this.#device.adopt(buffer), byteOffset, length, array, isOwned: false });
  }
}

/** @internal Frees results that nobody waits for any more, but for those that lie in tensors of the caller's. */
export function discardResults({ tensors }: Answer, outputs: readonly Output[]): void {
  tensors.forEach((tensor, index) => {
    if (tensor instanceof GpuTensor && outputs[index]?.tensor === undefined) tensor.destroy();
  });
}

/** Takes the results off the list of what is freed at the end of a call. */
function keep(made: GpuTensor[], results: readonly GpuTensor[]): void {
  made.splice(0, made.length, ...made.filter((tensor) => !results.includes(tensor)));
}

function progress({ onProgress }: RunOptions, completed: number, total: number): void {
  try {
    onProgress?.({ completed, total });
  } catch (error) {
    throw new CallersError(error);
  }
}
