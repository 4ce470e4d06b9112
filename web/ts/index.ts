export { FlashAttention } from './attention.js';
export type { CreateOptions } from './attention.js';
export {
  AttentionError, DeviceLostError, GpuError, InvalidProblemError, InvalidTensorError, NoWebGPUError, OutOfMemoryError,
  UnsupportedError,
} from './errors.js';
export { fromBf16, fromF16, toBf16, toF16 } from './half.js';
export type { WasmSource } from './load.js';
export { packMask } from './mask.js';
export type {
  AttentionProblem, BackwardOptions, Bias, Dropout, Element, Entries, EntryShape, ForwardOptions, Given, Mask, MaskData, RunOptions,
  Shape, Strides, TensorData,
} from './options.js';
export type { BackwardArrays, BackwardTensors, ForwardArrays, ForwardTensors, Info, Plan, RunStats } from './results.js';
export { GpuTensor } from './tensor.js';
export type { Float16ArrayLike, TensorArray, TensorElement } from './tensor.js';
