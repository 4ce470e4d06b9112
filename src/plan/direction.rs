/// What an operation computes: attention, its gradients, a merge of partial results, probabilities, or an append to a cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Direction {
    /// Q, K and V to O and LSE.
    Forward,
    /// Q, K, V, O, LSE and the gradients of O and LSE to those of Q, K and V.
    Backward,
    /// Partial results to O and LSE.
    Merge,
    /// Q, K and LSE to the probabilities of chosen heads and rows.
    Probabilities,
    /// New keys and values to a cache.
    Append,
}

impl Direction {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Direction::Forward => "forward",
            Direction::Backward => "backward",
            Direction::Merge => "merge",
            Direction::Probabilities => "probabilities",
            Direction::Append => "append",
        }
    }
}
