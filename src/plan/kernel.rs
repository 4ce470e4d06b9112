use crate::operand::{Operand, Usage};

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
    /// `flash_decode.wgsl`
    FlashDecode,
    /// `flash_decode.wgsl` on a split of the keys
    FlashDecodeSplit,
    /// `combine.wgsl`
    Combine,
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
}

impl Kernel {
    /// All kernels.
    pub const ALL: [Kernel; 20] = [
        Kernel::FlashForward,
        Kernel::FlashForwardSplit,
        Kernel::FlashForwardCooperative,
        Kernel::FlashForwardCooperativeSplit,
        Kernel::FlashDecode,
        Kernel::FlashDecodeSplit,
        Kernel::Combine,
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
    ];

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Kernel::FlashForward => "flash_forward",
            Kernel::FlashForwardSplit => "flash_forward_split",
            Kernel::FlashForwardCooperative => "flash_forward_cooperative",
            Kernel::FlashForwardCooperativeSplit => "flash_forward_cooperative_split",
            Kernel::FlashDecode => "flash_decode",
            Kernel::FlashDecodeSplit => "flash_decode_split",
            Kernel::Combine => "combine",
            Kernel::StandardScores => "standard_scores",
            Kernel::StandardSoftmax => "standard_softmax",
            Kernel::StandardOutput => "standard_output",
            Kernel::FlashBackwardPreprocess => "flash_backward_preprocess",
            Kernel::FlashBackwardDkdv => "flash_backward_dkdv",
            Kernel::FlashBackwardDq => "flash_backward_dq",
            Kernel::FlashBackwardDkdvCooperative => "flash_backward_dkdv_cooperative",
            Kernel::FlashBackwardDqCooperative => "flash_backward_dq_cooperative",
            Kernel::StandardDp => "standard_dp",
            Kernel::StandardDs => "standard_ds",
            Kernel::StandardDv => "standard_dv",
            Kernel::StandardDk => "standard_dk",
            Kernel::StandardDq => "standard_dq",
        }
    }

    /// What it binds.
    pub const fn operands(self) -> &'static [(Operand, Usage)] {
        use Operand::{DLse, DO, Delta, Dk, Dp, Dq, Dv, K, Lse, LseParts, O, OParts, Params, Q, S, V};
        use Usage::{Read, Uniform, Write};
        match self {
            Kernel::FlashForward | Kernel::FlashForwardCooperative | Kernel::FlashDecode => {
                &[(Params, Uniform), (Q, Read), (K, Read), (V, Read), (O, Write), (Lse, Write)]
            }
            Kernel::FlashForwardSplit | Kernel::FlashForwardCooperativeSplit | Kernel::FlashDecodeSplit => {
                &[(Params, Uniform), (Q, Read), (K, Read), (V, Read), (OParts, Write), (LseParts, Write)]
            }
            Kernel::Combine => &[(Params, Uniform), (O, Write), (Lse, Write), (OParts, Read), (LseParts, Read)],
            Kernel::StandardScores => &[(Params, Uniform), (Q, Read), (K, Read), (S, Write)],
            Kernel::StandardSoftmax => &[(Params, Uniform), (Lse, Write), (S, Write)],
            Kernel::StandardOutput => &[(Params, Uniform), (V, Read), (O, Write), (Lse, Read), (S, Read)],
            Kernel::FlashBackwardPreprocess => {
                &[(Params, Uniform), (O, Read), (DO, Read), (DLse, Read), (Delta, Write)]
            }
            Kernel::FlashBackwardDkdv | Kernel::FlashBackwardDkdvCooperative => &[
                (Params, Uniform),
                (Q, Read),
                (K, Read),
                (V, Read),
                (Lse, Read),
                (DO, Read),
                (Delta, Read),
                (Dk, Write),
                (Dv, Write),
            ],
            Kernel::FlashBackwardDq | Kernel::FlashBackwardDqCooperative => &[
                (Params, Uniform),
                (Q, Read),
                (K, Read),
                (V, Read),
                (Lse, Read),
                (DO, Read),
                (Delta, Read),
                (Dq, Write),
            ],
            Kernel::StandardDp => &[(Params, Uniform), (V, Read), (DO, Read), (Dp, Write)],
            Kernel::StandardDs => &[(Params, Uniform), (Lse, Read), (S, Write), (Delta, Read), (Dp, Write)],
            Kernel::StandardDv => &[(Params, Uniform), (Lse, Read), (S, Read), (DO, Read), (Dv, Write)],
            Kernel::StandardDk => &[(Params, Uniform), (Q, Read), (Lse, Read), (Dk, Write), (Dp, Read)],
            Kernel::StandardDq => &[(Params, Uniform), (K, Read), (Lse, Read), (Dq, Write), (Dp, Read)],
        }
    }

    pub(crate) fn binds(self, operand: Operand) -> bool {
        self.operands().iter().any(|&(other, _)| other == operand)
    }

    /// Whether it reduces rows over invocations, and so has a subgroup form.
    pub(crate) const fn reduces_rows(self) -> bool {
        matches!(
            self,
            Kernel::FlashForward
                | Kernel::FlashForwardSplit
                | Kernel::FlashDecode
                | Kernel::FlashDecodeSplit
                | Kernel::FlashBackwardPreprocess
                | Kernel::FlashBackwardDkdv
                | Kernel::FlashBackwardDq
        )
    }

    /// The dimension that a kernel of standard attention sums over, or walks along.
    pub(crate) const fn product_dim(self, head_dim: u32, head_dim_v: u32) -> u32 {
        match self {
            Kernel::StandardDp | Kernel::StandardOutput | Kernel::StandardDv => head_dim_v,
            _ => head_dim,
        }
    }

    /// The name of its file in `shaders/`, without `.wgsl`.
    pub const fn file(self) -> &'static str {
        match self {
            Kernel::FlashForwardSplit => Kernel::FlashForward.name(),
            Kernel::FlashForwardCooperativeSplit => Kernel::FlashForwardCooperative.name(),
            Kernel::FlashDecodeSplit => Kernel::FlashDecode.name(),
            kernel => kernel.name(),
        }
    }

    /// The same on a split of the keys, if there is such a form.
    pub(crate) const fn split(self) -> Option<Kernel> {
        match self {
            Kernel::FlashForward => Some(Kernel::FlashForwardSplit),
            Kernel::FlashForwardCooperative => Some(Kernel::FlashForwardCooperativeSplit),
            Kernel::FlashDecode => Some(Kernel::FlashDecodeSplit),
            _ => None,
        }
    }

    /// Whether the query heads that share a KV head share its workgroups.
    pub(crate) const fn packs_heads(self) -> bool {
        matches!(self, Kernel::FlashDecode | Kernel::FlashDecodeSplit)
    }

    /// Whether cooperative matrices compute its products.
    pub(crate) const fn uses_matrices(self) -> bool {
        matches!(
            self,
            Kernel::FlashForwardCooperative
                | Kernel::FlashForwardCooperativeSplit
                | Kernel::FlashBackwardDkdvCooperative
                | Kernel::FlashBackwardDqCooperative
        )
    }

    /// Whether tiles that need a mask can have a loop of their own.
    pub(crate) const fn has_masked_loop(self) -> bool {
        matches!(
            self,
            Kernel::FlashForward
                | Kernel::FlashForwardSplit
                | Kernel::FlashBackwardDkdv
                | Kernel::FlashBackwardDq
                | Kernel::FlashBackwardDkdvCooperative
                | Kernel::FlashBackwardDqCooperative
        )
    }

    /// Whether a workgroup owns a tile of keys, over which it walks with the rows; else it owns a tile of rows.
    pub(crate) const fn owns_keys(self) -> bool {
        matches!(
            self,
            Kernel::FlashBackwardDkdv | Kernel::FlashBackwardDkdvCooperative | Kernel::StandardDv | Kernel::StandardDk
        )
    }

    /// Whether its text depends on there being keys that some row does not see.
    pub(crate) const fn masks(self) -> bool {
        !matches!(
            self,
            Kernel::StandardScores
                | Kernel::StandardSoftmax
                | Kernel::StandardDp
                | Kernel::StandardDs
                | Kernel::FlashBackwardPreprocess
                | Kernel::Combine
        )
    }

    /// Whether it drops probabilities.
    pub(crate) const fn drops(self) -> bool {
        !matches!(
            self,
            Kernel::StandardScores
                | Kernel::StandardOutput
                | Kernel::StandardDp
                | Kernel::StandardDv
                | Kernel::StandardDk
                | Kernel::StandardDq
                | Kernel::FlashBackwardPreprocess
                | Kernel::Combine
        )
    }
}
