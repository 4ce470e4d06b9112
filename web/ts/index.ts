export { FlashAttention } from './attention.js';
export type { CreateOptions } from './attention.js';
export {
  AttentionError, DeviceLostError, GpuError, InvalidProblemError, InvalidTensorError, NoWebGPUError, OutOfMemoryError,
  UnsupportedError,
} from './errors.js';
export { fromBf16, fromF16, toBf16, toF16 } from './half.js';
export type { WasmSource } from './load.js';
export type {
  AttentionProblem, BackwardOptions, Dropout, Element, ForwardOptions, RunOptions, Shape, Strides, TensorData,
} from './options.js';
export type { BackwardArrays, BackwardTensors, ForwardArrays, ForwardTensors, Info, Plan, RunStats } from './results.js';
export { GpuTensor } from './tensor.js';
export type { Float16ArrayLike, TensorArray } from './tensor.js';
