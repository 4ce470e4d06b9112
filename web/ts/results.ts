import type { Element } from './options.js';
import type { GpuTensor, TensorArray } from './tensor.js';

/** What a run did. */
export interface RunStats {
  /** From the first submission until the GPU had finished, in milliseconds. */
  milliseconds: number;
  /** Of these, what the kernels took on the GPU, where `gpuTime` asked for it and the device has `timestamp-query`. Browsers round it. */
  gpuMilliseconds?: number | undefined;
  /** Floating-point operations: forward 2 · (headDim + headDimV) for each visible (row, key) pair; 0 for an append. */
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
export interface ForwardTensors<E extends Element = Element> {
  /** The output. */
  o: GpuTensor<E>;
  /** The natural log-sum-exp of each row, f32. */
  lse: GpuTensor<'f32'>;
  stats: RunStats;
}

/** The gradients as typed arrays. */
export interface BackwardArrays<T = TensorArray> {
  /** The gradient of Q. */
  dq: T;
  /** The gradient of K, summed over the heads of Q that share it. */
  dk: T;
  /** The gradient of V, summed likewise. */
  dv: T;
  /** The gradient of the sinks, `[numHeads]`, where there are sinks. */
  dSink?: Float32Array<ArrayBuffer>;
  /**
   * The gradient of the bias, in its shape and kind of array, where it was asked for: summed over all scores that share an entry, 0
   * where no row sees a key.
   */
  dBias?: TensorArray;
  stats: RunStats;
}

/** The gradients, still on the GPU. */
export interface BackwardTensors<E extends Element = Element> {
  /** The gradient of Q. */
  dq: GpuTensor<E>;
  /** The gradient of K, summed over the heads of Q that share it. */
  dk: GpuTensor<E>;
  /** The gradient of V, summed likewise. */
  dv: GpuTensor<E>;
  /** The gradient of the sinks, f32 `[numHeads]`, where there are sinks. */
  dSink?: GpuTensor<'f32'>;
  /** The gradient of the bias, in its shape and type, where it was asked for. */
  dBias?: GpuTensor<Element>;
  stats: RunStats;
}

/** Probabilities as a typed array. */
export interface ProbabilitiesArray {
  /** `exp(S − LSE)`, before dropout, `[batch, chosen heads, chosen rows, seqlenKv]`; 0 where a key is hidden. */
  probabilities: Float32Array<ArrayBuffer>;
  stats: RunStats;
}

/** Probabilities, still on the GPU. */
export interface ProbabilitiesTensor {
  /** f32 `[batch, chosen heads, chosen rows, seqlenKv]`. */
  probabilities: GpuTensor<'f32'>;
  stats: RunStats;
}

/** What an append gives beside the cache. */
export interface Appended {
  /** Turned queries, with `rotateQ: 'apart'`. */
  qRotated?: GpuTensor<Element>;
  /** The lengths after it, with `newCacheSeqlens`. */
  newCacheSeqlens?: GpuTensor<'u32'>;
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
