//! The names of the kernels. The files beside this one say what each kernel is.

/// A shader file in `shaders/`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Kernel {
    /// `flash_forward.wgsl`
    FlashForward,
    /// `flash_forward.wgsl` on a split of the keys
    FlashForwardSplit,
    /// `flash_forward_cooperative.wgsl`
    FlashForwardCooperative,
    /// `flash_forward_cooperative.wgsl` on a split of the keys
    FlashForwardCooperativeSplit,
    /// `flash_forward_cooperative.wgsl`, where the query heads that share a KV head share workgroups
    FlashForwardCooperativePacked,
    /// The same on a split of the keys
    FlashForwardCooperativePackedSplit,
    /// `flash_decode.wgsl`
    FlashDecode,
    /// `flash_decode.wgsl` on a split of the keys
    FlashDecodeSplit,
    /// `combine.wgsl`
    Combine,
    /// `fold.wgsl`
    Fold,
    /// `standard_scores.wgsl`
    StandardScores,
    /// `standard_softmax.wgsl`
    StandardSoftmax,
    /// `standard_output.wgsl`
    StandardOutput,
    /// `flash_backward_preprocess.wgsl`
    FlashBackwardPreprocess,
    /// `flash_backward_dkdv.wgsl`
    FlashBackwardDkdv,
    /// `flash_backward_dq.wgsl`
    FlashBackwardDq,
    /// `flash_backward_dkdv_cooperative.wgsl`
    FlashBackwardDkdvCooperative,
    /// `flash_backward_dq_cooperative.wgsl`
    FlashBackwardDqCooperative,
    /// `standard_dp.wgsl`
    StandardDp,
    /// `standard_ds.wgsl`
    StandardDs,
    /// `standard_dv.wgsl`
    StandardDv,
    /// `standard_dk.wgsl`
    StandardDk,
    /// `standard_dq.wgsl`
    StandardDq,
    /// `backward_sink.wgsl`
    BackwardSink,
    /// `flash_backward_dbias.wgsl`
    FlashBackwardDbias,
    /// `flash_backward_dbias.wgsl`, of a bias in 16 bits
    FlashBackwardDbiasSums,
    /// `round_dbias.wgsl`
    RoundDbias,
    /// `probabilities.wgsl`
    Probabilities,
    /// `sequences.wgsl`
    Sequences,
    /// `append.wgsl`, of K
    AppendK,
    /// `append.wgsl`, of V
    AppendV,
    /// `append.wgsl`, of Q, which goes to no cache
    RotateQ,
    /// `append.wgsl`, of Q, which is written over itself
    RotateQInPlace,
    /// `append_seqlens.wgsl`
    AppendSeqlens,
}

impl Kernel {
    /// All kernels.
    pub const ALL: &[Kernel] = &[
        Kernel::FlashForward,
        Kernel::FlashForwardSplit,
        Kernel::FlashForwardCooperative,
        Kernel::FlashForwardCooperativeSplit,
        Kernel::FlashForwardCooperativePacked,
        Kernel::FlashForwardCooperativePackedSplit,
        Kernel::FlashDecode,
        Kernel::FlashDecodeSplit,
        Kernel::Combine,
        Kernel::Fold,
        Kernel::StandardScores,
        Kernel::StandardSoftmax,
        Kernel::StandardOutput,
        Kernel::FlashBackwardPreprocess,
        Kernel::FlashBackwardDkdv,
        Kernel::FlashBackwardDq,
        Kernel::FlashBackwardDkdvCooperative,
        Kernel::FlashBackwardDqCooperative,
        Kernel::StandardDp,
        Kernel::StandardDs,
        Kernel::StandardDv,
        Kernel::StandardDk,
        Kernel::StandardDq,
        Kernel::BackwardSink,
        Kernel::FlashBackwardDbias,
        Kernel::FlashBackwardDbiasSums,
        Kernel::RoundDbias,
        Kernel::Probabilities,
        Kernel::Sequences,
        Kernel::AppendK,
        Kernel::AppendV,
        Kernel::RotateQ,
        Kernel::RotateQInPlace,
        Kernel::AppendSeqlens,
    ];
}
