import { describe, has } from './checks.js';
import {
  AttentionError, DeviceLostError, GpuError, InvalidOptionError, InvalidTensorError, NoWebGPUError, OutOfMemoryError, fromWasm, worded,
} from './errors.js';
import { CallersError, untilAborted } from './stop.js';
import { View, isOutOfMemory, whenBroken } from './view.js';
import { Attention, Tensor } from './wasm.js';

/** @internal What the device may and may not have. */
export interface DeviceOptions {
  gpu: GPU | undefined;
  powerPreference: 'high-performance' | 'low-power' | undefined;
  device: GPUDevice | undefined;
  subgroups: boolean;
  shaderF16: boolean;
}

/** @internal What a call records at once, and what it awaits when that was submitted. */
export type Recording<T> = (encoder: GPUCommandEncoder) => () => Promise<T>;

interface Job {
  task: string;
  record: Recording<unknown>;
  resolve: (value: unknown) => void;
  reject: (error: unknown) => void;
}

/** What the browsers say of a buffer that `wrap` was given, and what it means. */
const FAULTS_OF_BUFFERS = [
  [/destroyed/i, 'a buffer was destroyed before it was used'],
  [/mapped/i, 'a buffer is mapped; unmap it first'],
  [/associated with \[Device|different device|doesn't match \S*device|device mismatch/i, 'a buffer is of another device; copy it through JavaScript'],
] as const;

/** @internal A `GPUDevice`, wgpu's side of it, and what became of it. */
export class Device {
  readonly gpu: GPUDevice;
  readonly info: Partial<GPUAdapterInfo>;
  readonly wasm: Attention;
  readonly #view: View;
  readonly #isOwned: boolean;
  /** Dawn's instance stops to answer when it is collected as garbage. */
  #instance: GPU | undefined;
  #lost: string | undefined;
  /** Rejections of the calls that are under way. */
  readonly #calls = new Set<(error: unknown) => void>();
  /** Calls that still use `wasm`, though their callers may have been answered. */
  #users = 0;
  #isFree = false;
  #jobs: Job[] = [];
  /** The end of the last submission, if someone waits for it. */
  #done: Promise<void> | undefined;

  private constructor(gpu: GPUDevice, info: Partial<GPUAdapterInfo>, wasm: Attention, view: View, { device, gpu: instance }: DeviceOptions) {
    this.gpu = gpu;
    this.info = info;
    this.wasm = wasm;
    this.#view = view;
    this.#isOwned = device === undefined;
    this.#instance = instance;
    void gpu.lost.then(({ reason, message }) => {
      this.#lose(message || (reason === 'destroyed' ? 'it was destroyed' : 'the browser does not say why'));
    });
  }

  static async request(options: DeviceOptions): Promise<Device> {
    const isOwned = options.device === undefined;
    const { gpu, info } = options.device ? await given(options.device) : await requested(options);
    const left = new Set([...options.subgroups ? [] : ['subgroups'], ...options.shaderF16 ? [] : ['shader-f16']]);
    const features = new Set<string>([...gpu.features].filter((feature) => !left.has(feature)));
    try {
      const view = new View(gpu, info, features);
      const wasm = await orBroken(view.show(() => Attention.create()));
      if (features.has('subgroups')) wasm.use_subgroups();
      return new Device(gpu, info, wasm, view, options);
    } catch (error) {
      if (isOwned) gpu.destroy();
      throw fromWasm(error);
    }
  }

  /** Throws if the device is lost. */
  check(): void {
    if (this.#lost !== undefined) throw this.#lostError();
  }

  #lostError(): DeviceLostError {
    return new DeviceLostError(`the GPU device was lost (${this.#lost}); call FlashAttention.create() again and upload anew`);
  }

  #lose(why: string): void {
    this.#lost ??= why;
    this.#view.end();
    for (const reject of this.#calls) reject(this.#lostError());
    this.#calls.clear();
  }

  /**
   * A call of the API. It rejects as soon as the device is lost or the signal is aborted; what it had begun goes on to its end, and
   * frees what it has; what it gives then is discarded.
   */
  async call<T>(signal: AbortSignal | undefined, work: () => Promise<T>, discard: (late: T) => void = () => undefined): Promise<T> {
    this.check();
    this.#users++;
    const running = work().catch((error: unknown) => {
      if (error instanceof CallersError) throw error.error;
      throw signal?.aborted && error === signal.reason ? error : this.translate(error);
    }).finally(() => {
      this.#users--;
      this.#freeWhenUnused();
    });
    return orBroken(new Promise<T>((resolve, reject) => {
      this.#calls.add(reject);
      untilAborted(signal, running, discard).then(resolve, reject).finally(() => this.#calls.delete(reject));
    }));
  }

  destroy(): void {
    const wasAlive = this.#lost !== 'destroy() was called';
    this.#lost = 'destroy() was called';
    this.#lose(this.#lost);
    if (this.#isOwned) this.gpu.destroy();
    this.#instance = undefined;
    if (wasAlive) this.#freeWhenUnused();
  }

  #freeWhenUnused(): void {
    // Operations that are let go of end in microtasks.
    if (this.#lost === 'destroy() was called' && this.#users === 0) setTimeout(() => this.#users === 0 && this.#free());
  }

  #free(): void {
    if (this.#isFree) return;
    this.#isFree = true;
    this.wasm.free();
  }

  /** Runs synchronous GPU calls; what the browser has against them arrives as a rejection of `error`. */
  caught<T>(task: string, calls: () => T): { result: T; error: Promise<void> } {
    this.check();
    // Internal errors come from pipelines, which wgpu makes in scopes of its own.
    const filters = ['validation', 'out-of-memory'] as const;
    for (const filter of filters) this.gpu.pushErrorScope(filter);
    // Only a lost device makes it reject, and of that `call` hears.
    const pop = (): Promise<(GPUError | null)[]> => Promise.all(filters.map(() => this.gpu.popErrorScope().catch(() => null)));
    let result: T;
    try {
      result = calls();
    } catch (error) {
      void pop();
      throw this.translate(error);
    }
    const error = pop().then((errors) => {
      this.check();
      if (errors.some((error) => error !== null && isOutOfMemory(error))) {
        throw new OutOfMemoryError(`the GPU was full while ${task}; destroy tensors, or make the problem smaller`);
      }
      const found = errors.find((error) => error !== null);
      if (!found) return;
      const why = FAULTS_OF_BUFFERS.find(([pattern]) => pattern.test(found.message));
      if (why) throw new InvalidTensorError(`${why[1]}: ${found.message}`);
      throw new GpuError(`the browser refused the operation: ${found.message}`);
    });
    // Whoever started it awaits it too; until then it must not count as unhandled.
    error.catch(() => undefined);
    return { result, error };
  }

  /** What WebAssembly or the browser threw, as this package's error. */
  translate(thrown: unknown): AttentionError {
    if (!(thrown instanceof AttentionError) && this.#lost !== undefined) return this.#lostError();
    return fromWasm(thrown);
  }

  /**
   * Records commands and submits them, together with those of all other calls that are made before the page's next microtask. What
   * `record` returns is called when they are submitted.
   */
  submit<T>(task: string, record: Recording<T>): Promise<T> {
    return new Promise<T>((resolve, reject) => {
      if (this.#jobs.length === 0) queueMicrotask(() => this.flush());
      this.#jobs.push({ task, record, resolve: resolve as Job['resolve'], reject });
    });
  }

  /** Settles when all that was submitted has run. The calls of one submission wait together. */
  done(): Promise<void> {
    // A lost device may reject here; of that `call` hears.
    return this.#done ??= this.gpu.queue.onSubmittedWorkDone().catch(() => undefined);
  }

  /** Submits what was recorded so far. */
  flush(): void {
    const jobs = this.#jobs;
    this.#jobs = [];
    if (jobs.length > 0) this.#submitNow(jobs);
  }

  #submitNow(jobs: readonly Job[]): void {
    const recorded: { job: Job; ended: Promise<unknown> }[] = [];
    let error: Promise<void>;
    try {
      ({ error } = this.caught(jobs[0]!.task, () => {
        const encoder = this.gpu.createCommandEncoder();
        const after: [Job, () => Promise<unknown>][] = [];
        for (const job of jobs) {
          try {
            after.push([job, job.record(encoder)]);
          } catch (error) {
            job.reject(this.translate(error));
          }
        }
        this.gpu.queue.submit([encoder.finish()]);
        this.#done = undefined;
        for (const [job, submitted] of after) {
          const ended = submitted();
          ended.catch(() => undefined);
          recorded.push({ job, ended });
        }
      }));
    } catch (error) {
      for (const { reject } of jobs) reject(error);
      return;
    }
    error.then(
      () => recorded.forEach(({ job, ended }) => ended.then(job.resolve, job.reject)),
      (error: unknown) => {
        // Nothing of it has run. Each alone, only those fail that are at fault.
        if (recorded.length > 1 && this.#lost === undefined) recorded.forEach(({ job }) => this.#submitNow([job]));
        else for (const { job } of recorded) job.reject(error);
      },
    );
  }

  /** Records wgpu's commands into an encoder. */
  record<T>(encoder: GPUCommandEncoder, calls: () => T): T {
    return this.#view.record(encoder, calls);
  }

  /** wgpu's side of a buffer. */
  adopt(buffer: GPUBuffer): Tensor {
    return this.#view.adopt(buffer, () => Tensor.adopt(this.wasm, buffer.size));
  }
}

/** Settles as a promise does, or rejects when WebAssembly has panicked: then the promise may never settle. */
function orBroken<T>(promise: Promise<T>): Promise<T> {
  return new Promise((resolve, reject) => {
    const forget = whenBroken((fault) => reject(new GpuError(`something broke that should not, and this page must load the module anew: ${fault}`)));
    promise.then(resolve, reject).finally(forget);
  });
}

interface Found {
  gpu: GPUDevice;
  info: Partial<GPUAdapterInfo>;
}

/** @internal Refuses what is no device, and no `navigator.gpu`. */
export function checkDevice({ device, gpu }: { device?: unknown; gpu?: unknown }): void {
  const isThenable = (value: unknown): boolean => has(value, 'then');
  const refuse = (name: string, value: unknown, what: string): never => {
    const advice = isThenable(value) ? '; await it first' : '';
    throw new InvalidOptionError(`${name} is ${describe(value)}; pass ${what}${advice}`);
  };
  if (device !== undefined && !isDevice(device)) refuse('device', device, 'a GPUDevice');
  if (gpu !== undefined && !isGpu(gpu)) {
    refuse('gpu', gpu, 'what navigator.gpu is in browsers, as create([]) of the npm package webgpu gives it');
  }
  if (device !== undefined && gpu !== undefined) throw new InvalidOptionError('device and gpu are both given; a device is enough');
}

function isGpu(value: unknown): boolean {
  try {
    return typeof (Object(value) as Partial<GPU>).requestAdapter === 'function';
  } catch {
    return false;
  }
}

function isDevice(value: unknown): value is GPUDevice {
  try {
    const { createBuffer, createComputePipeline, queue, features, limits, lost } = Object(value) as Partial<GPUDevice>;
    return typeof createBuffer === 'function' && typeof createComputePipeline === 'function' && typeof queue?.submit === 'function'
      && typeof features?.has === 'function' && typeof limits === 'object' && has(lost, 'then');
  } catch {
    // Such as a Proxy, which is not what the browser's methods want.
    return false;
  }
}

async function given(gpu: GPUDevice): Promise<Found> {
  const lost = await Promise.race([gpu.lost, new Promise<undefined>((resolve) => setTimeout(resolve, 0, undefined))]);
  if (lost) throw new DeviceLostError(`the device that was given is lost (${lost.message || lost.reason}); request another`);
  return { gpu, info: infoOf(gpu.adapterInfo) };
}

async function requested({ gpu: own, powerPreference, subgroups, shaderF16 }: DeviceOptions): Promise<Found> {
  const gpu = own ?? (globalThis.navigator as Navigator | undefined)?.gpu as GPU | undefined;
  if (!gpu) {
    throw new NoWebGPUError(globalThis.isSecureContext === false
      ? 'WebGPU needs a secure page: serve it over https, or from localhost'
      : isNode()
        ? 'Node.js has no WebGPU: install the npm package webgpu, and pass its create([]) as FlashAttention.create({ gpu })'
        : 'this browser has no WebGPU (navigator.gpu is missing): use a current Chrome, Edge, Safari or Firefox, or switch WebGPU on');
  }
  try {
    const adapter = await gpu.requestAdapter(powerPreference ? { powerPreference } : {});
    if (!adapter) {
      throw new NoWebGPUError(`WebGPU found no usable GPU: ${isNode()
        ? 'install or update its driver (on Linux, Vulkan), or see that this process may use it'
        : 'hardware acceleration may be off or the graphics driver blocked; chrome://gpu and about:support tell'}`);
    }
    const wanted = [...subgroups ? ['subgroups'] : [], ...shaderF16 ? ['shader-f16'] : [], 'timestamp-query'] as GPUFeatureName[];
    const requiredFeatures = wanted.filter((feature) => adapter.features.has(feature));
    const device = await adapter.requestDevice({ label: 'flash attention', requiredFeatures, requiredLimits: limitsOf(adapter) });
    if (!isDevice(device)) throw new InvalidOptionError(`gpu gave something ${describe(device)} for a device`);
    return { gpu: device, info: infoOf(device.adapterInfo ?? adapter.info) };
  } catch (error) {
    if (error instanceof AttentionError) throw error;
    throw new NoWebGPUError(`WebGPU gave no GPU device: ${worded(error)}`, { cause: error });
  }
}

function isNode(): boolean {
  return typeof Reflect.get(globalThis, 'process') === 'object' && !('document' in globalThis);
}

/** All that the adapter allows. */
function limitsOf({ limits }: GPUAdapter): Record<string, number> {
  const all: Record<string, number> = {};
  // They are getters of the prototype.
  for (const name in limits) {
    const value: unknown = Reflect.get(limits, name);
    if (typeof value === 'number') all[name] = value;
  }
  return all;
}

function infoOf(info: Partial<GPUAdapterInfo> | undefined): Partial<GPUAdapterInfo> {
  const { vendor = '', architecture = '', device = '', description = '', isFallbackAdapter = false } = info ?? {};
  const { subgroupMinSize = 0, subgroupMaxSize = 0 } = info ?? {};
  return { vendor, architecture, device, description, isFallbackAdapter, subgroupMinSize, subgroupMaxSize };
}

