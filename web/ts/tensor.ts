import { describe, has, shown } from './checks.js';
import { InvalidOptionError, InvalidTensorError } from './errors.js';
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

/** The typed array that `read` gives for an element. */
export type ArrayOf<E extends TensorElement> =
  E extends 'f32' ? Float32Array<ArrayBuffer>
    : E extends 'u32' ? Uint32Array<ArrayBuffer>
      : E extends 'bf16' ? Uint16Array<ArrayBuffer>
        : Uint16Array<ArrayBuffer> | Float16ArrayLike;

/** The element that a typed array holds if nothing else is said. */
export type ElementOf<T> = T extends Float32Array ? 'f32' : T extends Uint32Array ? 'u32' : T extends Float16ArrayLike ? 'f16' : 'f16' | 'bf16';

/** @internal Where a tensor lies, and what it holds. */
export interface Place {
  buffer: GPUBuffer;
  tensor: Tensor;
  byteOffset: number;
  length: number;
  array: ArrayName;
  isOwned: boolean;
}

/**
 * A tensor that stays on the GPU between calls. Made by `upload`, `wrap`, or a `forward` whose inputs are on the GPU.
 * The garbage collector knows nothing of GPU memory: call `destroy()`, or declare it with `using`.
 */
export class GpuTensor<E extends TensorElement = TensorElement> {
  /** The buffer, for your own WebGPU code on the same device. */
  readonly buffer: GPUBuffer;
  /** The byte of the buffer at which the elements begin. */
  readonly byteOffset: number;
  /** Elements. */
  readonly length: number;
  /** Their type. */
  readonly element: E;

  readonly #device: Device;
  readonly #array: ArrayName;
  readonly #isOwned: boolean;
  #tensor: Tensor | undefined;

  /** @internal */
  constructor(device: Device, element: E, place: Place) {
    if ((place as unknown) === undefined) throw new InvalidOptionError('a GpuTensor is made by await attention.upload(array), or attention.wrap(buffer)');
    const { buffer, tensor, byteOffset, length, array, isOwned } = place;
    this.buffer = buffer;
    this.byteOffset = byteOffset;
    this.length = length;
    this.element = element;
    this.#device = device;
    this.#array = array;
    this.#isOwned = isOwned;
    this.#tensor = tensor;
  }

  /**
   * Copies the elements back: a `Float32Array` for f32, a `Uint32Array` for u32; for 16-bit elements the kind of array they came from.
   *
   * @throws {InvalidTensorError} if it was destroyed, or its buffer cannot be copied from
   * @throws {DeviceLostError} if the device was lost before or during the call
   */
  async read(): Promise<ArrayOf<E>> {
    const device = this.#device;
    return device.call(undefined, async () => {
      this.use(device, 'this tensor');
      const [array] = await device.submit('reading a tensor back', (encoder) => copyBack(device.gpu, encoder, [this]));
      return array as ArrayOf<E>;
    });
  }

  /** Frees the GPU memory. A buffer that was given to `wrap` stays its owner's. */
  destroy(): void {
    if (this.#tensor === undefined) return;
    // Calls that were made before still have it.
    this.#device.flush();
    this.#tensor.free();
    this.#tensor = undefined;
    if (this.#isOwned) this.buffer.destroy();
  }

  /** @internal The kind of array that `read` gives. */
  get array(): ArrayName {
    return this.#array;
  }

  /** @internal */
  get isOwned(): boolean {
    return this.#isOwned;
  }

  /** @internal */
  use(device: Device, name: string): Tensor {
    if (device !== this.#device) throw new InvalidTensorError(`${name} lives on the device of another FlashAttention`);
    if (this.#tensor === undefined) throw new InvalidTensorError(`${name} was destroyed`);
    device.check();
    return this.#tensor;
  }
}

/** A tensor can be declared with `using`. */
export interface GpuTensor<E extends TensorElement = TensorElement> {
  [Symbol.dispose](): void;
}
disposable(GpuTensor);

/** @internal Gives a class the method that `using` calls, where the language has it. */
export function disposable({ prototype }: { prototype: { destroy(): void } }): void {
  const { dispose } = Symbol as { dispose?: symbol };
  if (dispose) Object.defineProperty(prototype, dispose, { configurable: true, writable: true, value: prototype.destroy });
}

/** @internal Copies tensors into memory that JavaScript can read; what is returned waits for it. */
export function copyBack(gpu: GPUDevice, encoder: GPUCommandEncoder, tensors: readonly GpuTensor[]): () => Promise<TensorArray[]> {
  const bytesOf = ({ length, element }: GpuTensor): number => length * elementSize(element);
  // A mapped range begins at a multiple of 8 bytes.
  let size = 0;
  const places = tensors.map((tensor) => {
    const first = size;
    size += Math.ceil(bytesOf(tensor) / 8) * 8;
    return first;
  });
  if (size > gpu.limits.maxBufferSize && tensors.length > 1) {
    const all = tensors.map((tensor) => copyBack(gpu, encoder, [tensor]));
    return async () => (await Promise.all(all.map((read) => read()))).flat();
  }
  for (const { isOwned, buffer } of tensors) {
    if (isOwned || buffer.usage & BufferUsage.COPY_SRC) continue;
    throw new InvalidTensorError('the buffer was created without GPUBufferUsage.COPY_SRC, so it cannot be read');
  }
  const staging = gpu.createBuffer({ size: Math.max(size, 8), usage: BufferUsage.MAP_READ | BufferUsage.COPY_DST });
  tensors.forEach((tensor, index) => {
    const words = Math.ceil(bytesOf(tensor) / 4) * 4;
    if (words > 0) encoder.copyBufferToBuffer(tensor.buffer, tensor.byteOffset, staging, places[index]!, words);
  });
  return async () => {
    try {
      await staging.mapAsync(MAP_MODE_READ);
      return tensors.map((tensor, index) => typed(tensor.array, staging.getMappedRange(places[index], Math.ceil(bytesOf(tensor) / 4) * 4).slice(0, bytesOf(tensor))));
    } finally {
      staging.destroy();
    }
  };
}

function typed(array: ArrayName, bytes: ArrayBuffer): TensorArray {
  if (array === 'Float32Array') return new Float32Array(bytes);
  if (array === 'Uint16Array') return new Uint16Array(bytes);
  if (array === 'Uint32Array') return new Uint32Array(bytes);
  // A tensor is of this kind only if such an array was given.
  const Float16 = Reflect.get(globalThis, 'Float16Array') as new (bytes: ArrayBuffer) => Float16ArrayLike;
  return new Float16(bytes);
}

/** @internal What something is that is no tensor of this package. */
export function noTensor(data: unknown): string {
  const found = describe(data);
  return found === 'of type GpuTensor' ? `${found}, but of another copy of this package` : found;
}

/** @internal The element of some tensors, which is `element` if that is given, and the kind of array that the first one is. */
export function tensorType(tensors: Record<string, TensorData>, element: TensorElement | undefined): { element: Element; array: ArrayName } {
  let first: ArrayName | undefined;
  for (const [name, data] of Object.entries(tensors) as [string, unknown][]) {
    const array = data instanceof GpuTensor ? data.array : arrayName(data);
    if (has(data, 'then')) throw new InvalidTensorError(`${name} is a promise; await it first`);
    if (array === undefined) {
      throw new InvalidTensorError(`${name} is ${noTensor(data)}; pass a Float32Array, Uint16Array, Float16Array or GpuTensor`);
    }
    const found = data instanceof GpuTensor ? data.element : elementOf(name, array, element);
    element ??= found === 'u32' ? 'f32' : found;
    if (found !== element) throw new InvalidTensorError(`${name} holds ${found}, but ${element} is expected; convert it`);
    first ??= array;
  }
  return { element: element as Element, array: first! };
}

/** @internal The type that a typed array holds, which is `element` if that is given. */
export function elementOf(name: string, array: ArrayName, element: TensorElement | undefined): TensorElement {
  const fits = { Float32Array: ['f32'], Uint16Array: ['f16', 'bf16'], Float16Array: ['f16'], Uint32Array: ['u32'] }[array] as TensorElement[];
  if (element === undefined || fits.includes(element)) return element ?? fits[0]!;
  const isHalf = element === 'f16' || element === 'bf16';
  const helper = array === 'Float32Array' && isHalf ? `; convert it with ${element === 'f16' ? 'toF16' : 'toBf16'}` : '';
  throw new InvalidTensorError(`element is ${shown(element)}, but ${name} is a ${array}${helper}`);
}
