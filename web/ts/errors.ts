/** Everything this package throws, except the reason of an aborted `AbortSignal`. */
export class AttentionError extends Error {
  override name = 'AttentionError';
}

/** The problem contradicts itself or lies outside what the package computes: shape, mask, scale, dropout. */
export class InvalidProblemError extends AttentionError {
  override name = 'InvalidProblemError';
}

/** A tensor does not fit the problem: its type, its length, its buffer, or it was destroyed. */
export class InvalidTensorError extends AttentionError {
  override name = 'InvalidTensorError';
}

/** The problem is sound, but this device cannot run it; the message names the limit. */
export class UnsupportedError extends AttentionError {
  override name = 'UnsupportedError';
}

/** The GPU has no memory left. */
export class OutOfMemoryError extends AttentionError {
  override name = 'OutOfMemoryError';
}

/** The device was lost: the driver was reset, the GPU unplugged, or `destroy()` called. Create a new one. */
export class DeviceLostError extends AttentionError {
  override name = 'DeviceLostError';
}

/** There is no WebGPU here: an older browser, an insecure page, or no usable GPU. */
export class NoWebGPUError extends AttentionError {
  override name = 'NoWebGPUError';
}

/** The browser refused something that this package should have refused first; please report it. */
export class GpuError extends AttentionError {
  override name = 'GpuError';
}

const KINDS: Record<string, new (message: string) => AttentionError> = {
  InvalidProblem: InvalidProblemError,
  Buffer: InvalidTensorError,
  Unsupported: UnsupportedError,
  OutOfMemory: OutOfMemoryError,
  DeviceLost: DeviceLostError,
  NoWebGPU: NoWebGPUError,
};

/** @internal What WebAssembly threw, as the subclass that it names. */
export function fromWasm(thrown: unknown): unknown {
  if (!(typeof thrown === 'object' && thrown !== null && 'kind' in thrown && 'message' in thrown)) return thrown;
  return new (KINDS[String(thrown.kind)] ?? GpuError)(String(thrown.message));
}
