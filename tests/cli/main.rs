//! The `flash` program from outside: what it computes, and how it refuses.

mod answers;
mod blocks;
mod cached;
mod entries;
mod own_wgsl;
mod packed;
#[cfg(unix)]
mod places;
mod refusals;
mod training;
mod workplace;
mod zero_counts;
