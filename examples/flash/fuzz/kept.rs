//! Cases that once were wrong. `flash fuzz --kept` runs them, and so does a test.

pub const KEPT: &[&str] = &[
    // A slot of a cache without positions: written outside of the binding.
    "append=1 slots=1 seqlen_q=5 seqlen_kv=0 batch=3 heads_kv=2 seed=5",
    // Probabilities of packed sequences without any row, or any key: not written.
    "seed=9965191016180344 probabilities=1 packed=1",
    "seed=9965191016180344 probabilities=1 packed=2 seqlen_q=3 seqlen_kv=4",
];
