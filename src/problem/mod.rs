//! What is asked: plain data, no GPU. Everything here is built freely and checked once, by planning.

mod attention;
mod dropout;
mod element;
mod entries;
mod key_mask;
mod layout;
mod mask;
mod merge;
mod score;
mod shape;

pub use attention::{Algorithm, AttentionProblem};
pub use dropout::Dropout;
pub use element::{Element, ElementType};
pub use entries::EntryLayout;
pub use key_mask::KeyMask;
pub use layout::{AttentionLayout, TensorLayout};
pub use mask::{Alignment, Mask};
pub use merge::MergeProblem;
pub use score::{ScoreMod, alibi_slopes};
pub use shape::AttentionShape;
