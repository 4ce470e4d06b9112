//! The tensors that kernels bind, by name and number.

use std::fmt;

/// A tensor or uniform that a kernel binds. Its binding number is the same in every kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
#[non_exhaustive]
pub enum Operand {
    /// The uniform.
    Params = 0,
    /// Queries.
    Q = 1,
    /// Keys.
    K = 2,
    /// Values.
    V = 3,
    /// Outputs.
    O = 4,
    /// Log-sum-exp of each row.
    Lse = 5,
    /// The score matrix of standard attention, later its probabilities.
    S = 6,
    /// The gradient of O.
    DO = 7,
    /// The gradient of LSE, where the caller has one.
    DLse = 8,
    /// What the gradients need of each row: LSE in units of log2(e), and D = rowsum(dO ∘ O) − dLSE.
    RowStats = 9,
    /// The gradient of Q.
    Dq = 10,
    /// The gradient of K.
    Dk = 11,
    /// The gradient of V.
    Dv = 12,
    /// The gradient of the probabilities in standard attention, later that of the scores.
    Dp = 13,
    /// Partial results for O, one for each split of the keys.
    OParts = 14,
    /// Their log-sum-exp.
    LseParts = 15,
    /// Small data that is not a tensor, such as the slopes of ALiBi. The library makes it.
    Tables = 16,
    /// What is added to the scores.
    Bias = 17,
    /// Which keys a row may see, a bit for each.
    KeyMask = 18,
    /// A logit for each query head that joins the softmax's sum: f32 `[num_heads]`.
    Sink = 19,
    /// The gradient of the sinks.
    DSink = 20,
    /// The gradient of the bias.
    DBias = 21,
    /// The sums that become the gradient of a bias in 16 bits, in f32.
    DBiasSums = 22,
    /// Probabilities of chosen heads and rows.
    Probabilities = 23,
    /// Data that functions in the caller's own WGSL read.
    Aux = 24,
    /// How many rows of Q each sequence has: u32 or i32 `[batch]`.
    SeqlensQ = 25,
    /// How many rows of K and V each sequence has: u32 or i32 `[batch]`.
    SeqlensKv = 26,
    /// Where each sequence begins among the packed rows of Q: prefix sums, u32 or i32 `[batch + 1]`.
    CuSeqlensQ = 27,
    /// Where each sequence begins among the packed rows of K and V: prefix sums, u32 or i32 `[batch + 1]`.
    CuSeqlensKv = 28,
    /// The cache of keys that an append writes.
    KCache = 29,
    /// The cache of values.
    VCache = 30,
    /// Positions that each sequence has in a cache: u32 `[batch]`.
    CacheSeqlens = 31,
    /// The page of each sequence's positions in a cache: u32 `[batch, max_pages]`.
    PageTable = 32,
    /// Where in a cache new tokens go: u32, one for each.
    SlotMapping = 33,
    /// Where the new tokens of each sequence start, if they are packed: u32 `[batch + 1]`.
    CuSeqlensNew = 34,
    /// Cosines of rotary embeddings: f32, a row for each position or token.
    RotaryCos = 35,
    /// Sines of rotary embeddings.
    RotarySin = 36,
    /// Rotated queries.
    QRotated = 37,
    /// The lengths after an append: u32 `[batch]`.
    NewCacheSeqlens = 38,
}

impl Operand {
    /// All operands.
    pub const ALL: &[Operand] = &[
        Operand::Params,
        Operand::Q,
        Operand::K,
        Operand::V,
        Operand::O,
        Operand::Lse,
        Operand::S,
        Operand::DO,
        Operand::DLse,
        Operand::RowStats,
        Operand::Dq,
        Operand::Dk,
        Operand::Dv,
        Operand::Dp,
        Operand::OParts,
        Operand::LseParts,
        Operand::Tables,
        Operand::Bias,
        Operand::KeyMask,
        Operand::Sink,
        Operand::DSink,
        Operand::DBias,
        Operand::DBiasSums,
        Operand::Probabilities,
        Operand::Aux,
        Operand::SeqlensQ,
        Operand::SeqlensKv,
        Operand::CuSeqlensQ,
        Operand::CuSeqlensKv,
        Operand::KCache,
        Operand::VCache,
        Operand::CacheSeqlens,
        Operand::PageTable,
        Operand::SlotMapping,
        Operand::CuSeqlensNew,
        Operand::RotaryCos,
        Operand::RotarySin,
        Operand::QRotated,
        Operand::NewCacheSeqlens,
    ];

    /// Its number in the bind group.
    pub const fn binding(self) -> u32 {
        self as u32
    }

    /// Its name in WGSL.
    pub const fn name(self) -> &'static str {
        match self {
            Operand::Params => "params",
            Operand::Q => "q",
            Operand::K => "k",
            Operand::V => "v",
            Operand::O => "o",
            Operand::Lse => "lse",
            Operand::S => "s",
            Operand::DO => "d_o",
            Operand::DLse => "d_lse",
            Operand::RowStats => "row_stats",
            Operand::Dq => "dq",
            Operand::Dk => "dk",
            Operand::Dv => "dv",
            Operand::Dp => "dp",
            Operand::OParts => "o_parts",
            Operand::LseParts => "lse_parts",
            Operand::Tables => "tables",
            Operand::Bias => "bias",
            Operand::KeyMask => "key_mask",
            Operand::Sink => "sink",
            Operand::DSink => "dsink",
            Operand::DBias => "dbias",
            Operand::DBiasSums => "dbias_sums",
            Operand::Probabilities => "probabilities",
            Operand::Aux => "aux",
            Operand::SeqlensQ => "seqlens_q",
            Operand::SeqlensKv => "seqlens_kv",
            Operand::CuSeqlensQ => "cu_seqlens_q",
            Operand::CuSeqlensKv => "cu_seqlens_kv",
            Operand::KCache => "k_cache",
            Operand::VCache => "v_cache",
            Operand::CacheSeqlens => "cache_seqlens",
            Operand::PageTable => "page_table",
            Operand::SlotMapping => "slot_mapping",
            Operand::CuSeqlensNew => "cu_seqlens_new",
            Operand::RotaryCos => "rotary_cos",
            Operand::RotarySin => "rotary_sin",
            Operand::QRotated => "q_rotated",
            Operand::NewCacheSeqlens => "new_cache_seqlens",
        }
    }

    /// Whether it holds elements in the problem's type and layout. (Gradients may have another type and layout.) All other
    /// tensors are f32 and contiguous in every problem.
    pub const fn holds_elements(self) -> bool {
        use Operand::{DO, Dk, Dq, Dv, K, O, Q, QRotated, V};
        matches!(self, Q | K | V | O | DO | Dq | Dk | Dv | QRotated)
    }

    /// Whether it is the gradient of an input.
    pub(crate) const fn is_gradient(self) -> bool {
        matches!(self, Operand::Dq | Operand::Dk | Operand::Dv)
    }
}

impl fmt::Display for Operand {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How a kernel uses an operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Usage {
    /// A uniform buffer.
    Uniform,
    /// A storage buffer, read.
    Read,
    /// A storage buffer, written and perhaps read.
    Write,
}
