//! Is the problem sound? The one place that asks.

use super::Direction;
use crate::error::{Error, InvalidProblem};
use crate::operand::Operand;
use crate::problem::{AttentionProblem, Element, TensorLayout};

/// The largest head_dim and head_dim_v that a kernel exists for.
pub const MAX_HEAD_DIM: u32 = 256;

/// The largest batch, number of heads and length: positions, and sums of a position and a window, stay within i32.
pub const MAX_LENGTH: u32 = 1 << 29;

pub(super) fn check(problem: &AttentionProblem, direction: Direction) -> Result<(), Error> {
    let shape = &problem.shape;
    if shape.num_heads != 0 && (shape.num_heads_kv == 0 || !shape.num_heads.is_multiple_of(shape.num_heads_kv)) {
        let (num_heads, num_heads_kv) = (shape.num_heads, shape.num_heads_kv);
        return Err(InvalidProblem::HeadsMismatch { num_heads, num_heads_kv }.into());
    }
    for (name, found) in [("head_dim", shape.head_dim), ("head_dim_v", shape.head_dim_v)] {
        if found == 0 || found > MAX_HEAD_DIM {
            return Err(InvalidProblem::HeadDim { name, found, max: MAX_HEAD_DIM }.into());
        }
    }
    for (name, found) in [
        ("batch", shape.batch),
        ("num_heads", shape.num_heads),
        ("num_heads_kv", shape.num_heads_kv),
        ("seqlen_q", shape.seqlen_q),
        ("seqlen_kv", shape.seqlen_kv),
    ] {
        if found > MAX_LENGTH {
            return Err(InvalidProblem::Length { name, found, max: MAX_LENGTH }.into());
        }
    }
    if let Some(dropout) = problem.dropout
        && !(0.0..1.0).contains(&dropout.dropout_p)
    {
        return Err(InvalidProblem::DropoutP(dropout.dropout_p).into());
    }
    let scale = problem.softmax_scale();
    if !(scale * std::f64::consts::LOG2_E).is_finite() || !((scale * std::f64::consts::LOG2_E) as f32).is_finite() {
        return Err(InvalidProblem::SoftmaxScale(scale).into());
    }
    if problem.max_flops_per_dispatch == Some(0) {
        return Err(InvalidProblem::NoWorkAllowed.into());
    }
    let found = problem.gradient_element_in_force();
    if found != problem.element && found != Element::F32 {
        return Err(InvalidProblem::GradientElement { element: problem.element, found }.into());
    }
    for &operand in direction.operands().iter().filter(|operand| operand.holds_elements()) {
        if required_bytes(problem, operand).is_none() {
            return Err(InvalidProblem::LayoutOverflows(operand).into());
        }
    }
    for &operand in direction.outputs() {
        if overlaps(&layout(problem, operand), &extent(problem, operand)) {
            return Err(InvalidProblem::LayoutOverlaps(operand).into());
        }
    }
    Ok(())
}

/// Counts along batch, rows, heads and the contiguous dimension.
#[derive(Clone, Copy, Debug)]
pub(super) struct Extent {
    pub batch: u32,
    pub rows: u32,
    pub heads: u32,
    pub dim: u32,
}

pub(super) fn extent(problem: &AttentionProblem, operand: Operand) -> Extent {
    let shape = &problem.shape;
    let batch = shape.batch;
    match operand {
        Operand::Q | Operand::Dq => Extent { batch, rows: shape.seqlen_q, heads: shape.num_heads, dim: shape.head_dim },
        Operand::K | Operand::Dk => {
            Extent { batch, rows: shape.seqlen_kv, heads: shape.num_heads_kv, dim: shape.head_dim }
        }
        Operand::V | Operand::Dv => {
            Extent { batch, rows: shape.seqlen_kv, heads: shape.num_heads_kv, dim: shape.head_dim_v }
        }
        Operand::O | Operand::DO | Operand::OParts => {
            Extent { batch, rows: shape.seqlen_q, heads: shape.num_heads, dim: shape.head_dim_v }
        }
        Operand::Lse | Operand::DLse | Operand::Delta | Operand::LseParts => {
            Extent { batch, rows: shape.seqlen_q, heads: shape.num_heads, dim: 1 }
        }
        Operand::Params | Operand::S | Operand::Dp => Extent { batch: 0, rows: 0, heads: 0, dim: 0 },
    }
}

pub(super) fn layout(problem: &AttentionProblem, operand: Operand) -> TensorLayout {
    let layout = &problem.layout;
    let gradients = problem.gradient_layout_in_force();
    match operand {
        Operand::Q => layout.q,
        Operand::K => layout.k,
        Operand::V => layout.v,
        Operand::O => layout.o,
        Operand::Dq => gradients.q,
        Operand::Dk => gradients.k,
        Operand::Dv => gradients.v,
        Operand::DO => gradients.o,
        // [batch, num_heads, seqlen_q]
        _ => TensorLayout::bhsd(problem.shape.seqlen_q, problem.shape.num_heads, 1),
    }
}

pub(super) fn element_size(problem: &AttentionProblem, operand: Operand) -> u64 {
    match operand {
        Operand::Dq | Operand::Dk | Operand::Dv => problem.gradient_element_in_force().size(),
        operand if operand.holds_elements() => problem.element.size(),
        _ => 4,
    }
}

/// Elements that a tensor's layout spans, or `None` past 2⁶⁴.
pub(super) fn required_len(problem: &AttentionProblem, operand: Operand) -> Option<u64> {
    let Extent { batch, rows, heads, dim } = extent(problem, operand);
    layout(problem, operand).required_len(batch, rows, heads, dim)
}

/// Bytes that a tensor's buffer must hold, whole words, or `None` past 2⁶⁴.
pub(super) fn required_bytes(problem: &AttentionProblem, operand: Operand) -> Option<u64> {
    required_len(problem, operand)?.checked_mul(element_size(problem, operand))?.checked_next_multiple_of(4)
}

/// Whether two elements of a tensor may share one address. Strides are compared from the smallest on: each must step
/// over all that the smaller ones reach. (Interleavings that this refuses though no two elements meet are not used.)
fn overlaps(layout: &TensorLayout, extent: &Extent) -> bool {
    if extent.batch == 0 || extent.rows == 0 || extent.heads == 0 {
        return false;
    }
    let mut steps =
        [(layout.stride_batch, extent.batch), (layout.stride_row, extent.rows), (layout.stride_head, extent.heads)];
    steps.sort_unstable();
    let mut reach = u64::from(extent.dim);
    for (stride, count) in steps {
        if count > 1 {
            if stride < reach {
                return true;
            }
            reach = reach.saturating_add(stride.saturating_mul(u64::from(count - 1)));
        }
    }
    false
}
