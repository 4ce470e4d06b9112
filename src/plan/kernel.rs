use std::fmt;

/// A tensor or uniform that a kernel binds. One binding number for life, the same in every kernel.
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
}

impl Operand {
    /// All operands.
    pub const ALL: [Operand; 7] =
        [Operand::Params, Operand::Q, Operand::K, Operand::V, Operand::O, Operand::Lse, Operand::S];

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
        }
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

/// A shader file in `shaders/`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Kernel {
    /// `flash_forward.wgsl`
    FlashForward,
    /// `flash_forward_cooperative.wgsl`
    FlashForwardCooperative,
    /// `standard_scores.wgsl`
    StandardScores,
    /// `standard_softmax.wgsl`
    StandardSoftmax,
    /// `standard_output.wgsl`
    StandardOutput,
}

impl Kernel {
    /// All kernels.
    pub const ALL: [Kernel; 5] = [
        Kernel::FlashForward,
        Kernel::FlashForwardCooperative,
        Kernel::StandardScores,
        Kernel::StandardSoftmax,
        Kernel::StandardOutput,
    ];

    /// The name of its file, without `.wgsl`.
    pub const fn name(self) -> &'static str {
        match self {
            Kernel::FlashForward => "flash_forward",
            Kernel::FlashForwardCooperative => "flash_forward_cooperative",
            Kernel::StandardScores => "standard_scores",
            Kernel::StandardSoftmax => "standard_softmax",
            Kernel::StandardOutput => "standard_output",
        }
    }

    /// What it binds.
    pub const fn operands(self) -> &'static [(Operand, Usage)] {
        use Operand::{K, Lse, O, Params, Q, S, V};
        use Usage::{Read, Uniform, Write};
        match self {
            Kernel::FlashForward | Kernel::FlashForwardCooperative => {
                &[(Params, Uniform), (Q, Read), (K, Read), (V, Read), (O, Write), (Lse, Write)]
            }
            Kernel::StandardScores => &[(Params, Uniform), (Q, Read), (K, Read), (S, Write)],
            Kernel::StandardSoftmax => &[(Params, Uniform), (Lse, Write), (S, Write)],
            Kernel::StandardOutput => &[(Params, Uniform), (V, Read), (O, Write), (S, Read)],
        }
    }

    /// Whether it reduces rows over invocations, and so has a subgroup form.
    pub(crate) const fn reduces_rows(self) -> bool {
        matches!(self, Kernel::FlashForward)
    }
}
