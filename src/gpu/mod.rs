//! The only code that calls wgpu: pipelines, bind groups, encoding, readback.

mod append;
mod attention;
mod bindings;
mod blocks;
mod buffers;
mod device;
mod host;
mod memory;
mod operation;
mod pipeline;
mod prepared;
mod scope;

pub use append::{AppendOutput, AppendSlices};
pub use attention::{FlashAttention, Statistics};
pub use buffers::{
    Append, AppendBuffers, Backward, BackwardBuffers, Buffers, Forward, ForwardBuffers, Merge, MergeBuffers,
    Probabilities, ProbabilitiesBuffers,
};
pub use host::{BackwardOutput, BackwardSlices, CacheSlices, ForwardOutput, ForwardSlices, ProbabilitiesSlices};
pub use prepared::{Prepared, PreparedAppend, PreparedBackward, PreparedForward, PreparedMerge, PreparedProbabilities};
pub use scope::run_out_of_memory_after;
