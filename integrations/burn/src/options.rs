use burn::tensor::{Bool, Int, Tensor};
use wgpu_flash_attention::{BlockMask, KeyMask, ScoreMod, alibi_slopes};

/// What attention does beside `softmax(softmax_scale · Q Kᵀ) V`. By default nothing. The meaning of each is that of the method of the
/// same name of [`AttentionProblem`](wgpu_flash_attention::AttentionProblem).
///
/// Scores are softmax_scale · Q Kᵀ, then softcap, ALiBi and the caller's own function in the order of the calls, then the bias.
#[derive(Clone, Debug, Default)]
#[must_use]
pub struct AttentionOptions {
    pub(crate) softmax_scale: Option<f64>,
    pub(crate) causal: Option<Causal>,
    pub(crate) window: [Option<u32>; 2],
    pub(crate) scores: Vec<ScoreMod>,
    pub(crate) masks: Vec<KeyMask>,
    pub(crate) dropout: Option<(f64, u64, u32)>,
    pub(crate) bias: Option<Tensor<4>>,
    pub(crate) key_mask: Option<Tensor<4, Bool>>,
    pub(crate) sink: Option<Tensor<1>>,
    pub(crate) cu_seqlens: Option<[(Tensor<1, Int>, usize); 2]>,
    pub(crate) seqlens_q: Option<Tensor<1, Int>>,
    pub(crate) seqlens_kv: Option<Tensor<1, Int>>,
}

/// Which corner of the score matrix the diagonal of a causal mask goes through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Causal {
    BottomRight,
    TopLeft,
}

impl AttentionOptions {
    /// None.
    pub fn new() -> Self {
        Self::default()
    }

    /// Multiplies Q Kᵀ by this, not by 1/√head_dim.
    pub fn with_softmax_scale(mut self, softmax_scale: f64) -> Self {
        self.softmax_scale = Some(softmax_scale);
        self
    }

    /// Row i sees the keys j ≤ i + seqlen_kv − seqlen_q: the last row sees the last key, as with Burn's `is_causal`.
    pub fn with_causal(mut self) -> Self {
        self.causal = Some(Causal::BottomRight);
        self
    }

    /// Row i sees the keys j ≤ i: the first row sees the first key, as in PyTorch and ONNX.
    pub fn with_causal_top_left(mut self) -> Self {
        self.causal = Some(Causal::TopLeft);
        self
    }

    /// Row i sees the keys from `i + offset − left` to `i + offset + right`, both included; `None` leaves a side unlimited. The
    /// offset is seqlen_kv − seqlen_q, or 0 with [`with_causal_top_left`](Self::with_causal_top_left).
    pub fn with_window(mut self, left: Option<u32>, right: Option<u32>) -> Self {
        self.window = [left, right];
        self
    }

    /// Caps the scores: softcap · tanh(S / softcap). It must be above 0.
    pub fn with_softcap(mut self, softcap: f32) -> Self {
        self.scores.push(ScoreMod::Softcap(softcap));
        self
    }

    /// ALiBi with the usual slopes of so many heads.
    pub fn with_alibi(self, num_heads: usize) -> Self {
        self.with_score(ScoreMod::Alibi(alibi_slopes(num_heads as u32)))
    }

    /// Another score modifier: ALiBi with slopes of its own, or a function in the caller's own WGSL without data. A bias comes by
    /// [`with_bias`](Self::with_bias).
    pub fn with_score(mut self, modifier: ScoreMod) -> Self {
        self.scores.push(modifier);
        self
    }

    /// Adds `[batch or 1, num_heads or 1, seqlen_q or 1, seqlen_kv or 1]` to the scores, in f32 or in the type of Q. It gets a
    /// gradient if it requires one.
    pub fn with_bias(mut self, bias: Tensor<4>) -> Self {
        self.bias = Some(bias);
        self
    }

    /// A row sees a key only where this is true, `[batch or 1, num_heads or 1, seqlen_q or 1, seqlen_kv or 1]`. (The masks of Burn's
    /// own attention hide where they are true.)
    pub fn with_key_mask(mut self, may_attend: Tensor<4, Bool>) -> Self {
        self.key_mask = Some(may_attend);
        self
    }

    /// A block-sparse mask. Tiles of which nothing is seen are not computed.
    pub fn with_blocks(mut self, mask: BlockMask) -> Self {
        self.masks.push(KeyMask::Blocks(mask));
        self
    }

    /// Drops each probability with chance `dropout_p`, 0 ≤ dropout_p < 1, and scales the others by 1/(1 − dropout_p). The same seed
    /// drops the same ones: take another in each step of a training, and another `philox_offset` in each layer.
    pub fn with_dropout(mut self, dropout_p: f64, philox_seed: u64, philox_offset: u32) -> Self {
        self.dropout = Some((dropout_p, philox_seed, philox_offset));
        self
    }

    /// A logit of each query head, `[num_heads]`, that joins the sum of the softmax and has no value. It gets a gradient if it
    /// requires one.
    pub fn with_sink(mut self, sink: Tensor<1>) -> Self {
        self.sink = Some(sink);
        self
    }

    /// Takes packed sequences: Q is `[1, num_heads, total_q, head_dim]`, K and V `[1, num_heads_kv, total_kv, dim]`. Sequence b has the
    /// rows from `cu_seqlens_q[b]` to `cu_seqlens_q[b + 1]` and so its keys; both have batch + 1 entries, start at 0, never
    /// fall, and end at the total. `max_seqlen_q` and `max_seqlen_kv` are the largest lengths. A bias and a mask have the shape of
    /// these. LSE is `[1, num_heads, total_q]`. Sums that lie give wrong numbers, but nothing is read or written outside the tensors.
    pub fn with_cu_seqlens(
        mut self,
        (cu_seqlens_q, max_seqlen_q): (Tensor<1, Int>, usize),
        (cu_seqlens_kv, max_seqlen_kv): (Tensor<1, Int>, usize),
    ) -> Self {
        self.cu_seqlens = Some([(cu_seqlens_q, max_seqlen_q), (cu_seqlens_kv, max_seqlen_kv)]);
        self
    }

    /// Rows from these lengths on do not exist, `[batch]`: O = 0 and LSE = −∞, without gradients.
    pub fn with_seqlens_q(mut self, seqlens_q: Tensor<1, Int>) -> Self {
        self.seqlens_q = Some(seqlens_q);
        self
    }

    /// Keys from these lengths on do not exist, `[batch]`.
    pub fn with_seqlens_kv(mut self, seqlens_kv: Tensor<1, Int>) -> Self {
        self.seqlens_kv = Some(seqlens_kv);
        self
    }
}
