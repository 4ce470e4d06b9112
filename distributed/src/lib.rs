//! Exact FlashAttention of one problem on several GPUs.
//!
//! A rank is a device with its part of the sequence: a thread of this process ([`in_process`]) or a process that MPI started
//! (feature `mpi`). [`RingAttention`] passes K and V around, [`UlyssesAttention`] exchanges heads, [`DecodeAttention`] leaves a
//! cache where it is and merges what each rank makes of it. Positions, masks and dropout are those of the whole problem, and
//! partial results are f32, so the answer is that of one device. `docs/distributed.md` says what each costs.

#![deny(unsafe_code)]
#![warn(missing_docs)]

mod decode;
mod entries;
mod error;
mod gpu;
mod hello;
mod partition;
mod recut;
mod ring;
mod staging;
mod timeline;
mod transport;
mod ulysses;

pub use decode::DecodeAttention;
pub use error::Error;
pub use gpu::{adapters, devices};
pub use partition::{Scheme, Span, spans};
pub use ring::RingAttention;
pub use timeline::{Activity, Event, Timeline};
#[cfg(feature = "mpi")]
pub use transport::OverMpi;
pub use transport::{Bytes, InProcess, Transport, WriteOnly, in_process, run_in_process};
pub use ulysses::UlyssesAttention;
/// The library of one device.
pub use wgpu_flash_attention;

use wgpu_flash_attention::FlashAttention;

/// Tells the other ranks of an error, unless one of them told it.
fn tell(transport: &mut impl Transport, attention: &FlashAttention, error: Error) -> Error {
    let error = gpu::or_lost(attention, error);
    if !matches!(error, Error::Rank { .. }) {
        transport.fail(&error.to_string());
    }
    error
}
