//! The files that make up a kernel's text.

use crate::operand::Operand;
use crate::plan::{
    Access, File, Kernel, Piece, RowMaxima, RowPlace, RowReduce, RowTarget, Slot, Specialization, Storage, matrix_wgsl,
    wgsl,
};
use crate::problem::{AuxType, CacheElement, Element, RotaryPairs};

/// The files of all kernels.
const OF_ALL: [File; 3] = [wgsl!("common/params.wgsl"), wgsl!("common/mask.wgsl"), wgsl!("common/block_range.wgsl")];

/// The files of the slots `score` and `mask`, each by the name of what it does.
const CHAINED: &[File] = &[
    wgsl!("slots/mask/blocks.wgsl"),
    wgsl!("slots/mask/boolean.wgsl"),
    wgsl!("slots/mask/documents.wgsl"),
    wgsl!("slots/mask/longformer.wgsl"),
    wgsl!("slots/mask/prefix.wgsl"),
    wgsl!("slots/mask/strided.wgsl"),
    wgsl!("slots/mask/mask_mod.wgsl"),
    wgsl!("slots/score/alibi.wgsl"),
    wgsl!("slots/score/bias.wgsl"),
    wgsl!("slots/score/score_mod.wgsl"),
    wgsl!("slots/score/softcap.wgsl"),
];

/// The files of a kernel, in their order: those of all kernels, what it has in common with some, what it has of slots, and
/// its own.
pub(super) fn files_of(specialization: &Specialization) -> Vec<File> {
    let kernel = specialization.kernel.spec();
    let mut files = OF_ALL.to_vec();
    files.push(match specialization.has_lengths {
        true if specialization.packed_q => wgsl!("slots/lengths/packed.wgsl"),
        true => wgsl!("slots/lengths/own.wgsl"),
        false => wgsl!("slots/lengths/whole.wgsl"),
    });
    files.extend(kernel.text.iter().filter_map(|piece| match piece {
        Piece::Common(file) => Some(*file),
        Piece::OneOf(slot) => slot.file(specialization),
    }));
    files.extend(chain_files(specialization));
    files.push(kernel.file);
    files
}

/// What a kernel needs to modify scores and to hide keys, if it does.
fn chain_files(specialization: &Specialization) -> impl Iterator<Item = File> {
    let &Specialization { score_mods, key_masks, bias_element, .. } = specialization;
    let scores = (!score_mods.is_empty()).then_some(wgsl!("common/scores.wgsl"));
    let added = bias_element.filter(|_| score_mods.reads(Operand::Bias));
    let entries = added.map_or_else(Vec::new, |element| bias_files(element, specialization.bias_in_quads));
    let writes_tables = specialization.kernel.spec().binds(Operand::Tables);
    let has_tables = !writes_tables && specialization.operands().any(|(operand, _)| operand == Operand::Tables);
    let tables = has_tables.then_some(wgsl!("common/tables.wgsl"));
    let is_capped = score_mods.names().any(|name| name == "softcap");
    let tanh = is_capped.then_some(match specialization.storage {
        Storage::F32 => wgsl!("slots/tanh/exact.wgsl"),
        Storage::F16 | Storage::F16Packed | Storage::Bf16 => wgsl!("slots/tanh/close.wgsl"),
    });
    let of_positions = ["documents", "longformer", "prefix", "strided"];
    let asks_positions = specialization.wgsl.by_position || key_masks.names().any(|name| of_positions.contains(&name));
    let positions = asks_positions.then_some(wgsl!("common/position.wgsl"));
    let sink = specialization.has_sink.then_some(wgsl!("common/sink.wgsl"));
    let modifiers = score_mods.names().filter_map(|name| chained("score", name)).collect::<Vec<_>>();
    let masks = key_masks.names().filter_map(|name| chained("mask", name)).collect::<Vec<_>>();
    let files = scores
        .into_iter()
        .chain(tables)
        .chain(positions)
        .chain(entries)
        .chain(tanh)
        .chain(modifiers)
        .chain(masks)
        .chain(sink);
    files.chain(wgsl_files(specialization))
}

/// How a bias is read.
fn bias_files(element: Element, in_quads: bool) -> Vec<File> {
    let entry = match (element, in_quads) {
        (Element::F32, true) => return vec![wgsl!("slots/bias_quad/f32.wgsl")],
        (Element::F16, true) => return vec![wgsl!("slots/bias_quad/f16.wgsl")],
        (Element::Bf16, true) => return vec![wgsl!("slots/bias_quad/bf16.wgsl")],
        (Element::F32, false) => wgsl!("slots/bias_element/f32.wgsl"),
        (Element::F16, false) => wgsl!("slots/bias_element/f16.wgsl"),
        (Element::Bf16, false) => wgsl!("slots/bias_element/bf16.wgsl"),
    };
    vec![wgsl!("common/bias_entries.wgsl"), entry]
}

/// What stands around functions in the caller's own WGSL.
fn wgsl_files(specialization: &Specialization) -> impl Iterator<Item = File> {
    let own = &specialization.wgsl;
    let common = specialization.has_own_wgsl().then_some(wgsl!("common/wgsl.wgsl"));
    let gradient = own.score.as_ref().map(|snippet| match snippet.has_gradient {
        true => wgsl!("slots/score_mod_grad/own.wgsl"),
        false => wgsl!("slots/score_mod_grad/none.wgsl"),
    });
    let aux = own.snippets().find_map(|snippet| snippet.aux).map(|aux| match aux {
        AuxType::F32 => wgsl!("slots/aux_data/f32.wgsl"),
        AuxType::U32 => wgsl!("slots/aux_data/u32.wgsl"),
    });
    common.into_iter().chain(gradient).chain(aux)
}

/// The file of a slot with this name.
fn chained(slot: &str, name: &str) -> Option<File> {
    CHAINED.iter().find(|file| file.name == format!("slots/{slot}/{name}.wgsl")).copied()
}

/// How an entry of a bias in 16 bits is encoded.
fn bias_half(element: Option<Element>) -> File {
    match element {
        Some(Element::Bf16) => wgsl!("slots/element/bf16.wgsl"),
        _ => wgsl!("slots/element/f16_packed.wgsl"),
    }
}

impl Slot {
    /// The one of its files that K and V in a cache need, if they need one.
    fn file_of_cache(self, specialization: &Specialization) -> Option<File> {
        let (cached, is_quad) = (&specialization.cached, specialization.access == Access::Quad);
        Some(match (self, cached.element) {
            (Slot::KeyPlace, _) if cached.is_paged => wgsl!("slots/key_place/paged.wgsl"),
            (Slot::CachedHalf, Some(CacheElement::F16)) => wgsl!("slots/cached_half/f16.wgsl"),
            (Slot::CachedHalf, Some(CacheElement::Bf16)) => wgsl!("slots/cached_half/bf16.wgsl"),
            (Slot::CachedElement, Some(element)) => match (element, is_quad) {
                (CacheElement::F32, true) => wgsl!("slots/cached_element/f32_quad.wgsl"),
                (CacheElement::F32, false) => wgsl!("slots/cached_element/f32_single.wgsl"),
                (CacheElement::F16 | CacheElement::Bf16, true) => wgsl!("slots/cached_element/half_quad.wgsl"),
                (CacheElement::F16 | CacheElement::Bf16, false) => wgsl!("slots/cached_element/half_single.wgsl"),
                (CacheElement::Int8, _) => wgsl!("slots/cached_element/int8.wgsl"),
            },
            _ => return None,
        })
    }

    /// The one of its files that an append needs, if it needs one.
    fn file_of_append(self, specialization: &Specialization) -> Option<File> {
        let append = specialization.append?;
        Some(match self {
            Slot::CacheSeqlens if append.reads_seqlens() => wgsl!("common/cache_seqlens.wgsl"),
            Slot::Tokens if append.packed => wgsl!("slots/tokens/packed.wgsl"),
            Slot::Tokens => wgsl!("slots/tokens/even.wgsl"),
            Slot::RowSource => match specialization.storage {
                Storage::F32 => wgsl!("slots/row_source/f32.wgsl"),
                Storage::F16 | Storage::F16Packed => wgsl!("slots/row_source/f16.wgsl"),
                Storage::Bf16 => wgsl!("slots/row_source/bf16.wgsl"),
            },
            Slot::RowWords if specialization.kernel == Kernel::RotateQInPlace => wgsl!("slots/row_words/in_place.wgsl"),
            Slot::RowWords => wgsl!("slots/row_words/apart.wgsl"),
            Slot::RotaryPairs => match append.rotary?.0 {
                RotaryPairs::Interleaved => wgsl!("slots/rotary_pairs/interleaved.wgsl"),
                RotaryPairs::Halves => wgsl!("slots/rotary_pairs/halves.wgsl"),
            },
            Slot::Angles => match append.rotary.map(|_| append.of_positions)? {
                true => wgsl!("slots/angles/positions.wgsl"),
                false => wgsl!("slots/angles/tokens.wgsl"),
            },
            Slot::Rotated if append.rotary.is_some() => wgsl!("slots/rotated/tables.wgsl"),
            Slot::Rotated => wgsl!("slots/rotated/none.wgsl"),
            Slot::TargetElement => match append.element {
                CacheElement::F16 => wgsl!("slots/target_element/f16.wgsl"),
                CacheElement::Bf16 => wgsl!("slots/target_element/bf16.wgsl"),
                CacheElement::F32 | CacheElement::Int8 => return None,
            },
            Slot::RowTarget => match append.target {
                RowTarget::F32 => wgsl!("slots/row_target/f32.wgsl"),
                RowTarget::Pairs => wgsl!("slots/row_target/pairs.wgsl"),
                RowTarget::Halves => wgsl!("slots/row_target/halves.wgsl"),
                RowTarget::Int8 => wgsl!("slots/row_target/int8.wgsl"),
            },
            Slot::RowPlace => match append.place {
                RowPlace::Rows => wgsl!("slots/row_place/rows.wgsl"),
                RowPlace::Contiguous => wgsl!("slots/row_place/contiguous.wgsl"),
                RowPlace::Paged => wgsl!("slots/row_place/paged.wgsl"),
                RowPlace::Slots => wgsl!("slots/row_place/slots.wgsl"),
            },
            _ => return None,
        })
    }

    /// The one of its files that a specialization needs, if it needs one.
    fn file(self, specialization: &Specialization) -> Option<File> {
        let Specialization { kernel, storage, access, .. } = *specialization;
        Some(match self {
            Slot::Element => match storage {
                Storage::F32 => wgsl!("slots/element/f32.wgsl"),
                Storage::F16 => wgsl!("slots/element/f16.wgsl"),
                Storage::F16Packed => wgsl!("slots/element/f16_packed.wgsl"),
                Storage::Bf16 => wgsl!("slots/element/bf16.wgsl"),
            },
            Slot::Access => match (access, storage) {
                (Access::Quad, _) => wgsl!("slots/access/quad.wgsl"),
                (Access::Single, Storage::F32 | Storage::F16) => wgsl!("slots/access/single.wgsl"),
                (Access::Single, Storage::F16Packed | Storage::Bf16) => wgsl!("slots/access/half_word.wgsl"),
            },
            Slot::BiasHalf => bias_half(specialization.bias_element),
            Slot::F32Store => match access {
                _ if !specialization.f32_gradients && !specialization.f32_output => return None,
                Access::Quad if specialization.adds_gradients => wgsl!("slots/f32_store/quad_added.wgsl"),
                Access::Single if specialization.adds_gradients => wgsl!("slots/f32_store/single_added.wgsl"),
                Access::Quad => wgsl!("slots/f32_store/quad.wgsl"),
                Access::Single => wgsl!("slots/f32_store/single.wgsl"),
            },
            Slot::RowEnd if specialization.has_sink => wgsl!("slots/row_end/sink.wgsl"),
            Slot::RowEnd => wgsl!("slots/row_end/plain.wgsl"),
            Slot::RowReduce => match specialization.row_reduce {
                RowReduce::Alone => wgsl!("slots/row_reduce/alone.wgsl"),
                RowReduce::Workgroup => wgsl!("slots/row_reduce/workgroup.wgsl"),
                RowReduce::Subgroup => wgsl!("slots/row_reduce/subgroup.wgsl"),
            },
            Slot::Keep if specialization.has_dropout => wgsl!("slots/keep/philox.wgsl"),
            Slot::Keep => wgsl!("slots/keep/all.wgsl"),
            Slot::Output if kernel.spec().binds(Operand::OParts) => wgsl!("slots/output/partial.wgsl"),
            Slot::Output => wgsl!("slots/output/whole.wgsl"),
            Slot::Parts if specialization.parts_in_f32 => wgsl!("slots/parts/f32.wgsl"),
            Slot::Parts => wgsl!("slots/parts/element.wgsl"),
            Slot::TileRead => match specialization.tiles.broadcast {
                1 => wgsl!("slots/tile_read/own.wgsl"),
                _ => wgsl!("slots/tile_read/broadcast.wgsl"),
            },
            Slot::Visits if specialization.has_lists => wgsl!("slots/visits/blocks.wgsl"),
            Slot::Visits => wgsl!("slots/visits/range.wgsl"),
            Slot::MatrixOperand => match (storage, access) {
                (Storage::F16, Access::Quad) => matrix_wgsl!("slots/matrix_operand/stored.wgsl"),
                (Storage::F32, _) => matrix_wgsl!("slots/matrix_operand/split.wgsl"),
                _ => matrix_wgsl!("slots/matrix_operand/converted.wgsl"),
            },
            Slot::MatrixParts => match storage.matrix_parts() {
                1 => matrix_wgsl!("slots/matrix_parts/one.wgsl"),
                _ => matrix_wgsl!("slots/matrix_parts/two.wgsl"),
            },
            Slot::RowMax => match specialization.row_maxima() {
                RowMaxima::Eager { .. } => return None,
                RowMaxima::Lazy { .. } => matrix_wgsl!("slots/row_max/lazy.wgsl"),
            },
            Slot::RowUnits if storage.has_row_units() => matrix_wgsl!("slots/row_units/own.wgsl"),
            Slot::RowUnits => matrix_wgsl!("slots/row_units/one.wgsl"),
            Slot::CachedElement | Slot::CachedHalf | Slot::KeyPlace => return self.file_of_cache(specialization),
            Slot::Angles
            | Slot::CacheSeqlens
            | Slot::RotaryPairs
            | Slot::Rotated
            | Slot::RowPlace
            | Slot::RowSource
            | Slot::RowTarget
            | Slot::RowWords
            | Slot::TargetElement
            | Slot::Tokens => return self.file_of_append(specialization),
        })
    }
}
