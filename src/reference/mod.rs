//! Attention in f64 with plain loops: the oracle that every kernel is compared with.
//!
//! It is slow and obvious on purpose. It shares no numeric code with the shaders: no tiles, no online softmax, and no 32-bit
//! arithmetic except for the dropout mask.

mod append;
mod backward;
mod bounds;
mod case;
mod cores;
mod forward;
mod modifiers;
mod probabilities;

pub use crate::problem::philox4x32_10;
pub use append::{AppendCase, AppendedRow, append, dequantized, dequantized_tensor, quantized};
pub use backward::{ReferenceGradients, backward, backward_for, backward_rounding_p};
pub use bounds::{
    Arithmetic, BackwardErrors, ErrorTerms, ForwardErrors, backward_errors, error_before_storing, forward_errors,
    probabilities_errors,
};
pub use case::{Case, MaskModFn, ScoreModFn};
pub use forward::{ReferenceOutput, forward, forward_rounding_p, forward_row, keeps};
pub use modifiers::{Score, score};
pub use probabilities::probabilities;
