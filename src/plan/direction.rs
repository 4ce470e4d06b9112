use super::Operand;

/// Whether an operation computes the answer or its gradients.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// Q, K and V to O and LSE.
    Forward,
    /// Q, K, V, O, LSE and the gradients of O and LSE to those of Q, K and V.
    Backward,
}

impl Direction {
    /// The caller's tensors.
    pub const fn operands(self) -> &'static [Operand] {
        use Operand::{DLse, DO, Dk, Dq, Dv, K, Lse, O, Q, V};
        match self {
            Direction::Forward => &[Q, K, V, O, Lse],
            Direction::Backward => &[Q, K, V, O, Lse, DO, DLse, Dq, Dk, Dv],
        }
    }

    /// Those of them that are written, whose elements may not overlap.
    pub(crate) const fn outputs(self) -> &'static [Operand] {
        match self {
            Direction::Forward => &[Operand::O],
            Direction::Backward => &[Operand::Dq, Operand::Dk, Operand::Dv],
        }
    }
}
