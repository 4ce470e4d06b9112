use super::cache::{CacheElement, KvCache};
use super::dropout::Dropout;
use super::element::Element;
use super::entries::EntryLayout;
use super::key_mask::KeyMask;
use super::layout::{AttentionLayout, TensorLayout};
use super::lengths::{Known, Lengths, Packed};
use super::mask::{Alignment, Mask};
use super::score::ScoreMod;
use super::shape::AttentionShape;
use super::shard::Shard;
use super::wgsl::Snippet;

/// How the answer is computed. Both algorithms have the same meaning, including masks and dropout.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Algorithm {
    /// Tiles in workgroup memory and an online softmax. It never writes the score matrix. Beside O and LSE it needs memory
    /// for D in the backward pass, and for partial results where keys are split.
    ///
    /// O is summed in f32 and divided at the end, and terms of the sum may be 2⁸ times as large as V. So O is finite if the
    /// largest |V| times the number of keys that a row sees is below 2¹²⁰ (1.3 · 10³⁶). Larger values of V may give infinities
    /// where [`Standard`](Algorithm::Standard), which divides first, gives none.
    #[default]
    Flash,
    /// Separate kernels for scores, softmax and output, which write the seqlen_q × seqlen_kv matrix to memory.
    Standard,
}

impl Algorithm {
    /// The name used by the CLI and in records.
    pub const fn name(self) -> &'static str {
        match self {
            Algorithm::Flash => "flash",
            Algorithm::Standard => "standard",
        }
    }
}

/// One attention operation: `O = dropout(softmax(mask(S))) V`, with `LSE = ln Σ exp(S)` over the keys that the mask shows.
/// `S = softmax_scale · Q Kᵀ`, changed by the score modifiers if there are any.
///
/// ```
/// use wgpu_flash_attention::{AttentionProblem, AttentionShape};
///
/// let shape = AttentionShape::new(2, 16, 4096, 64).with_num_heads_kv(4);
/// let problem = AttentionProblem::new(shape).with_causal().with_dropout(0.1, 42);
/// assert_eq!(problem.softmax_scale(), 0.125);
/// ```
#[derive(Clone, Debug, PartialEq)]
#[must_use]
#[non_exhaustive]
pub struct AttentionProblem {
    /// Lengths, heads and head dimensions.
    pub shape: AttentionShape,
    /// Where each tensor's elements lie in its buffer.
    pub layout: AttentionLayout,
    /// The type that Q, K, V and O are stored in. The softmax and all sums are in f32; on cooperative matrices, factors of
    /// products are f16. See [`FlashAttention::with_matrices`](crate::FlashAttention::with_matrices).
    pub element: Element,
    /// The factor on Q Kᵀ, or `None` for 1/√head_dim.
    pub softmax_scale: Option<f64>,
    /// Which keys a row may see.
    pub mask: Mask,
    /// Dropout on the probabilities, or `None`.
    pub dropout: Option<Dropout>,
    /// Flash, or the standard algorithm as its baseline.
    pub algorithm: Algorithm,
    /// The most floating-point operations that one dispatch may hold, or `None` for no bound. See
    /// [`AttentionProblem::with_bounded_work`].
    pub max_flops_per_dispatch: Option<u64>,
    /// Backward: where dQ, dK, dV and dO lie, or `None` for the layouts of Q, K, V and O.
    pub gradient_layout: Option<AttentionLayout>,
    /// Backward: the type that dQ, dK and dV are stored in, or `None` for that of Q, K and V.
    pub gradient_element: Option<Element>,
    /// Forward: the type that O is stored in, or `None` for that of Q, K and V.
    pub output_element: Option<Element>,
    /// Backward: whether dQ, dK and dV are added to what their buffers hold.
    pub adds_gradients: bool,
    /// Where rows and keys stand in a larger problem, or `None` if this is the whole.
    pub shard: Option<Shard>,
    /// Score modifiers, in this order.
    scores: Vec<ScoreMod>,
    /// What hides keys from rows, beside `mask`.
    key_masks: Vec<KeyMask>,
    /// Entries of the data that functions in the caller's own WGSL read.
    aux_len: Option<u32>,
    has_sink: bool,
    has_bias_gradient: bool,
    /// Of each sequence, where they differ.
    lengths: Option<Lengths>,
    /// Where K and V are, if it is no tensor like Q.
    cache: Option<KvCache>,
}

impl AttentionProblem {
    /// A dense problem in f32 and the `bshd` layout: no mask, no dropout, softmax_scale 1/√head_dim.
    pub fn new(shape: AttentionShape) -> Self {
        Self {
            shape,
            layout: AttentionLayout::bshd(&shape),
            element: Element::F32,
            softmax_scale: None,
            mask: Mask::default(),
            dropout: None,
            algorithm: Algorithm::Flash,
            max_flops_per_dispatch: None,
            gradient_layout: None,
            gradient_element: None,
            output_element: None,
            adds_gradients: false,
            shard: None,
            scores: Vec::new(),
            key_masks: Vec::new(),
            aux_len: None,
            has_sink: false,
            has_bias_gradient: false,
            lengths: None,
            cache: None,
        }
    }

    /// Stores Q, K, V and O as `element`.
    pub fn with_element(mut self, element: Element) -> Self {
        self.element = element;
        self
    }

    /// Places the tensors as `layout` says.
    pub fn with_layout(mut self, layout: AttentionLayout) -> Self {
        self.layout = layout;
        self
    }

    /// Row i sees the keys j ≤ i + seqlen_kv − seqlen_q: the last row sees the last key (FlashAttention's meaning).
    pub fn with_causal(mut self) -> Self {
        self.mask.alignment = Alignment::BottomRight;
        self.mask.window_right = Some(0);
        self
    }

    /// Row i sees the keys j ≤ i: the first row sees the first key (PyTorch's `is_causal`, ONNX).
    pub fn with_causal_top_left(mut self) -> Self {
        self.mask.alignment = Alignment::TopLeft;
        self.mask.window_right = Some(0);
        self
    }

    /// Row i sees the keys from `i + offset − left` to `i + offset + right`, both included, where offset is
    /// seqlen_kv − seqlen_q, or 0 with [`AttentionProblem::with_causal_top_left`]. `None` leaves a side unlimited. With a
    /// causal mask the right side stays 0.
    pub fn with_window(mut self, left: Option<u32>, right: Option<u32>) -> Self {
        let causal = self.mask.window_right == Some(0);
        self.mask.window_left = left;
        self.mask.window_right = if causal { Some(0) } else { right };
        self
    }

    /// Multiplies Q Kᵀ by `softmax_scale` instead of 1/√head_dim.
    pub fn with_softmax_scale(mut self, softmax_scale: f64) -> Self {
        self.softmax_scale = Some(softmax_scale);
        self
    }

    /// Drops each probability with chance `dropout_p` (0 ≤ dropout_p < 1) and scales the kept ones by
    /// 1/(1 − dropout_p). The dropout mask depends only on seed, offset and position (batch, head, row, key).
    pub fn with_dropout(mut self, dropout_p: f64, philox_seed: u64) -> Self {
        self.dropout = Some(Dropout::new(dropout_p, philox_seed));
        self
    }

    /// Modifies the scores, softmax_scale · Q Kᵀ, before the mask and the softmax. Modifiers apply in the order of these calls.
    /// Each may be given once. FlashAttention, cuDNN and ONNX apply softcap before ALiBi.
    ///
    /// ```
    /// use wgpu_flash_attention::{AttentionProblem, AttentionShape, ScoreMod, alibi_slopes};
    ///
    /// let problem = AttentionProblem::new(AttentionShape::new(1, 12, 512, 64))
    ///     .with_causal()
    ///     .with_score(ScoreMod::Softcap(50.0))
    ///     .with_score(ScoreMod::Alibi(alibi_slopes(12)));
    /// assert_eq!(problem.scores().len(), 2);
    /// ```
    pub fn with_score(mut self, modifier: ScoreMod) -> Self {
        self.scores.push(modifier);
        self
    }

    /// Hides keys from rows, beside what causal and window hide. Each kind of mask may be given once.
    ///
    /// ```
    /// use wgpu_flash_attention::{AttentionProblem, AttentionShape, EntryLayout, KeyMask};
    ///
    /// // One mask for all heads of a sequence.
    /// let problem = AttentionProblem::new(AttentionShape::new(2, 12, 512, 64))
    ///     .with_key_mask(KeyMask::Boolean(EntryLayout::packed_bits([2, 1, 512, 512])));
    /// assert_eq!(problem.key_masks().len(), 1);
    /// ```
    pub fn with_key_mask(mut self, mask: KeyMask) -> Self {
        self.key_masks.push(mask);
        self
    }

    /// Says how many entries `aux` has, the data that [`ScoreMod::Wgsl`] and [`KeyMask::Wgsl`] read: one array, f32 or u32, in the
    /// buffer of [`Operand::Aux`](crate::Operand::Aux). Its slice starts at a multiple of the device's
    /// `min_storage_buffer_offset_alignment`.
    ///
    /// They come by [`ForwardSlices::with_aux`](crate::ForwardSlices::with_aux), or in a buffer by
    /// [`Buffers::with`](crate::Buffers::with).
    pub fn with_aux(mut self, len: u32) -> Self {
        self.aux_len = Some(len);
        self
    }

    /// Gives each sequence lengths of its own, `[batch]` each: its rows from `seqlens_q` on and its keys from `seqlens_kv` on do
    /// not exist, whatever the tensors hold there. Such rows have O = 0 and LSE = −∞, and no gradient. The offset of causal
    /// masks, windows and ALiBi is that of the sequence: seqlens_kv − seqlens_q.
    ///
    /// ```
    /// use wgpu_flash_attention::{AttentionProblem, AttentionShape};
    ///
    /// // Three texts of 512, 77 and 300 tokens, padded to 512.
    /// let lengths = vec![512, 77, 300];
    /// let problem = AttentionProblem::new(AttentionShape::new(3, 12, 512, 64)).with_lengths(lengths.clone(), lengths);
    /// assert_eq!(problem.visible_keys_of(1, 76), 0..77);
    /// assert!(problem.visible_keys_of(1, 77).is_empty());
    /// ```
    pub fn with_lengths(mut self, seqlens_q: Vec<u32>, seqlens_kv: Vec<u32>) -> Self {
        let lengths = self.lengths.get_or_insert_default();
        (lengths.q.seqlens, lengths.kv.seqlens) = (Known::Now(seqlens_q), Known::Now(seqlens_kv));
        self
    }

    /// As the rows of [`with_lengths`](Self::with_lengths), with lengths that each call brings: u32 or i32 `[batch]` in the buffer
    /// of [`Operand::SeqlensQ`](crate::Operand::SeqlensQ). `shape.seqlen_q` is the largest. The GPU reads them when the call runs,
    /// so a call before it in the same encoder may write them, and one prepared operation serves all lengths. Larger ones count
    /// as `shape.seqlen_q`, negative ones as 0.
    pub fn with_seqlens_q_at_call(mut self) -> Self {
        self.lengths.get_or_insert_default().q.seqlens = Known::AtCall;
        self
    }

    /// As [`with_seqlens_q_at_call`](Self::with_seqlens_q_at_call), for the keys: u32 or i32 `[batch]` in the buffer of
    /// [`Operand::SeqlensKv`](crate::Operand::SeqlensKv). `shape.seqlen_kv` is the largest.
    ///
    /// ```
    /// use wgpu_flash_attention::{AttentionProblem, AttentionShape, Capabilities, Operand, Plan};
    ///
    /// // One new row of each of 8 sequences over as many of 4096 keys as the call says.
    /// let shape = AttentionShape::new(8, 32, 1, 128).with_num_heads_kv(8).with_seqlen_kv(4096);
    /// let problem = AttentionProblem::new(shape).with_causal().with_seqlens_kv_at_call();
    /// let capabilities = Capabilities::webgpu_defaults();
    /// let plan = Plan::forward(&problem, &capabilities).build()?;
    /// assert_eq!(plan.required_bytes(Operand::SeqlensKv), 8 * 4);
    /// # Ok::<(), wgpu_flash_attention::Error>(())
    /// ```
    pub fn with_seqlens_kv_at_call(mut self) -> Self {
        self.lengths.get_or_insert_default().kv.seqlens = Known::AtCall;
        self
    }

    /// Packs the sequences: one lies behind the other, without padding, in Q and all that has its rows, `[total_q, num_heads,
    /// head_dim]`, and in K and V, `[total_kv, num_heads_kv, head_dim]`. LSE and its gradient are `[num_heads, total_q]`. Sequence b
    /// has the rows from `cu_seqlens_q[b]` to before `cu_seqlens_q[b + 1]`, and so its keys; both have batch + 1 entries, start at 0
    /// and never fall. A sequence may have no rows, or no keys. `shape.seqlen_q` and `shape.seqlen_kv` are the largest lengths that
    /// a sequence may have. The layout's `stride_batch` has no meaning; strides of rows and heads are those of
    /// [`AttentionLayout::bshd`] for `[total, heads, dim]`.
    ///
    /// Rows and keys count within a sequence, for masks, windows, modifiers and dropout; a bias and a mask have the shape of the
    /// largest lengths. With [`with_lengths`](Self::with_lengths), a sequence uses only so many of its rows (FlashAttention's
    /// `seqused`). Nothing writes rows that no sequence uses; the slice form returns O = 0, LSE = −∞ and gradients of 0 there.
    ///
    /// ```
    /// use wgpu_flash_attention::{AttentionProblem, AttentionShape, Capabilities, Operand, Plan};
    ///
    /// // Three texts of 512, 77 and 300 tokens.
    /// let sums = vec![0, 512, 589, 889];
    /// let problem = AttentionProblem::new(AttentionShape::new(3, 12, 512, 64)).with_cu_seqlens(sums.clone(), sums);
    /// assert_eq!(problem.visible_keys_of(1, 76), 0..77);
    /// let capabilities = Capabilities::webgpu_defaults();
    /// let plan = Plan::forward(&problem, &capabilities).build()?;
    /// assert_eq!(plan.required_len(Operand::Q), 889 * 12 * 64);
    /// assert_eq!(plan.required_len(Operand::Lse), 12 * 889);
    /// # Ok::<(), wgpu_flash_attention::Error>(())
    /// ```
    pub fn with_cu_seqlens(self, cu_seqlens_q: Vec<u32>, cu_seqlens_kv: Vec<u32>) -> Self {
        let mut problem = self.with_cu_seqlens_q(cu_seqlens_q);
        problem.lengths.get_or_insert_default().kv.packed = Some(Packed::by(cu_seqlens_kv));
        problem
    }

    /// As [`with_cu_seqlens`](Self::with_cu_seqlens), for Q and all that has its rows. K and V are `[batch, seqlen_kv]`, with keys
    /// up to the lengths of [`with_lengths`](Self::with_lengths) or
    /// [`with_seqlens_kv_at_call`](Self::with_seqlens_kv_at_call) if there are such.
    pub fn with_cu_seqlens_q(mut self, cu_seqlens_q: Vec<u32>) -> Self {
        self.lengths.get_or_insert_default().q.packed = Some(Packed::by(cu_seqlens_q));
        self
    }

    /// As [`with_cu_seqlens`](Self::with_cu_seqlens), with sums that each call brings: u32 or i32 `[batch + 1]` in the buffers of
    /// [`Operand::CuSeqlensQ`](crate::Operand::CuSeqlensQ) and [`Operand::CuSeqlensKv`](crate::Operand::CuSeqlensKv). `total_q`
    /// and `total_kv` are the rows of the tensors. The GPU reads the sums when the call runs, so one prepared operation serves
    /// all lengths. Sums that fall, or pass the tensors or the largest lengths, give wrong numbers, but nothing is read or written
    /// outside the tensors. [`with_seqlens_q_at_call`](Self::with_seqlens_q_at_call) and
    /// [`with_seqlens_kv_at_call`](Self::with_seqlens_kv_at_call) say how many of its rows and keys a sequence uses.
    ///
    /// ```
    /// use wgpu_flash_attention::{AttentionProblem, AttentionShape, Capabilities, Operand, Plan};
    ///
    /// // At most 16 sequences of at most 4096 tokens, and at most 8192 tokens in all.
    /// let shape = AttentionShape::new(16, 12, 4096, 64);
    /// let problem = AttentionProblem::new(shape).with_causal().with_cu_seqlens_at_call(8192, 8192);
    /// let capabilities = Capabilities::webgpu_defaults();
    /// let plan = Plan::forward(&problem, &capabilities).build()?;
    /// assert_eq!(plan.required_len(Operand::CuSeqlensQ), 17);
    /// # Ok::<(), wgpu_flash_attention::Error>(())
    /// ```
    pub fn with_cu_seqlens_at_call(self, total_q: u32, total_kv: u32) -> Self {
        let mut problem = self.with_cu_seqlens_q_at_call(total_q);
        problem.lengths.get_or_insert_default().kv.packed = Some(Packed::at_call(total_kv));
        problem
    }

    /// As [`with_cu_seqlens_at_call`](Self::with_cu_seqlens_at_call), for Q and all that has its rows. K and V are as in
    /// [`with_cu_seqlens_q`](Self::with_cu_seqlens_q).
    pub fn with_cu_seqlens_q_at_call(mut self, total_q: u32) -> Self {
        self.lengths.get_or_insert_default().q.packed = Some(Packed::at_call(total_q));
        self
    }

    /// Takes K and V from a [cache](KvCache), which an [append](super::AppendProblem) fills: in its type, whatever that of Q, side by side or in
    /// pages. `shape.seqlen_kv` is the most positions that a sequence may have; how many each has comes by
    /// [`with_seqlens_kv_at_call`](Self::with_seqlens_kv_at_call), with the new ones. With
    /// [`with_causal`](Self::with_causal), the last row of a sequence stands at its last position. So one prepared operation serves
    /// all layers and steps of a generation. The caches take the places of K and V in
    /// [`ForwardBuffers`](crate::ForwardBuffers), the page table that of [`Operand::PageTable`](crate::Operand::PageTable), u32
    /// `[batch, max_pages]`. The layouts of K and V in [`layout`](Self::layout) are not used.
    ///
    /// This is for the forward pass of [`Algorithm::Flash`]; there are no gradients.
    ///
    /// ```
    /// use wgpu_flash_attention::{AttentionProblem, AttentionShape, CacheElement, Capabilities, KvCache, Operand, Plan};
    ///
    /// // One new row of each of 4 sequences of at most 4096 tokens, in pages of 16; 300 pages for all of them.
    /// let shape = AttentionShape::new(4, 32, 1, 128).with_num_heads_kv(8).with_seqlen_kv(4096);
    /// let cache = KvCache::paged(&shape, CacheElement::Int8, 300, 16);
    /// let problem = AttentionProblem::new(shape).with_causal().with_cache(cache).with_seqlens_kv_at_call();
    /// let capabilities = Capabilities::webgpu_defaults();
    /// let plan = Plan::forward(&problem, &capabilities).build()?;
    /// assert_eq!(plan.required_bytes(Operand::PageTable), 4 * 256 * 4);
    /// # Ok::<(), wgpu_flash_attention::Error>(())
    /// ```
    pub fn with_cache(mut self, cache: KvCache) -> Self {
        self.cache = Some(cache);
        self
    }

    /// Whether K and V are signed bytes with scales.
    pub(crate) fn has_int8_cache(&self) -> bool {
        self.cache.is_some_and(|cache| cache.element == CacheElement::Int8)
    }

    /// The cache that K and V are in, if they are in one.
    pub fn cache(&self) -> Option<&KvCache> {
        self.cache.as_ref()
    }

    /// Adds a sink: a logit for each query head, f32 `[num_heads]` in the buffer of [`Operand::Sink`](crate::Operand::Sink). It
    /// joins the softmax's sum and has no value: `LSE = ln(Σ exp(S) + exp(sink))`. A row that sees no key has O = 0 and
    /// LSE = sink. The backward pass writes its gradient, f32 `[num_heads]`, to the buffer of
    /// [`Operand::DSink`](crate::Operand::DSink). A sink of −∞ is none.
    pub fn with_sink(mut self) -> Self {
        self.has_sink = true;
        self
    }

    /// Backward: the gradient of the [bias](ScoreMod::Bias) too, in the bias's type, in the buffer of
    /// [`Operand::DBias`](crate::Operand::DBias). It is the gradient with respect to the score to which an entry was added, summed
    /// over all scores that share the entry. It lies as [`EntryLayout::of_gradient`] says, contiguous `[batch or 1, num_heads or 1,
    /// seqlen_q or 1, seqlen_kv or 1]`, with a 1 where the bias has a stride of 0. Entries that no row sees are 0.
    ///
    /// ```
    /// use wgpu_flash_attention::{AttentionProblem, AttentionShape, EntryLayout, ScoreMod};
    ///
    /// // One bias for each head, as in T5.
    /// let shape = AttentionShape::new(4, 12, 512, 64);
    /// let layout = EntryLayout::contiguous([1, 12, 512, 512]);
    /// let bias = ScoreMod::Bias { layout, element: wgpu_flash_attention::Element::F32 };
    /// let problem = AttentionProblem::new(shape).with_score(bias).with_bias_gradient();
    /// assert_eq!(layout.of_gradient(&shape).required_len(&shape), 12 * 512 * 512);
    /// ```
    pub fn with_bias_gradient(mut self) -> Self {
        self.has_bias_gradient = true;
        self
    }

    /// Chooses the algorithm.
    pub fn with_algorithm(mut self, algorithm: Algorithm) -> Self {
        self.algorithm = algorithm;
        self
    }

    /// Divides the operation into dispatches of at most `max_flops` floating-point operations each, but at least one tile.
    /// Watchdogs of desktops and browsers reset a GPU that is busy for about two seconds; short dispatches avoid this. A
    /// good value is a thousandth of what the GPU does in two seconds.
    pub fn with_bounded_work(mut self, max_flops: u64) -> Self {
        self.max_flops_per_dispatch = Some(max_flops);
        self
    }

    /// Backward: places dQ, dK, dV and dO as the entries `q`, `k`, `v` and `o` of `layout` say. Without it they lie as Q, K, V
    /// and O do. Gradients must not overlap, so inputs that broadcast need another layout here.
    pub fn with_gradient_layout(mut self, layout: AttentionLayout) -> Self {
        self.gradient_layout = Some(layout);
        self
    }

    /// Backward: stores dQ, dK and dV in f32 for every type of Q, K and V. They are summed in f32 in any case.
    pub fn with_f32_gradients(mut self) -> Self {
        self.gradient_element = Some(Element::F32);
        self
    }

    /// Backward: adds dQ, dK and dV, in f32, to what their buffers hold, as gradients of several calls are summed. Each
    /// number is added to once, so the order of calls is the order of the sum.
    pub fn with_added_gradients(mut self) -> Self {
        self.gradient_element = Some(Element::F32);
        self.adds_gradients = true;
        self
    }

    /// Forward: stores O in f32 for every type of Q, K and V, as a part that a merge takes without a loss. It is summed in
    /// f32 in any case. The backward pass reads an O in the problem's type.
    pub fn with_f32_output(mut self) -> Self {
        self.output_element = Some(Element::F32);
        self
    }

    /// Says where rows and keys stand in a larger problem. [`Call`](crate::Call) may change the first row and the first key.
    ///
    /// Sequences with lengths of their own, caches and block masks are refused.
    pub fn with_shard(mut self, shard: Shard) -> Self {
        self.shard = Some(shard);
        self
    }

    /// Where dQ, dK, dV and dO (`o`) lie.
    pub fn gradient_layout(&self) -> AttentionLayout {
        self.gradient_layout.unwrap_or(self.layout)
    }

    /// The type that dQ, dK and dV are stored in.
    pub fn gradient_element(&self) -> Element {
        self.gradient_element.unwrap_or(self.element)
    }

    /// The type that O is stored in.
    pub fn output_element(&self) -> Element {
        self.output_element.unwrap_or(self.element)
    }

    /// The key that row 0 of a sequence with these lengths is aligned with: that of [`Mask::offset`], or of the row's place in a
    /// larger problem.
    pub fn mask_offset(&self, seqlen_q: u32, seqlen_kv: u32) -> i64 {
        self.shard.unwrap_or(Shard::of_lengths(seqlen_q, seqlen_kv)).mask_offset(&self.mask)
    }

    /// The score modifiers, in their order. Most problems have none.
    pub fn scores(&self) -> &[ScoreMod] {
        &self.scores
    }

    /// What hides keys from rows, beside causal and window. None for most problems.
    pub fn key_masks(&self) -> &[KeyMask] {
        &self.key_masks
    }

    /// The entries of `aux`, the data that functions in the caller's own WGSL read, if there is any.
    pub fn aux_len(&self) -> Option<u32> {
        self.aux_len
    }

    /// The functions in the caller's own WGSL.
    pub(crate) fn snippets(&self) -> impl Iterator<Item = &Snippet> {
        let of_scores = self.scores.iter().filter_map(|modifier| match modifier {
            ScoreMod::Wgsl(wgsl) => Some(&wgsl.0),
            _ => None,
        });
        of_scores.chain(self.key_masks.iter().filter_map(|mask| match mask {
            KeyMask::Wgsl(wgsl) => Some(&wgsl.0),
            KeyMask::Boolean(_) | KeyMask::Blocks(_) => None,
        }))
    }

    /// Whether a logit for each head joins the softmax's sum.
    pub fn has_sink(&self) -> bool {
        self.has_sink
    }

    /// Whether the backward pass computes the gradient of the bias.
    pub fn has_bias_gradient(&self) -> bool {
        self.has_bias_gradient
    }

    /// Layout and type of the bias's gradient, if there is a bias and its gradient is asked for.
    pub(crate) fn bias_gradient(&self) -> Option<(EntryLayout, Element)> {
        let bias = self.scores.iter().find_map(|modifier| match modifier {
            ScoreMod::Bias { layout, element } => Some((layout.of_gradient(&self.shape), *element)),
            ScoreMod::Softcap(_) | ScoreMod::Alibi(_) | ScoreMod::Wgsl(_) => None,
        });
        bias.filter(|_| self.has_bias_gradient)
    }

    /// The factor on Q Kᵀ that is used.
    pub fn softmax_scale(&self) -> f64 {
        self.softmax_scale.unwrap_or_else(|| 1.0 / f64::from(self.shape.head_dim).sqrt())
    }

    /// The lengths of each sequence, where they differ.
    pub(crate) fn lengths(&self) -> Option<&Lengths> {
        self.lengths.as_ref()
    }

    /// Whether sequences have lengths of their own.
    pub fn has_lengths(&self) -> bool {
        self.lengths.is_some()
    }

    /// Whether a call says how long sequences are.
    pub(crate) fn has_lengths_at_call(&self) -> bool {
        self.lengths.as_ref().is_some_and(Lengths::are_at_call)
    }

    /// seqlen_q and seqlen_kv of a sequence; the largest that it can have, where a call says more.
    pub fn lengths_of(&self, batch: u32) -> (u32, u32) {
        let AttentionShape { seqlen_q, seqlen_kv, .. } = self.shape;
        self.lengths.as_ref().map_or((seqlen_q, seqlen_kv), |lengths| {
            let [(_, of_q), (_, of_kv)] = lengths.of(&self.shape, batch);
            (of_q, of_kv)
        })
    }

    /// Rows of Q, O and LSE in all, if sequences are packed in them.
    pub fn total_q(&self) -> Option<u32> {
        self.lengths.as_ref()?.q.packed.as_ref().map(|packed| packed.total)
    }

    /// Rows of K and V in all, if sequences are packed in them.
    pub fn total_kv(&self) -> Option<u32> {
        self.lengths.as_ref()?.kv.packed.as_ref().map(|packed| packed.total)
    }

    /// Where a row of a sequence lies: sequence and row in Q and all that has its rows. Packed tensors have one sequence.
    pub fn row_in_q(&self, batch: u32, row: u32) -> (u32, u32) {
        match &self.lengths {
            Some(lengths) if lengths.q.packed.is_some() => (0, lengths.of(&self.shape, batch)[0].0.saturating_add(row)),
            _ => (batch, row),
        }
    }

    /// As [`row_in_q`](Self::row_in_q), of a key in K and V.
    pub fn row_in_kv(&self, batch: u32, key: u32) -> (u32, u32) {
        match &self.lengths {
            Some(lengths) if lengths.kv.packed.is_some() => {
                (0, lengths.of(&self.shape, batch)[1].0.saturating_add(key))
            }
            _ => (batch, key),
        }
    }

    /// Rows that a sequence has in Q, and in K and V: of packed sequences their own, otherwise those of the tensors.
    pub(crate) fn rows_of(&self, batch: u32) -> (u32, u32) {
        let AttentionShape { seqlen_q, seqlen_kv, .. } = self.shape;
        let (of_q, of_kv) = self.lengths_of(batch);
        let own = |total: Option<u32>, own: u32, of_tensor: u32| if total.is_some() { own } else { of_tensor };
        (own(self.total_q(), of_q, seqlen_q), own(self.total_kv(), of_kv, seqlen_kv))
    }

    /// Elements of a tensor with the rows of Q that lies so, or `None` past 2⁶⁴.
    pub(crate) fn len_in_q(&self, layout: &TensorLayout, dim: u32) -> Option<u64> {
        let AttentionShape { batch, seqlen_q, num_heads, .. } = self.shape;
        let (batch, rows) = self.total_q().map_or((batch, seqlen_q), |total| (1, total));
        layout.required_len(batch, rows, num_heads, dim)
    }

    /// As `len_in_q`, of a tensor with the rows of K and V.
    pub(crate) fn len_in_kv(&self, layout: &TensorLayout, dim: u32) -> Option<u64> {
        let AttentionShape { batch, seqlen_kv, num_heads_kv, .. } = self.shape;
        let (batch, rows) = self.total_kv().map_or((batch, seqlen_kv), |total| (1, total));
        layout.required_len(batch, rows, num_heads_kv, dim)
    }

    /// The number of a row in LSE.
    pub(crate) fn lse_index(&self, batch: u32, head: u32, row: u32) -> usize {
        let (batch, row) = self.row_in_q(batch, row);
        let rows = self.total_q().unwrap_or(self.shape.seqlen_q) as usize;
        (batch as usize * self.shape.num_heads as usize + head as usize) * rows + row as usize
    }

    /// Entries of LSE; 2⁶⁴ − 1 if there are more.
    pub fn lse_len(&self) -> u64 {
        self.total_q().map_or(self.shape.lse_len(), |total| u64::from(self.shape.num_heads) * u64::from(total))
    }

    /// As [`visible_keys`](Self::visible_keys), of a sequence with lengths of its own.
    pub fn visible_keys_of(&self, batch: u32, i: u32) -> std::ops::Range<u32> {
        let (seqlen_q, seqlen_kv) = self.lengths_of(batch);
        let offset = self.mask_offset(seqlen_q, seqlen_kv);
        if i < seqlen_q { self.mask.visible_keys_from(offset, i, seqlen_kv) } else { 0..0 }
    }

    /// The keys row `i` sees but for the [key masks](Self::key_masks) and lengths of its sequence's own, as a half-open range
    /// that may be empty.
    pub fn visible_keys(&self, i: u32) -> std::ops::Range<u32> {
        let AttentionShape { seqlen_q, seqlen_kv, .. } = self.shape;
        self.mask.visible_keys_from(self.mask_offset(seqlen_q, seqlen_kv), i, seqlen_kv)
    }

    /// How many (row, key) pairs the mask shows, over all batches and heads.
    pub fn visible_pairs(&self) -> u64 {
        let shape = &self.shape;
        let of_batch = |batch: u32| {
            let (seqlen_q, seqlen_kv) = self.lengths_of(batch);
            self.mask.visible_pairs_from(self.mask_offset(seqlen_q, seqlen_kv), seqlen_q, seqlen_kv)
        };
        let per_head = match self.lengths.as_ref().and_then(Lengths::known) {
            // Problems that planning refuses may have any number of sequences.
            Some(known) => (0..shape.batch).take(known).fold(0, |sum: u64, batch| sum.saturating_add(of_batch(batch))),
            None => of_batch(0).saturating_mul(u64::from(shape.batch)),
        };
        per_head.saturating_mul(u64::from(shape.num_heads))
    }

    /// Floating-point operations of the forward pass, counted as the field does: 2·(head_dim + head_dim_v) for each
    /// visible (row, key) pair.
    pub fn forward_flops(&self) -> u64 {
        let dims = u64::from(self.shape.head_dim) + u64::from(self.shape.head_dim_v);
        self.visible_pairs().saturating_mul(2 * dims)
    }

    /// Floating-point operations of the backward pass, counted as the field does: five products, three of width head_dim
    /// and two of width head_dim_v. (The forward pass has two products, so it is 2.5 times as much where both widths are
    /// equal.) Recomputation is not counted.
    pub fn backward_flops(&self) -> u64 {
        let dims = 3 * u64::from(self.shape.head_dim) + 2 * u64::from(self.shape.head_dim_v);
        self.visible_pairs().saturating_mul(2 * dims)
    }
}
