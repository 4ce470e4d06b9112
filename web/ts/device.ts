import { AttentionError, DeviceLostError, GpuError, NoWebGPUError, OutOfMemoryError, fromWasm } from './errors.js';
import { Attention, Tensor } from './wasm.js';

/** @internal What the device may and may not have. */
export interface DeviceOptions {
  powerPreference: 'high-performance' | 'low-power' | undefined;
  device: GPUDevice | undefined;
  subgroups: boolean;
  shaderF16: boolean;
}

/** @internal A `GPUDevice`, wgpu's view of it, and what became of it. */
export class Device {
  readonly gpu: GPUDevice;
  readonly wasm: Attention;
  readonly #isOwned: boolean;
  #lost: string | undefined;

  private constructor(gpu: GPUDevice, wasm: Attention, isOwned: boolean) {
    this.gpu = gpu;
    this.wasm = wasm;
    this.#isOwned = isOwned;
    void gpu.lost.then(({ reason, message }) => {
      this.#lost ??= message || (reason === 'destroyed' ? 'it was destroyed' : 'the browser does not say why');
    });
  }

  static async request(options: DeviceOptions): Promise<Device> {
    await refuseWithoutWebGPU();
    const { gpu, wasm } = await requestThroughWgpu(options);
    if (gpu.features.has('subgroups')) wasm.use_subgroups();
    return new Device(gpu, wasm, options.device === undefined);
  }

  /** Throws if the device is lost. */
  check(): void {
    if (this.#lost === undefined) return;
    throw new DeviceLostError(`the GPU device was lost (${this.#lost}); call FlashAttention.create() again and upload anew`);
  }

  /** The browser rejected what only a lost device makes it reject; its word that the device is lost may come a little later. */
  async rejected(): Promise<null> {
    await Promise.race([this.gpu.lost, new Promise((resolve) => setTimeout(resolve, 1000))]);
    this.#lost ??= 'the browser does not say why';
    return null;
  }

  destroy(): void {
    if (this.#lost === undefined) this.wasm.free();
    this.#lost = 'destroy() was called';
    if (this.#isOwned) this.gpu.destroy();
  }

  /** Runs synchronous GPU calls; what the browser has against them arrives as a rejection of `error`. */
  caught<T>(task: string, calls: () => T): { result: T; error: Promise<void> } {
    this.check();
    const filters = ['validation', 'out-of-memory', 'internal'] as const;
    for (const filter of filters) this.gpu.pushErrorScope(filter);
    const pop = (): Promise<(GPUError | null)[]> =>
      Promise.all(filters.map(() => this.gpu.popErrorScope().catch(() => this.rejected())));
    let result: T;
    try {
      result = calls();
    } catch (error) {
      void pop();
      throw this.translate(error);
    }
    const error = pop().then((errors) => {
      this.check();
      if (errors.some((error) => error instanceof GPUOutOfMemoryError)) {
        throw new OutOfMemoryError(`out of GPU memory while ${task}; destroy tensors, or make the problem smaller`);
      }
      const found = errors.find((error) => error !== null);
      if (found) throw new GpuError(`the browser refused the operation: ${found.message}`);
    });
    // Whoever started it awaits it too; until then it must not count as unhandled.
    error.catch(() => undefined);
    return { result, error };
  }

  /** What WebAssembly or the browser threw, as this package's error. */
  translate(thrown: unknown): unknown {
    const error = fromWasm(thrown);
    if (error instanceof AttentionError || this.#lost === undefined) return error;
    return new DeviceLostError(`the GPU device was lost (${this.#lost})`);
  }

  /**
   * wgpu's view of a buffer. It can only create buffers, so for the length of one synchronous call the device's
   * `createBuffer` hands this one out.
   */
  adopt(buffer: GPUBuffer): Tensor {
    const { gpu } = this;
    Object.defineProperty(gpu, 'createBuffer', { configurable: true, value: () => buffer });
    try {
      return Tensor.adopt(this.wasm, buffer.size);
    } finally {
      Reflect.deleteProperty(gpu, 'createBuffer');
    }
  }
}

async function refuseWithoutWebGPU(): Promise<void> {
  const gpu = globalThis.navigator?.gpu as GPU | undefined;
  if (!gpu) {
    throw new NoWebGPUError(globalThis.isSecureContext === false
      ? 'WebGPU needs a secure page: serve it over https, or from localhost'
      : 'this browser has no WebGPU (navigator.gpu is missing): use a current Chrome, Edge, Safari or Firefox, or switch WebGPU on');
  }
  if (!await gpu.requestAdapter()) {
    throw new NoWebGPUError('WebGPU found no usable GPU: hardware acceleration may be off or the graphics driver blocked; ' +
      'chrome://gpu and about:support tell');
  }
}

let requests = 0;
let queue: Promise<unknown> = Promise.resolve();

/**
 * The device, through wgpu. wgpu 30 never asks a browser for subgroups and never shows the `GPUDevice` that it got, so
 * `GPUAdapter.prototype.requestDevice` is wrapped while it asks; the label tells its request from the page's own.
 */
function requestThroughWgpu(options: DeviceOptions): Promise<{ gpu: GPUDevice; wasm: Attention }> {
  const label = `flash attention ${requests++}`;
  const request = async (): Promise<{ gpu: GPUDevice; wasm: Attention }> => {
    const prototype = GPUAdapter.prototype;
    const original = prototype.requestDevice;
    let gpu: GPUDevice | undefined;
    prototype.requestDevice = async function (descriptor) {
      if (descriptor?.label !== label) return original.call(this, descriptor);
      if (options.device) return gpu = options.device;
      const features = new Set<GPUFeatureName>(descriptor.requiredFeatures as Iterable<GPUFeatureName>);
      if (options.subgroups && this.features.has('subgroups')) features.add('subgroups');
      if (!options.shaderF16) features.delete('shader-f16');
      return gpu = await original.call(this, { ...descriptor, requiredFeatures: [...features] });
    };
    try {
      const wasm = await Attention.create(options.powerPreference ?? '', label);
      return { gpu: gpu!, wasm };
    } catch (error) {
      throw fromWasm(error);
    } finally {
      prototype.requestDevice = original;
    }
  };
  // One at a time, or the first to end would take the second's wrapping away.
  const result = queue.then(request);
  queue = result.catch(() => undefined);
  return result;
}
