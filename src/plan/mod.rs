//! Which kernels, tiles and grids answer a problem on a device. Pure: it is tested without a GPU.

mod append;
mod block_lists;
mod build;
mod builder;
mod capabilities;
mod check;
mod choice;
mod chunks;
mod direction;
mod dispatch;
mod kernels;
mod params;
mod part;
mod parts;
mod passes;
mod shown;
mod splits;
mod tables;
mod tensor;
mod tile_table;
mod tiles;
mod traffic;
mod tuning;
mod turns;
mod visible;
mod visits;

pub use crate::operand::{Operand, Usage};
pub use builder::PlanBuilder;
pub use capabilities::{Capabilities, DeviceClass};
pub use check::{MAX_HEAD_DIM, MAX_LENGTH};
pub use direction::Direction;
pub use dispatch::{Call, Dispatch, Origins, Window};
pub use kernels::{Access, Chain, Kernel, LengthsAtCall, RowReduce, Specialization, Storage};
pub use params::Params;
pub use passes::{Pass, Plan};
pub use tiles::Tiles;
pub use tuning::{TunedTiles, Tuning, Workload};

#[cfg(target_arch = "wasm32")]
pub(crate) use kernels::shortened;
pub(crate) use kernels::{File, Piece, RowMaxima, RowPlace, RowTarget, Slot, matrix_wgsl, wgsl};
pub(crate) use tensor::Tensor;
pub(crate) use tiles::Owns;
