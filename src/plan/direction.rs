use crate::operand::Operand;

/// Whether an operation computes the answer, its gradients, or the answer from partial ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// Q, K and V to O and LSE.
    Forward,
    /// Q, K, V, O, LSE and the gradients of O and LSE to those of Q, K and V.
    Backward,
    /// Partial results to O and LSE.
    Merge,
}

impl Direction {
    /// The caller's tensors.
    pub const fn operands(self) -> &'static [Operand] {
        use Operand::{DLse, DO, Dk, Dq, Dv, K, Lse, LseParts, O, OParts, Q, V};
        match self {
            Direction::Forward => &[Q, K, V, O, Lse],
            Direction::Merge => &[OParts, LseParts, O, Lse],
            Direction::Backward => &[Q, K, V, O, Lse, DO, DLse, Dq, Dk, Dv],
        }
    }

    /// Those of them that are written, whose elements may not overlap.
    pub(crate) const fn outputs(self) -> &'static [Operand] {
        match self {
            Direction::Forward | Direction::Merge => &[Operand::O],
            Direction::Backward => &[Operand::Dq, Operand::Dk, Operand::Dv],
        }
    }
}
