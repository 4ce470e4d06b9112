/**
 * What wgpu sees in place of the browser. wgpu takes its device from `navigator.gpu`, can neither adopt a `GPUBuffer` nor record
 * into another's encoder, and never asks for subgroups. So it is given objects of this package's own, which pass its calls on to
 * the true device. Nothing of the page is changed for that, and it works where there is no `navigator.gpu`, as in Node.js.
 */
interface Shown {
  gpu: GPUDevice;
  info: Partial<GPUAdapterInfo>;
  features: ReadonlySet<string>;
  view: View;
}

let shown: Shown | undefined;
let turn: Promise<unknown> = Promise.resolve();

/** @internal The classes of errors that wasm.js knows, under their names. */
export class GPUValidationError {
  readonly message: string;

  constructor(message: string) {
    this.message = message;
  }
}

/** @internal None of the other kind: wgpu asks for that first. */
export class GPUOutOfMemoryError {
  readonly message: string;

  constructor(message: string) {
    this.message = message;
  }
}

let fault: string | undefined;
const waiting = new Set<(fault: string) => void>();

/** @internal WebAssembly calls it when it panics: its state is then not to be trusted, and its promises never settle. */
export function broken(panic: string): void {
  fault ??= panic;
  for (const tell of waiting) tell(fault);
  waiting.clear();
}

/** @internal Hears if WebAssembly panics, or has; returns how to hear no more. */
export function whenBroken(tell: (fault: string) => void): () => void {
  if (fault === undefined) waiting.add(tell);
  else tell(fault);
  return () => waiting.delete(tell);
}

/** @internal wgpu's view of one device. */
export class View {
  readonly #gpu: GPUDevice;
  readonly #info: Partial<GPUAdapterInfo>;
  readonly features: ReadonlySet<string>;
  #isGone = false;
  #adopted: GPUBuffer | undefined;
  #encoder: GPUCommandEncoder | undefined;

  constructor(gpu: GPUDevice, info: Partial<GPUAdapterInfo>, features: ReadonlySet<string>) {
    this.#gpu = gpu;
    this.#info = info;
    this.features = features;
  }

  /** Lets `make` create wgpu's side of the device; one at a time, and in microtasks alone. */
  show<T>(make: () => Promise<T>): Promise<T> {
    const made = turn.then(() => {
      shown = { gpu: this.#gpu, info: this.#info, features: this.features, view: this };
      return make();
    }).finally(() => shown = undefined);
    turn = made.catch(() => undefined);
    return made;
  }

  /** The next buffer that wgpu creates in `calls` is this one. */
  adopt<T>(buffer: GPUBuffer, calls: () => T): T {
    this.#adopted = buffer;
    try {
      return calls();
    } finally {
      this.#adopted = undefined;
    }
  }

  /** The encoder that wgpu creates in `calls` is this one; what the browser has against the calls, its user is told. */
  record<T>(encoder: GPUCommandEncoder, calls: () => T): T {
    this.#encoder = encoder;
    try {
      return calls();
    } finally {
      this.#encoder = undefined;
    }
  }

  /** The device is lost: whoever still compiles gets nothing more of it, and nothing is said in the console. */
  end(): void {
    this.#isGone = true;
  }

  // From here on what wgpu calls.

  get limits(): GPUSupportedLimits {
    return this.#gpu.limits;
  }

  get adapterInfo(): Partial<GPUAdapterInfo> {
    return this.#info;
  }

  get queue(): object {
    const { queue } = this.#gpu;
    return {
      writeBuffer: (...all: Parameters<GPUQueue['writeBuffer']>) => this.#isGone || queue.writeBuffer(...all),
      submit: (buffers: GPUCommandBuffer[]) => queue.submit(buffers),
    };
  }

  createBuffer(descriptor: GPUBufferDescriptor): GPUBuffer {
    if (this.#adopted) return this.#adopted;
    return this.#isGone ? nothing as unknown as GPUBuffer : this.#gpu.createBuffer(descriptor);
  }

  createCommandEncoder(descriptor: GPUCommandEncoderDescriptor): GPUCommandEncoder {
    return this.#encoder ?? this.#gpu.createCommandEncoder(descriptor);
  }

  createShaderModule(descriptor: GPUShaderModuleDescriptor): GPUShaderModule {
    return this.#isGone ? nothing as unknown as GPUShaderModule : this.#gpu.createShaderModule(descriptor);
  }

  createBindGroupLayout(descriptor: GPUBindGroupLayoutDescriptor): GPUBindGroupLayout {
    return this.#isGone ? nothing as unknown as GPUBindGroupLayout : this.#gpu.createBindGroupLayout(descriptor);
  }

  createPipelineLayout(descriptor: GPUPipelineLayoutDescriptor): GPUPipelineLayout {
    return this.#isGone ? nothing as unknown as GPUPipelineLayout : this.#gpu.createPipelineLayout(descriptor);
  }

  createComputePipeline(descriptor: GPUComputePipelineDescriptor): GPUComputePipeline {
    return this.#isGone ? nothing as unknown as GPUComputePipeline : this.#gpu.createComputePipeline(descriptor);
  }

  createBindGroup(descriptor: GPUBindGroupDescriptor): GPUBindGroup {
    return this.#isGone ? nothing as unknown as GPUBindGroup : this.#gpu.createBindGroup(descriptor);
  }

  pushErrorScope(filter: GPUErrorFilter): void {
    if (!this.#encoder && !this.#isGone) this.#gpu.pushErrorScope(filter);
  }

  async popErrorScope(): Promise<GPUValidationError | GPUOutOfMemoryError | null> {
    if (this.#encoder || this.#isGone) return null;
    // A lost device rejects; of that its users hear otherwise.
    const error = await this.#gpu.popErrorScope().catch(() => null);
    if (error === null) return null;
    return isOutOfMemory(error) ? new GPUOutOfMemoryError(error.message) : new GPUValidationError(error.message);
  }
}

/** @internal By its name: the class may be of another frame, or not be global at all. */
export function isOutOfMemory(error: GPUError): boolean {
  return error.constructor.name === 'GPUOutOfMemoryError';
}

/** What a lost device makes. */
const nothing = { destroy: () => undefined, getCompilationInfo: async () => ({ messages: [] }) };

const gpu = {
  wgslLanguageFeatures: new Set<string>(),
  requestAdapter: async () => shown && {
    features: shown.features,
    limits: shown.gpu.limits,
    info: shown.info,
    requestDevice: async () => shown?.view,
  },
};

/** @internal The global object that wasm.js sees. */
export const world: object = Object.create(globalThis, { Window: { value: true }, navigator: { value: { gpu } } });
