import { InvalidTensorError } from './errors.js';
import type { Device } from './device.js';
import type { Element, TensorData } from './options.js';
import { BufferUsage, MAP_MODE_READ } from './usage.js';
import type { Tensor } from './wasm.js';

/** `Float16Array`, in words that older TypeScript understands. */
export interface Float16ArrayLike extends ArrayBufferView {
  readonly BYTES_PER_ELEMENT: number;
  readonly length: number;
  readonly [Symbol.toStringTag]: 'Float16Array';
  [index: number]: number;
}

/** What a tensor on the GPU holds: elements, or the words of a mask. */
export type TensorElement = Element | 'u32';

/** A typed array of tensor elements, or of the words of a mask. */
export type TensorArray = Float32Array<ArrayBuffer> | Uint16Array<ArrayBuffer> | Float16ArrayLike | Uint32Array<ArrayBuffer>;

/** @internal The name of a typed array that can hold a tensor. */
export type ArrayName = 'Float32Array' | 'Uint16Array' | 'Float16Array' | 'Uint32Array';

/** @internal The name of a typed array, by its tag: arrays of other frames count too. */
export function tagOf(data: unknown): string {
  return ArrayBuffer.isView(data) && !(data instanceof DataView) ? String(Reflect.get(data, Symbol.toStringTag)) : '';
}

/** @internal The name of a typed array that can hold a tensor. */
export function arrayName(data: unknown): ArrayName | undefined {
  const tag = tagOf(data);
  return tag === 'Float32Array' || tag === 'Uint16Array' || tag === 'Float16Array' || tag === 'Uint32Array' ? tag : undefined;
}

/** @internal */
export function elementSize(element: TensorElement): number {
  return element === 'f32' || element === 'u32' ? 4 : 2;
}

/** @internal Buffers hold whole words, and 16 bytes at least. */
export function bufferBytes(length: number, element: TensorElement): number {
  return Math.max(16, Math.ceil(length * elementSize(element) / 4) * 4);
}

/**
 * A tensor that stays on the GPU between calls. Made by `upload`, `wrap`, or a `forward` whose inputs are on the GPU.
 * The garbage collector knows nothing of GPU memory: call `destroy()`.
 */
export class GpuTensor {
  /** The buffer, for your own WebGPU code on the same device. It holds the elements from byte 0. */
  readonly buffer: GPUBuffer;
  /** Elements. */
  readonly length: number;
  /** Their type. */
  readonly element: TensorElement;

  readonly #device: Device;
  readonly #array: ArrayName;
  readonly #isOwned: boolean;
  #tensor: Tensor | undefined;

  /** @internal */
  constructor(device: Device, buffer: GPUBuffer, tensor: Tensor, length: number, element: TensorElement, array: ArrayName, isOwned: boolean) {
    this.buffer = buffer;
    this.length = length;
    this.element = element;
    this.#device = device;
    this.#array = array;
    this.#isOwned = isOwned;
    this.#tensor = tensor;
  }

  /** Copies the elements back: a `Float32Array` for f32, a `Uint32Array` for u32; for 16-bit elements the kind of array they came from. */
  async read(): Promise<TensorArray> {
    this.use(this.#device, 'this tensor');
    const { gpu } = this.#device;
    const bytes = Math.ceil(this.length * elementSize(this.element) / 4) * 4;
    const { result: staging, error } = this.#device.caught('reading a tensor back', () => {
      const staging = gpu.createBuffer({ size: Math.max(bytes, 4), usage: BufferUsage.MAP_READ | BufferUsage.COPY_DST });
      const encoder = gpu.createCommandEncoder();
      if (bytes > 0) encoder.copyBufferToBuffer(this.buffer, 0, staging, 0, bytes);
      gpu.queue.submit([encoder.finish()]);
      return staging;
    });
    const mapped = staging.mapAsync(MAP_MODE_READ).catch(() => this.#device.rejected());
    try {
      await error;
      await mapped;
      this.#device.check();
      return this.#typed(staging.getMappedRange().slice(0, this.length * elementSize(this.element)));
    } finally {
      staging.destroy();
    }
  }

  #typed(bytes: ArrayBuffer): TensorArray {
    if (this.#array === 'Float32Array') return new Float32Array(bytes);
    if (this.#array === 'Uint16Array') return new Uint16Array(bytes);
    if (this.#array === 'Uint32Array') return new Uint32Array(bytes);
    // A tensor is of this kind only if such an array was given.
    const Float16 = Reflect.get(globalThis, 'Float16Array') as new (bytes: ArrayBuffer) => Float16ArrayLike;
    return new Float16(bytes);
  }

  /** Frees the GPU memory. A buffer that was given to `wrap` stays its owner's. */
  destroy(): void {
    if (this.#tensor === undefined) return;
    this.#tensor.free();
    this.#tensor = undefined;
    if (this.#isOwned) this.buffer.destroy();
  }

  /** @internal The kind of array that `read` gives. */
  get array(): ArrayName {
    return this.#array;
  }

  /** @internal */
  use(device: Device, name: string): Tensor {
    if (device !== this.#device) throw new InvalidTensorError(`${name} lives on the device of another FlashAttention`);
    if (this.#tensor === undefined) throw new InvalidTensorError(`${name} was destroyed`);
    device.check();
    return this.#tensor;
  }
}

/** @internal The element of some tensors, which is `element` if that is given, and the kind of array that the first one is. */
export function tensorType(tensors: Record<string, TensorData>, element: Element | undefined): { element: Element; array: ArrayName } {
  let first: ArrayName | undefined;
  for (const [name, data] of Object.entries(tensors) as [string, unknown][]) {
    const array = data instanceof GpuTensor ? data.array : arrayName(data);
    if (array === undefined) {
      throw new InvalidTensorError(`${name} is ${describe(data)}; pass a Float32Array, Uint16Array, Float16Array or GpuTensor`);
    }
    const found = data instanceof GpuTensor ? data.element : elementOf(name, array, element);
    element ??= found === 'u32' ? 'f32' : found;
    if (found !== element) throw new InvalidTensorError(`${name} holds ${found}, but ${element} is expected; convert it`);
    first ??= array;
  }
  return { element: element!, array: first! };
}

/** @internal The type that a typed array holds, which is `element` if that is given. */
export function elementOf(name: string, array: ArrayName, element: TensorElement | undefined): TensorElement {
  const fits = { Float32Array: ['f32'], Uint16Array: ['f16', 'bf16'], Float16Array: ['f16'], Uint32Array: ['u32'] }[array] as TensorElement[];
  if (element === undefined || fits.includes(element)) return element ?? fits[0]!;
  const helper = array === 'Float32Array' ? `; convert it with ${element === 'f16' ? 'toF16' : 'toBf16'}` : '';
  throw new InvalidTensorError(`element is '${element}', but ${name} is a ${array}${helper}`);
}

/** @internal */
export function describe(data: unknown): string {
  if (data === undefined || data === null) return String(data);
  return `of type ${(data as object).constructor?.name ?? typeof data}`;
}
