//! Whether a problem is sound. Nothing else refuses a problem.

use super::direction::Direction;
use super::kernels::Chain;
use super::tensor::{Extent, Tensor};
use crate::error::{Error, InvalidProblem};
use crate::operand::Usage;
use crate::problem::{Algorithm, AttentionProblem, Element, KeyMask, Role, TensorLayout};

/// The largest head_dim and head_dim_v that a kernel exists for.
pub const MAX_HEAD_DIM: u32 = 256;

/// The largest batch, number of heads and length: positions, and sums of a position and a window, stay within i32.
pub const MAX_LENGTH: u32 = 1 << 29;

pub(super) fn check(problem: &AttentionProblem, direction: Direction, tensors: &[Tensor]) -> Result<(), Error> {
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
        ("total_q", problem.total_q().unwrap_or(0)),
        ("total_kv", problem.total_kv().unwrap_or(0)),
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
    check_modifiers(problem)?;
    check_shard(problem)?;
    check_cache(problem, direction)?;
    check_wgsl(problem, direction)?;
    if let Some((name, reason)) = problem.lengths().and_then(|lengths| lengths.fault(&problem.shape)) {
        return Err(InvalidProblem::Lengths { name, reason }.into());
    }
    if problem.max_flops_per_dispatch == Some(0) {
        return Err(InvalidProblem::NoWorkAllowed.into());
    }
    let found = problem.gradient_element();
    if found != problem.element && found != Element::F32 {
        return Err(InvalidProblem::GradientElement { element: problem.element, found }.into());
    }
    if problem.adds_gradients && found != Element::F32 {
        return Err(InvalidProblem::AddedGradients(found).into());
    }
    check_output(problem, direction)?;
    for tensor in tensors.iter().filter(|tensor| tensor.operand.holds_elements()) {
        if tensor.bytes().is_none() {
            return Err(InvalidProblem::LayoutOverflows(tensor.operand).into());
        }
    }
    for tensor in tensors.iter().filter(|tensor| tensor.usage == Usage::Write) {
        if overlaps(&tensor.layout, &tensor.extent) {
            return Err(InvalidProblem::LayoutOverlaps(tensor.operand).into());
        }
    }
    Ok(())
}

/// Whether K and V can be in this cache.
fn check_cache(problem: &AttentionProblem, direction: Direction) -> Result<(), InvalidProblem> {
    let Some(cache) = problem.cache() else { return Ok(()) };
    let shape = &problem.shape;
    let has_no_page = cache.pages.is_some_and(|pages| pages.num_pages == 0) && shape.seqlen_kv > 0;
    let reason = match (direction, problem.algorithm, cache.fault(shape, MAX_LENGTH)) {
        (_, _, Some(reason)) => reason,
        (Direction::Forward, Algorithm::Flash, None) if has_no_page => "it has no pages".into(),
        (Direction::Forward, Algorithm::Flash, None) if problem.total_kv().is_some() => {
            "K and V of a cache are not packed; only Q may be (with_cu_seqlens_q_at_call)".into()
        }
        (Direction::Forward, Algorithm::Flash, None) => return Ok(()),
        (Direction::Forward, _, None) => "standard attention reads none; use Algorithm::Flash".into(),
        (_, _, None) => "only the forward pass reads one".into(),
    };
    Err(InvalidProblem::Cache { reason })
}

/// Whether the problem can be a part of a larger one.
fn check_shard(problem: &AttentionProblem) -> Result<(), InvalidProblem> {
    let Some(shard) = &problem.shard else { return Ok(()) };
    let has_blocks = problem.key_masks().iter().any(|mask| matches!(mask, KeyMask::Blocks(_)));
    let refused = [
        (problem.has_lengths(), "sequences with lengths of their own"),
        (problem.cache().is_some(), "K and V in a cache"),
        (has_blocks, "a block mask"),
    ];
    if let Some((_, what)) = refused.iter().find(|(is_there, _)| *is_there) {
        return Err(InvalidProblem::Shard { reason: format!("{what} cannot be a part of a larger problem yet") });
    }
    let whole = [shard.seqlen_q, shard.seqlen_kv, shard.first_batch, shard.num_heads.unwrap_or(0)];
    let names = ["seqlen_q of the whole", "seqlen_kv of the whole", "first_batch", "num_heads of the whole"];
    if let Some((found, name)) = whole.into_iter().zip(names).find(|(found, _)| *found > MAX_LENGTH) {
        return Err(InvalidProblem::Length { name, found, max: MAX_LENGTH });
    }
    let lengths = [problem.shape.seqlen_q, problem.shape.seqlen_kv];
    shard.fault(problem, lengths).map_or(Ok(()), |reason| Err(InvalidProblem::Shard { reason }))
}

/// Whether O can have its type.
fn check_output(problem: &AttentionProblem, direction: Direction) -> Result<(), InvalidProblem> {
    let (element, found) = (problem.element, problem.output_element());
    let reason = match direction {
        _ if found == element => return Ok(()),
        Direction::Backward => "the backward pass reads O in the type of the inputs",
        _ if found != Element::F32 => "it is stored in the inputs' type or in F32",
        _ => return Ok(()),
    };
    Err(InvalidProblem::OutputElement { element, found, reason })
}

fn check_modifiers(problem: &AttentionProblem) -> Result<(), InvalidProblem> {
    let scores =
        problem.scores().iter().map(|modifier| (modifier.name(), modifier.fault(&problem.shape, problem.element)));
    if let Some((name, reason)) = fault_in(scores, "each modifier of the scores") {
        return Err(InvalidProblem::ScoreMod { name, reason });
    }
    if let Some(mask) = problem.key_masks().get(Chain::LONGEST) {
        let reason = format!("it is one too many; a problem may have {}", Chain::LONGEST);
        return Err(InvalidProblem::KeyMask { name: mask.name(), reason });
    }
    if problem.has_bias_gradient() && problem.bias_gradient().is_none() {
        let reason = "its gradient is asked for, and the problem has no bias".to_owned();
        return Err(InvalidProblem::ScoreMod { name: "bias", reason });
    }
    let masks = problem.key_masks().iter().map(|mask| (mask.name(), mask.fault(&problem.shape)));
    if let Some((name, reason)) = fault_in(masks, "each kind of mask") {
        return Err(InvalidProblem::KeyMask { name, reason });
    }
    Ok(())
}

/// Whether the functions in the caller's own WGSL have what they need.
fn check_wgsl(problem: &AttentionProblem, direction: Direction) -> Result<(), InvalidProblem> {
    let mut readers = problem.snippets().filter_map(|snippet| Some((snippet.role.function(), snippet.aux?)));
    let reason = match (readers.next(), readers.next(), problem.aux_len()) {
        (Some((reader, _)), _, None) => format!("{reader} reads it; say how long it is by AttentionProblem::with_aux"),
        (None, _, Some(_)) => "it is given, and no function in WGSL reads it; leave it out".to_owned(),
        (Some(_), _, Some(0)) => "it has 0 entries; it must have one".to_owned(),
        (Some((one, of_one)), Some((other, of_other)), _) if of_one != of_other => {
            format!("{one} reads {}, {other} reads {}; both must read one type", of_one.name(), of_other.name())
        }
        _ => return check_gradient(problem, direction),
    };
    Err(InvalidProblem::Aux { reason })
}

/// Whether a gradient can be computed, if one is asked for.
fn check_gradient(problem: &AttentionProblem, direction: Direction) -> Result<(), InvalidProblem> {
    let has_no_gradient = problem.snippets().any(|snippet| snippet.role == Role::Score && !snippet.has_gradient);
    if direction == Direction::Backward && has_no_gradient {
        let reason = "gradients need it, and the text of score_mod does not define it; add fn score_mod_grad(grad: f32, score: f32, \
                      batch: u32, head: u32, q_idx: u32, kv_idx: u32) -> f32 to it"
            .into();
        return Err(InvalidProblem::ScoreMod { name: "score_mod_grad", reason });
    }
    Ok(())
}

/// The first of some, given by name and fault, that is given twice or has a fault.
fn fault_in(given: impl Iterator<Item = (&'static str, Option<String>)>, each: &str) -> Option<(&'static str, String)> {
    let mut names = Vec::new();
    for (name, fault) in given {
        let is_second = names.contains(&name);
        names.push(name);
        let twice = is_second.then(|| format!("it is given twice; {each} may be given once"));
        if let Some(reason) = twice.or(fault) {
            return Some((name, reason));
        }
    }
    None
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
