//! Every test that needs a GPU, in one binary: they share one device and its compiled pipelines. A machine without an
//! adapter fails them all; Mesa's software driver (Debian: mesa-vulkan-drivers) is enough.

mod algebra;
mod append;
mod backward;
mod backward_matrices;
mod backward_properties;
mod blocks;
mod broadcast;
mod dbias;
mod determinism;
mod dispatches;
mod dropout;
mod entries;
mod errors;
mod forward;
mod infinities;
mod kv_cache;
mod lengths;
mod lengths_at_call;
mod long;
mod masks;
mod matrices;
mod mutations;
mod own_wgsl;
mod packed;
mod poison;
mod probabilities;
mod property;
mod refused_calls;
mod scores;
mod shards;
mod sinks;
mod splits;
mod suite;
mod support;
mod zero_counts;
