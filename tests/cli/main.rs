//! The `flash` program, and other examples, from outside: what it computes, and how it refuses.

mod answers;
mod blocks;
mod cached;
mod entries;
mod forms;
mod fuzz;
mod own_wgsl;
mod packed;
#[cfg(unix)]
mod places;
mod refusals;
mod talk;
mod talk_sparse;
mod training;
mod workplace;
mod zero_counts;
