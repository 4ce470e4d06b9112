//! What the tests share: devices of several abilities, inputs, guarded buffers, and the one place that says how close
//! an answer must be.

mod bytes;
mod data;
mod device;
mod draw;
mod gradients;
mod run;
mod texts;
mod tolerance;

pub use bytes::{Bytes, run_bytes, words};
pub use data::{Inputs, Random, inputs, strided};
pub use device::{Library, Variant, adapter, library, limited, with_matrices};
pub use draw::Draw;
pub use gradients::{
    GradientAnswer, GradientInputs, GradientTensors, Gradients, check_both, check_gradients, gradient_inputs,
    run_backward, run_backward_calls, run_backward_dispatch_by_dispatch,
};
pub use run::{
    Guarded, Output, Tensors, arithmetic_of, from_bytes, problem_of, run, run_calls, run_dispatch_by_dispatch, to_bytes,
};
pub use texts::{Texts, text_of};
pub use tolerance::{Answer, Share, check, check_answer};
