//! What is asked: plain data, no GPU. Anybody may build any problem. Planning checks it once.

mod attention;
mod block_mask;
mod dropout;
mod element;
mod entries;
mod key_mask;
mod layout;
mod lengths;
mod mask;
mod merge;
mod philox;
mod probabilities;
mod score;
mod shape;
mod shown;
mod wgsl;

pub use attention::{Algorithm, AttentionProblem};
pub(crate) use block_mask::{Area, ListsOf, MOST_BLOCKS, fault_of_counts, number_of_blocks};
pub use block_mask::{BlockKind, BlockMask};
pub use dropout::Dropout;
pub use element::{Element, ElementType};
pub use entries::EntryLayout;
pub use key_mask::{KeyMask, pack_bits};
pub use layout::{AttentionLayout, TensorLayout};
pub use mask::{Alignment, Mask};
pub use merge::MergeProblem;
pub use philox::philox4x32_10;
pub use probabilities::ProbabilitiesProblem;
pub use score::{ScoreMod, alibi_slopes};
pub use shape::AttentionShape;
pub(crate) use shown::shown;
pub use wgsl::{AuxType, MaskWgsl, ScoreWgsl, WgslFault, WgslOptions, fault_in_browsers};
pub(crate) use wgsl::{Role, Snippet};
