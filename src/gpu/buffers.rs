//! The caller's buffers of one call.

use crate::operand::Operand;
use std::marker::PhantomData;

/// The slices that a caller gives, by `Operand as usize`. The plan says what an operation needs of each.
pub(super) type Slices<'a> = [Option<wgpu::BufferSlice<'a>>; Operand::ALL.len()];

/// None of them.
pub(super) const NO_SLICES: Slices<'static> = [None; Operand::ALL.len()];

/// The forward operation: Q, K and V to O and LSE.
#[derive(Clone, Copy, Debug)]
pub enum Forward {}

/// The backward operation: the forward's tensors and the gradient of O to those of Q, K and V.
#[derive(Clone, Copy, Debug)]
pub enum Backward {}

/// Q, K and LSE to the probabilities of chosen heads and rows.
#[derive(Clone, Copy, Debug)]
pub enum Probabilities {}

/// The merge of partial results to O and LSE.
#[derive(Clone, Copy, Debug)]
pub enum Merge {}

/// New keys and values to a cache.
#[derive(Clone, Copy, Debug)]
pub enum Append {}

/// The caller's buffers of one call of the operation `D`: [`ForwardBuffers`], [`BackwardBuffers`], [`MergeBuffers`],
/// [`ProbabilitiesBuffers`] or [`AppendBuffers`].
///
/// All need `BufferUsages::STORAGE` and offsets that are multiples of 16 bytes. Inputs may share a buffer. A tensor that is
/// written may share its buffer with other such tensors alone, whose slices start at multiples of the device's
/// `min_storage_buffer_offset_alignment` and do not overlap; after [`FlashAttention::with_shared_buffers`](crate::FlashAttention::with_shared_buffers)
/// with tensors that are read
/// too, at such slices. A tensor without elements takes any buffer.
/// [`Plan::required_bytes`](crate::Plan::required_bytes) says how many bytes each must hold.
#[derive(Clone, Copy, Debug)]
#[must_use]
pub struct Buffers<'a, D> {
    pub(super) slices: Slices<'a>,
    operation: PhantomData<D>,
}

/// The caller's buffers of one forward call.
pub type ForwardBuffers<'a> = Buffers<'a, Forward>;

/// The caller's buffers of one backward call.
pub type BackwardBuffers<'a> = Buffers<'a, Backward>;

/// The caller's buffers of one merge.
pub type MergeBuffers<'a> = Buffers<'a, Merge>;

/// The caller's buffers of one call for probabilities.
pub type ProbabilitiesBuffers<'a> = Buffers<'a, Probabilities>;

/// The caller's buffers of one append.
pub type AppendBuffers<'a> = Buffers<'a, Append>;

impl<'a, D> Buffers<'a, D> {
    fn of(mut slices: Slices<'a>, given: &[(Operand, wgpu::BufferSlice<'a>)]) -> Self {
        for (operand, slice) in given {
            slices[*operand as usize] = Some(*slice);
        }
        Self { slices, operation: PhantomData }
    }

    /// Sets the buffer of a tensor; `None` removes it. Encoding refuses a tensor that the operation does not have.
    ///
    /// Problems with [data for functions in WGSL](crate::AttentionProblem::with_aux) take [`Operand::Aux`], whose slice starts at a
    /// multiple of the device's `min_storage_buffer_offset_alignment`.
    ///
    /// Problems whose lengths [come at the call](crate::AttentionProblem::with_seqlens_kv_at_call) take [`Operand::SeqlensQ`],
    /// [`Operand::SeqlensKv`], [`Operand::CuSeqlensQ`] and [`Operand::CuSeqlensKv`], those that they say, forward and backward. Their
    /// slices start at such a multiple too.
    ///
    /// Problems with a [bias](crate::ScoreMod::Bias), a [boolean mask](crate::KeyMask::Boolean) or a
    /// [sink](crate::AttentionProblem::with_sink) take [`Operand::Bias`], [`Operand::KeyMask`] or [`Operand::Sink`], forward and
    /// backward; with a sink, backward calls also write [`Operand::DSink`], and [with the gradient of a
    /// bias](crate::AttentionProblem::with_bias_gradient) [`Operand::DBias`]. Backward calls take [`Operand::DLse`], the gradient of
    /// LSE, f32 `[batch, num_heads, seqlen_q]`, of packed sequences `[num_heads, total_q]`, if the loss uses LSE.
    pub fn with(mut self, operand: Operand, slice: impl Into<Option<wgpu::BufferSlice<'a>>>) -> Self {
        self.slices[operand as usize] = slice.into();
        self
    }

    /// What was given for a tensor.
    pub fn get(&self, operand: Operand) -> Option<wgpu::BufferSlice<'a>> {
        self.slices[operand as usize]
    }
}

impl<'a> ForwardBuffers<'a> {
    /// Reads queries `q`, keys `k` and values `v`; writes the output `o` and `lse`, the log-sum-exp of each row, f32
    /// `[batch, num_heads, seqlen_q]`, of packed sequences `[num_heads, total_q]`. The others are in the problem's layout and
    /// element.
    pub fn new(
        q: wgpu::BufferSlice<'a>,
        k: wgpu::BufferSlice<'a>,
        v: wgpu::BufferSlice<'a>,
        o: wgpu::BufferSlice<'a>,
        lse: wgpu::BufferSlice<'a>,
    ) -> Self {
        let given = [(Operand::Q, q), (Operand::K, k), (Operand::V, v), (Operand::O, o), (Operand::Lse, lse)];
        Self::of(NO_SLICES, &given)
    }
}

impl<'a> BackwardBuffers<'a> {
    /// Reads what the forward call read and wrote, and `d_o`, the gradient of O in the problem's element; writes the
    /// gradients `dq`, `dk` and `dv`, in the problem's gradient layout and element. dK and dV are summed over the query
    /// heads that share them.
    pub fn new(
        forward: ForwardBuffers<'a>,
        d_o: wgpu::BufferSlice<'a>,
        dq: wgpu::BufferSlice<'a>,
        dk: wgpu::BufferSlice<'a>,
        dv: wgpu::BufferSlice<'a>,
    ) -> Self {
        let gradients = [(Operand::DO, d_o), (Operand::Dq, dq), (Operand::Dk, dk), (Operand::Dv, dv)];
        Self::of(forward.slices, &gradients)
    }
}

impl<'a> MergeBuffers<'a> {
    /// Reads the parts of O and their log-sum-exp, f32, each part `[batch, num_heads, seqlen_q]`; writes the output `o` and
    /// `lse`, the log-sum-exp of each row, f32 `[batch, num_heads, seqlen_q]`.
    pub fn new(
        o_parts: wgpu::BufferSlice<'a>,
        lse_parts: wgpu::BufferSlice<'a>,
        o: wgpu::BufferSlice<'a>,
        lse: wgpu::BufferSlice<'a>,
    ) -> Self {
        let given = [(Operand::OParts, o_parts), (Operand::LseParts, lse_parts), (Operand::O, o), (Operand::Lse, lse)];
        Self::of(NO_SLICES, &given)
    }
}

impl<'a> ProbabilitiesBuffers<'a> {
    /// Reads the queries `q`, the keys `k` and the `lse` of the forward pass, f32 `[batch, num_heads, seqlen_q]`, all of the whole
    /// problem; writes `probabilities`, f32 `[batch, chosen heads, chosen rows, seqlen_kv]`. A bias and a mask come by
    /// [`Buffers::with`]. A sink is a part of LSE.
    pub fn new(
        q: wgpu::BufferSlice<'a>,
        k: wgpu::BufferSlice<'a>,
        lse: wgpu::BufferSlice<'a>,
        probabilities: wgpu::BufferSlice<'a>,
    ) -> Self {
        let given = [(Operand::Q, q), (Operand::K, k), (Operand::Lse, lse), (Operand::Probabilities, probabilities)];
        Self::of(NO_SLICES, &given)
    }
}

impl<'a> AppendBuffers<'a> {
    /// Reads the new keys `k` and values `v`; writes the caches, each in the type and layout that the problem says. Of a cache only
    /// the rows of new tokens are written.
    ///
    /// [`Buffers::with`] adds what the problem has beside these, u32 but for Q and the tables of rotary embeddings:
    ///
    /// | operand | shape |
    /// |---|---|
    /// | [`Operand::CacheSeqlens`] | `[batch]`, unless slots say where tokens go |
    /// | [`Operand::PageTable`] | `[batch, max_pages]` |
    /// | [`Operand::SlotMapping`] | `[batch, seqlen_q]`, or `[total]` of packed tokens |
    /// | [`Operand::CuSeqlensNew`] | `[batch + 1]` |
    /// | [`Operand::RotaryCos`], [`Operand::RotarySin`] | f32 `[positions, rotary_dim / 2]`, or a row for each new token |
    /// | [`Operand::Q`] | Q, read, or written over itself |
    /// | [`Operand::QRotated`] | the rotated Q, written |
    /// | [`Operand::NewCacheSeqlens`] | `[batch]`, written |
    ///
    /// Tensors that no kernel reads and writes at once may share a buffer: K and V of a cache, or Q, K and V of new tokens.
    pub fn new(
        k: wgpu::BufferSlice<'a>,
        v: wgpu::BufferSlice<'a>,
        k_cache: wgpu::BufferSlice<'a>,
        v_cache: wgpu::BufferSlice<'a>,
    ) -> Self {
        let given = [(Operand::K, k), (Operand::V, v), (Operand::KCache, k_cache), (Operand::VCache, v_cache)];
        Self::of(NO_SLICES, &given)
    }
}
