use super::block_mask::BlockMask;
use super::entries::EntryLayout;
use super::shape::AttentionShape;
use super::wgsl::MaskWgsl;
use crate::operand::Operand;

/// A mask that hides keys from rows, beside causal and window. See
/// [`AttentionProblem::with_key_mask`](super::AttentionProblem::with_key_mask).
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum KeyMask {
    /// A bit for each entry in the buffer of [`Operand::KeyMask`](crate::Operand::KeyMask): 1 where the row may attend to the key
    /// (PyTorch's meaning), in words of 32 keys, the first in the lowest bit. `offset` and the other strides count words;
    /// `stride_key` counts bits and is 0 or 1. [`EntryLayout::packed_bits`] makes such a layout, and [`pack_bits`] the words.
    ///
    /// They come by [`ForwardSlices::with_key_mask`](crate::ForwardSlices::with_key_mask), or in a buffer by
    /// [`Buffers::with`](crate::Buffers::with).
    Boolean(EntryLayout),
    /// Block-sparse attention: tiles that are not seen are not visited.
    Blocks(BlockMask),
    /// A row sees a key where a function in the caller's own WGSL says so, `mask_mod`. Every tile is visited, whatever it hides:
    /// give causal and windows beside it where they hold.
    Wgsl(MaskWgsl),
}

impl KeyMask {
    /// The name used in WGSL and by the CLI.
    pub const fn name(&self) -> &'static str {
        match self {
            KeyMask::Boolean(_) => "boolean",
            KeyMask::Blocks(mask) => mask.name(),
            KeyMask::Wgsl(_) => "mask_mod",
        }
    }

    /// The operand that its WGSL reads, if it reads one.
    pub(crate) fn reads(&self) -> Option<Operand> {
        match self {
            KeyMask::Boolean(_) => Some(Operand::KeyMask),
            KeyMask::Blocks(_) => Some(Operand::Tables),
            KeyMask::Wgsl(wgsl) => wgsl.reads_aux().then_some(Operand::Aux),
        }
    }

    /// The words that its WGSL reads from [`Operand::Tables`](crate::Operand::Tables).
    pub(crate) fn table(&self, _shape: &AttentionShape) -> Vec<u32> {
        match self {
            // A tensor of the caller's, whose strides are in the uniform.
            KeyMask::Boolean(_) | KeyMask::Wgsl(_) => Vec::new(),
            KeyMask::Blocks(mask) => mask.table(),
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
            KeyMask::Blocks(mask) => mask.fault(shape),
            // Its text was checked when it was made.
            KeyMask::Wgsl(_) => None,
        }
    }
}

/// The words of a [boolean mask](KeyMask::Boolean) from one bool for each entry, in rows of `keys` entries: each row starts a
/// word. The layout is [`EntryLayout::packed_bits`].
///
/// ```
/// use wgpu_flash_attention::pack_bits;
///
/// assert_eq!(pack_bits(&[true, false, true, false, false, true], 3), [0b101, 0b100]);
/// ```
pub fn pack_bits(may_attend: &[bool], keys: u32) -> Vec<u32> {
    let word = |bits: &[bool]| bits.iter().rev().fold(0, |word, bit| word << 1 | u32::from(*bit));
    let rows = may_attend.chunks(keys.max(1) as usize);
    rows.flat_map(|row| row.chunks(32).map(word)).collect()
}
