//! Attention through Burn, in one binary: the tests share one device and its compiled pipelines. A machine without a wgpu adapter
//! fails them; Mesa's software driver is enough.

mod autodiff;
mod cache;
mod forward;
mod newcomer;
mod support;
