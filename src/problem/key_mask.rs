use super::entries::EntryLayout;
use super::shape::AttentionShape;
use crate::operand::Operand;

/// A mask that hides keys from rows, beside causal and window. See
/// [`AttentionProblem::with_key_mask`](super::AttentionProblem::with_key_mask).
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum KeyMask {
    /// A bit for each entry in the buffer of [`Operand::KeyMask`](crate::Operand::KeyMask): 1 where the row may attend to the key
    /// (PyTorch's meaning), in words of 32 keys, the first in the lowest bit. In the layout all but `stride_key`, which is 0 or
    /// 1, counts words: [`EntryLayout::packed_bits`].
    Boolean(EntryLayout),
}

impl KeyMask {
    /// The name used in WGSL and by the CLI.
    pub const fn name(&self) -> &'static str {
        match self {
            KeyMask::Boolean(_) => "boolean",
        }
    }

    /// The operand that its WGSL reads, if it reads one.
    pub(crate) const fn reads(&self) -> Option<Operand> {
        match self {
            KeyMask::Boolean(_) => Some(Operand::KeyMask),
        }
    }

    /// What makes it no mask for a problem of this shape, if anything does.
    pub(crate) fn fault(&self, shape: &AttentionShape) -> Option<String> {
        match self {
            KeyMask::Boolean(layout) if layout.stride_key > 1 => Some(format!(
                "stride_key is {}; bits of neighbouring keys are neighbours, or all keys have one",
                layout.stride_key
            )),
            KeyMask::Boolean(layout) => layout.fault(shape),
        }
    }
}
