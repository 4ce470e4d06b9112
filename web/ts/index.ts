export { FlashAttention } from './attention.js';
export type { CreateOptions, PrepareOptions } from './attention.js';
export {
  AttentionError, DeviceLostError, GpuError, InvalidOptionError, InvalidProblemError, InvalidTensorError, NoWebGPUError, OutOfMemoryError,
  UnsupportedError,
} from './errors.js';
export type { AttentionErrorCode } from './errors.js';
export { fromBf16, fromF16, toBf16, toF16 } from './half.js';
export type { WasmSource } from './load.js';
export { packMask } from './mask.js';
export type {
  AppendOptions, AppendProblem, AttentionProblem, Aux, BackwardOptions, Bias, BlockMask, Dropout, Element, Entries, EntryShape, ForwardOptions, KvCache, Lengths,
  Mask, MaskData, OwnBlocks, ProbabilitiesOptions, Rotary, RunOptions, Shape, Strides, Sums, TensorData,
} from './options.js';
export type {
  Appended, BackwardArrays, BackwardTensors, ForwardArrays, ForwardTensors, Info, Plan, ProbabilitiesArray, ProbabilitiesTensor, RunStats,
} from './results.js';
export { Prepared, PreparedAppend, PreparedAttention, PreparedBackward } from './prepared.js';
export type {
  PreparedAppendTensors, PreparedAppended, PreparedBackwardTensors, PreparedDropout, PreparedGradients, PreparedOutputs, PreparedRun, PreparedTensors,
} from './prepared.js';
export { GpuTensor } from './tensor.js';
export type { ArrayOf, ElementOf, Float16ArrayLike, TensorArray, TensorElement } from './tensor.js';
