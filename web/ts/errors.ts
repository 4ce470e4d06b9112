/** What kind of error it is, in one word that does not change. */
export type AttentionErrorCode =
  | 'not-loaded' | 'invalid-option' | 'invalid-problem' | 'invalid-tensor' | 'unsupported' | 'out-of-memory' | 'device-lost'
  | 'no-webgpu' | 'gpu';

/**
 * Everything this package throws, except the reason of an aborted `AbortSignal`, and what `onProgress` throws. Of this class itself
 * are errors that WebAssembly could not be loaded.
 */
export class AttentionError extends Error {
  override name = 'AttentionError';
  /** The kind of error. It does not change when bundlers rename classes. */
  readonly code: AttentionErrorCode = 'not-loaded';
}

/** An option that does not exist, or a value that is none for it. */
export class InvalidOptionError extends AttentionError {
  override name = 'InvalidOptionError';
  override readonly code = 'invalid-option';
}

/** The problem contradicts itself or lies outside what the package computes: shape, mask, scale, dropout. */
export class InvalidProblemError extends AttentionError {
  override name = 'InvalidProblemError';
  override readonly code = 'invalid-problem';
}

/** A tensor does not fit the problem: its type, its length, its buffer, or it was destroyed. */
export class InvalidTensorError extends AttentionError {
  override name = 'InvalidTensorError';
  override readonly code = 'invalid-tensor';
}

/** The problem is sound, but this device cannot run it; the message names the limit. */
export class UnsupportedError extends AttentionError {
  override name = 'UnsupportedError';
  override readonly code = 'unsupported';
}

/** The GPU has no memory left. */
export class OutOfMemoryError extends AttentionError {
  override name = 'OutOfMemoryError';
  override readonly code = 'out-of-memory';
}

/** The device was lost: the driver was reset, the GPU unplugged, or `destroy()` called. Create a new one. */
export class DeviceLostError extends AttentionError {
  override name = 'DeviceLostError';
  override readonly code = 'device-lost';
}

/** There is no WebGPU here: an older browser, an insecure page, or no usable GPU. */
export class NoWebGPUError extends AttentionError {
  override name = 'NoWebGPUError';
  override readonly code = 'no-webgpu';
}

/** The browser refused something that this package should have refused first; please report it. */
export class GpuError extends AttentionError {
  override name = 'GpuError';
  override readonly code = 'gpu';
}

const KINDS: Record<string, new (message: string) => AttentionError> = {
  InvalidProblem: InvalidProblemError,
  Buffer: InvalidTensorError,
  Unsupported: UnsupportedError,
  OutOfMemory: OutOfMemoryError,
  DeviceLost: DeviceLostError,
  NoWebGPU: NoWebGPUError,
};

/** The crate's names that are called otherwise here. Limits and the rest change from snake_case alone. */
const CALLED: Record<string, string> = {
  seqlen_q: 'seqlen', seqlen_kv: 'seqlenKv', dropout_p: 'dropout.p', max_flops_per_dispatch: 'boundedWork', d_o: 'dO', d_lse: 'dLse',
  dsink: 'dSink', dbias: 'dBias', key_mask: 'mask', rotary_dim: 'rotary.dim',
};
const NAMES = new RegExp(`\\b(${[...Object.keys(CALLED),
  'alibi_slopes', '(?:cu_)?seqlens_(?:q|kv)', 'cu_seqlens_new', '(?:new_)?cache_seqlens', 'page_table', 'page_size', 'num_pages', 'slot_mapping',
  'rotary_(?:cos|sin)', '[kv]_cache', 'q_rotated', 'score_mod(?:_grad)?', 'mask_mod', 'num_heads(?:_kv)?', 'head_dim(?:_v)?', 'softmax_scale', 'max_[a-z_]+'].join('|')})\\b`, 'g');

/** A message of the crate in the words of this package. */
function inTheseNames(message: string): string {
  // The caller's own WGSL is quoted as it is.
  if (/^(score|mask)_mod, line/.test(message)) return message;
  return message
    .replace(NAMES, (name) => CALLED[name] ?? name.replace(/_([a-z])/g, (_, letter: string) => letter.toUpperCase()))
    .replaceAll('AttentionProblem::with_bounded_work', 'boundedWork')
    .replaceAll('WgslOptions::with_max_turns; flash: --max-turns', 'maxTurns')
    .replaceAll('a device with FlashAttention::device_descriptor', 'a device with higher limits')
    .replaceAll('say how long it is by AttentionProblem::with_aux', 'pass aux')
    .replace(/, or prepare with with_shared_buffers.*$/, '')
    .replaceAll('min_storage_buffer_offset_alignment', 'minStorageBufferOffsetAlignment')
    .replaceAll('BufferUsages::', 'GPUBufferUsage.')
    .replaceAll('Algorithm::Flash', "algorithm: 'flash'")
    .replaceAll('wgpu refused', 'the browser refused');
}

/** @internal What was thrown, in words, whatever it is. */
export function worded(thrown: unknown): string {
  try {
    return String(thrown);
  } catch {
    return typeof thrown;
  }
}

/** @internal What WebAssembly or anything else threw, as an error of this package. */
export function fromWasm(thrown: unknown): AttentionError {
  if (thrown instanceof AttentionError) return thrown;
  if (typeof thrown === 'object' && thrown !== null && 'kind' in thrown && 'message' in thrown) {
    const error = new (KINDS[String(thrown.kind)] ?? GpuError)(inTheseNames(String(thrown.message)));
    if ('free' in thrown && typeof thrown.free === 'function') thrown.free();
    return error;
  }
  return new GpuError(`something broke that should not: ${worded(thrown)}`, { cause: thrown });
}
