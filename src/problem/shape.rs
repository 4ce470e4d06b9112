/// Lengths, heads and head dimensions, in elements.
///
/// Q is `[batch, seqlen_q, num_heads, head_dim]`, K `[batch, seqlen_kv, num_heads_kv, head_dim]`,
/// V `[batch, seqlen_kv, num_heads_kv, head_dim_v]`, O `[batch, seqlen_q, num_heads, head_dim_v]` and
/// LSE `[batch, num_heads, seqlen_q]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[must_use]
pub struct AttentionShape {
    /// Independent sequences.
    pub batch: u32,
    /// Heads of Q and O.
    pub num_heads: u32,
    /// Heads of K and V; `num_heads` is a multiple of it. Query head h reads KV head h / (num_heads / num_heads_kv).
    pub num_heads_kv: u32,
    /// Rows of Q and O.
    pub seqlen_q: u32,
    /// Rows of K and V.
    pub seqlen_kv: u32,
    /// Width of Q and K, 1 to 256.
    pub head_dim: u32,
    /// Width of V and O, 1 to 256.
    pub head_dim_v: u32,
}

impl AttentionShape {
    /// Self-attention: as many keys as queries, as many KV heads as heads, V as wide as K.
    pub const fn new(batch: u32, num_heads: u32, seqlen: u32, head_dim: u32) -> Self {
        Self {
            batch,
            num_heads,
            num_heads_kv: num_heads,
            seqlen_q: seqlen,
            seqlen_kv: seqlen,
            head_dim,
            head_dim_v: head_dim,
        }
    }

    /// Another number of keys and values (cross-attention).
    pub const fn with_seqlen_kv(mut self, seqlen_kv: u32) -> Self {
        self.seqlen_kv = seqlen_kv;
        self
    }

    /// Fewer KV heads (grouped-query attention), or one (multi-query attention).
    pub const fn with_num_heads_kv(mut self, num_heads_kv: u32) -> Self {
        self.num_heads_kv = num_heads_kv;
        self
    }

    /// Another width for V and O.
    pub const fn with_head_dim_v(mut self, head_dim_v: u32) -> Self {
        self.head_dim_v = head_dim_v;
        self
    }

    /// Query heads, as planning counts them. If there are only KV heads, each counts as one query head without rows: its dK
    /// and dV are written as 0.
    pub(crate) fn query_heads(&self) -> u32 {
        if self.num_heads == 0 { self.num_heads_kv } else { self.num_heads }
    }

    /// Of those, how many share a KV head; at least 1.
    pub(crate) fn heads_per_kv(&self) -> u32 {
        self.query_heads().checked_div(self.num_heads_kv).unwrap_or(1)
    }

    /// Entries of LSE; 2⁶⁴ − 1 if there are more.
    pub fn lse_len(&self) -> u64 {
        (u64::from(self.batch) * u64::from(self.num_heads)).saturating_mul(self.seqlen_q.into())
    }
}
