//! The problem of a part.

use crate::entries::Entries;
use crate::error::Error;
use wgpu_flash_attention::{
    AttentionLayout, AttentionProblem, AttentionShape, Error as AttentionError, InvalidProblem, KeyMask, MAX_LENGTH,
    Operand, ScoreMod,
};

/// The whole in another shape, bshd: with these entries, which have room for so many rows and keys, and with slopes of ALiBi as
/// `slopes` makes them. Without a sink, and without the gradient of a bias: who wants them adds them.
pub(crate) fn recut(
    whole: &AttentionProblem,
    shape: AttentionShape,
    (all, [rows, keys]): (&[Entries], [u32; 2]),
    slopes: impl Fn(&[f32]) -> Vec<f32>,
) -> AttentionProblem {
    let layout_of = |operand| all.iter().find(|of| of.operand == operand).map(|entries| entries.layout(rows, keys));
    let score = |modifier: &ScoreMod| match (modifier, layout_of(Operand::Bias)) {
        (ScoreMod::Alibi(all), _) => ScoreMod::Alibi(slopes(all)),
        (ScoreMod::Bias { element, .. }, Some(layout)) => ScoreMod::Bias { layout, element: *element },
        _ => modifier.clone(),
    };
    let mask = |mask: &KeyMask| match (mask, layout_of(Operand::KeyMask)) {
        (KeyMask::Boolean(_), Some(layout)) => KeyMask::Boolean(layout),
        _ => mask.clone(),
    };
    let mut part = AttentionProblem::new(shape).with_element(whole.element).with_softmax_scale(whole.softmax_scale());
    (part.mask, part.dropout, part.algorithm) = (whole.mask, whole.dropout, whole.algorithm);
    part.max_flops_per_dispatch = whole.max_flops_per_dispatch;
    let part = whole.scores().iter().fold(part, |part, modifier| part.with_score(score(modifier)));
    whole.key_masks().iter().fold(part, |part, of_keys| part.with_key_mask(mask(of_keys)))
}

/// Refuses problems whose parts need more than positions and entries, and lengths that no problem has: arithmetic on the others
/// stays within its numbers.
pub(crate) fn refuse(whole: &AttentionProblem) -> Result<(), Error> {
    let AttentionShape { batch, num_heads, num_heads_kv, seqlen_q, seqlen_kv, .. } = whole.shape;
    for (name, found) in [
        ("batch", batch),
        ("num_heads", num_heads),
        ("num_heads_kv", num_heads_kv),
        ("seqlen_q", seqlen_q),
        ("seqlen_kv", seqlen_kv),
    ] {
        if found > MAX_LENGTH {
            return Err(AttentionError::from(InvalidProblem::Length { name, found, max: MAX_LENGTH }).into());
        }
    }
    let is_dense = whole.layout == AttentionLayout::bshd(&whole.shape) && whole.gradient_layout.is_none();
    let refused = [
        (whole.has_lengths(), "sequences with lengths of their own"),
        (whole.cache().is_some(), "K and V in a cache"),
        (whole.key_masks().iter().any(|mask| matches!(mask, KeyMask::Blocks(_))), "a block mask"),
        (whole.aux_len().is_some(), "data for own WGSL"),
        (!is_dense, "layouts other than bshd"),
        (whole.shard.is_some(), "a problem that is a part of another"),
    ];
    let Some((_, what)) = refused.into_iter().find(|(is_there, _)| *is_there) else { return Ok(()) };
    Err(Error::Unsupported { what, reason: "ranks do not cut it; one device does all of such a problem".into() })
}
