//! Cases that once were wrong. `flash fuzz --kept` runs them, and so does a test.

pub const KEPT: &[&str] = &[
    // A slot of a cache without positions: written outside of the binding.
    "append=1 slots=1 seqlen_q=5 seqlen_kv=0 batch=3 heads_kv=2 seed=5",
    // Probabilities of packed sequences without any row, or any key: not written.
    "seed=9965191016180344 probabilities=1 packed=1",
    "seed=9965191016180344 probabilities=1 packed=2 seqlen_q=3 seqlen_kv=4",
    // Standard attention computed a modified score twice, and P did not add up to 1 where a GPU rounded it in two ways.
    "standard=1 heads_kv=2 group=2 head_dim=44 scale=2 score_mod=1",
    // Matrices in bf16: two small factors in one took O, 3e-35, to 0.
    "element=2 group=3 seqlen_q=135 head_dim=40 scale=374 alibi=1 sink=1 blocks_size=75 mask_mod=2 matrices=1 cache=3 \
     page_size=64 cache_layout=1 rotated_q=1 d_lse=1 values=2",
    // Bounds: what ALiBi makes of −∞ is exact.
    "seqlen_kv=15 softcap=1 alibi=1 score_mod=2 order=1",
    // Bounds: tanh of 16-bit elements errs by more than was said.
    "seed=426107329297742667 element=1 heads_kv=3 seqlen_q=78 seqlen_kv=105 head_dim=8 causal=2 left=1 softcap=56",
    // The oracle: a score of −∞ times a slope of infinity was a gradient.
    "seed=5918035568433175720 backward=1 seqlen_kv=34 bias=9 score_mod=1 order=1 values=7",
    // Bounds: terms of one value, products that are flushed before the factor of dropout, and rows of dQ that share a scale
    // with far larger ones.
    "seed=5236560365586254937 backward=1 seqlen_q=39 seqlen_kv=1463 head_dim=64 dropout=98 device=2 shorter=1 d_lse=1 values=4",
    "seed=11028797368294852406 backward=1 batch=4 heads_kv=3 group=2 seqlen_q=37 seqlen_kv=90 head_dim=63 head_dim_v=40 \
     layout=5 causal=2 scale=986 score_mod=1 dropout=90 seqlens_q=2 shorter=1",
    "heads_kv=2 seqlen_q=134 seqlen_kv=5 head_dim=43 head_dim_v=73 scale=962 dropout=99 seqlens_q=1 tiles=2 matrices=1 \
     device=1 cache=2 rotated_q=2 more_calls=1 d_lse=1 values=2",
    "seed=13145453532832686027 backward=1 batch=4 group=3 seqlen_q=17 seqlen_kv=18 head_dim=16 head_dim_v=16 order=2 \
     dropout=99 seqlens_kv=2 packed=4 matrices=1 d_lse=1 values=3",
];
