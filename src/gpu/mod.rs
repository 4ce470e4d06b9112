//! The only code that calls wgpu: pipelines, bind groups, encoding, readback.

mod attention;
mod backward;
mod bindings;
mod device;
mod forward;
mod host;
mod memory;
mod merge;
mod operation;
mod pipeline;
mod scope;

pub use attention::FlashAttention;
pub use backward::{BackwardBuffers, PreparedBackward};
pub use forward::{ForwardBuffers, PreparedForward};
pub use host::{BackwardOutput, BackwardSlices, ForwardOutput};
pub use merge::{MergeBuffers, PreparedMerge};
