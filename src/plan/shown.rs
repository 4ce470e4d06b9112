//! Plans in words.

use super::direction::Direction;
use super::passes::Plan;
use std::fmt;

impl Plan {
    /// Direction, shape and element in a few words: `forward 2x16/4x4096x4096x64 f16`, for sequences, heads (of Q and of K and V),
    /// rows, keys and head_dim; and head_dim_v, where it differs.
    pub(crate) fn title(&self) -> String {
        let direction = match self.direction {
            Direction::Forward => "forward",
            Direction::Backward => "backward",
            Direction::Merge => "merge",
            Direction::Probabilities => "probabilities",
            Direction::Append => "append",
        };
        let shape = &self.problem.shape;
        let heads = match shape.num_heads == shape.num_heads_kv {
            true => shape.num_heads.to_string(),
            false => format!("{}/{}", shape.num_heads, shape.num_heads_kv),
        };
        let widths = match shape.head_dim == shape.head_dim_v {
            true => shape.head_dim.to_string(),
            false => format!("{}/{}", shape.head_dim, shape.head_dim_v),
        };
        let (batch, rows, keys) = (shape.batch, shape.seqlen_q, shape.seqlen_kv);
        format!("{direction} {batch}x{heads}x{rows}x{keys}x{widths} {}", self.problem.element.name())
    }
}

/// What it is, why, and a line for each kernel, with its tiles.
impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}: {}", self.title(), self.reason())?;
        for pass in self.passes() {
            write!(f, "\n  {}, {}", pass.kernel.name(), pass.specialization.tiles)?;
        }
        if self.num_splits() > 1 {
            write!(f, "\n  {} splits of the keys", self.num_splits())?;
        }
        match self.scratch_bytes() {
            0 => Ok(()),
            bytes => write!(f, "\n  {bytes} bytes of scratch memory"),
        }
    }
}
