//! Ranks as threads, beside one device and the oracle. Mesa's software driver is enough.

mod faults;
mod ring;
mod schemes;
mod support;
