//! Plans in words, and as records.

use super::passes::Plan;
use std::fmt;

impl Plan {
    /// Direction, shape and element in a few words: `forward 2x16/4x4096x4096x64 f16`, for sequences, heads (of Q and of K and V),
    /// rows, keys and head_dim; and head_dim_v, where it differs.
    pub(crate) fn title(&self) -> String {
        let direction = self.direction.name();
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

/// What a plan is serialized as.
#[cfg(feature = "serde")]
#[derive(serde::Serialize)]
struct Record<'a> {
    direction: &'a str,
    element: &'a str,
    batch: u32,
    num_heads: u32,
    num_heads_kv: u32,
    seqlen_q: u32,
    seqlen_kv: u32,
    head_dim: u32,
    head_dim_v: u32,
    reason: String,
    passes: Vec<PassRecord<'a>>,
    num_splits: u32,
    scratch_bytes: u64,
}

#[cfg(feature = "serde")]
#[derive(serde::Serialize)]
struct PassRecord<'a> {
    kernel: &'a str,
    tiles: String,
}

/// For logs and records: direction, element, the numbers of the shape, reason, passes (each with kernel and tiles), num_splits
/// and scratch_bytes. Tiles are in words.
#[cfg(feature = "serde")]
impl serde::Serialize for Plan {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let passes = self
            .passes()
            .iter()
            .map(|pass| PassRecord { kernel: pass.kernel.name(), tiles: pass.specialization.tiles.to_string() });
        let shape = &self.problem.shape;
        let record = Record {
            direction: self.direction.name(),
            element: self.problem.element.name(),
            batch: shape.batch,
            num_heads: shape.num_heads,
            num_heads_kv: shape.num_heads_kv,
            seqlen_q: shape.seqlen_q,
            seqlen_kv: shape.seqlen_kv,
            head_dim: shape.head_dim,
            head_dim_v: shape.head_dim_v,
            reason: self.reason(),
            passes: passes.collect(),
            num_splits: self.num_splits(),
            scratch_bytes: self.scratch_bytes(),
        };
        record.serialize(serializer)
    }
}
