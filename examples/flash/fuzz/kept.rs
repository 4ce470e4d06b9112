//! Cases that once were wrong. `flash fuzz --kept` runs them, and so does a test.

pub const KEPT: &[&str] = &[];
