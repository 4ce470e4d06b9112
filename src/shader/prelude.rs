//! The only generated text: `enable` lines and constants.

use super::dialect::Dialect;
use super::unroll::Lists;
use crate::operand::{Operand, Usage};
use crate::plan::{LengthsAtCall, Owns, RowMaxima, RowReduce, Specialization, Storage};
use crate::problem::{CacheElement, Role};
use std::fmt::Display;

/// The prelude of a kernel, and the lists that its text unrolls over.
pub(super) fn prelude(specialization: &Specialization, dialect: Dialect) -> (String, Lists) {
    let kernel = specialization.kernel.spec();
    let tiles = specialization.tiles;
    let counts = kernel.counts(specialization);
    let mut text = enables(specialization, dialect);
    for (operand, _) in specialization.operands() {
        constant(&mut text, &format!("BINDING_{}", operand.name()), format_args!("{}u", operand.binding()));
    }
    if let Some(sums) = kernel.row_sums {
        text += &format!("alias Partial = vec{sums}<f32>;\n");
        constant(&mut text, "PARTIALS", format_args!("{}u", tiles.thread_rows * tiles.key_quads()));
    }
    if specialization.cached.is_paged {
        constant(&mut text, "PAGES_ARE_QUADS", specialization.cached.pages_are_quads);
    }
    if kernel.on_matrices {
        constant(&mut text, "IN_LOCKSTEP", specialization.in_lockstep);
    }
    for (name, count) in &counts {
        constant(&mut text, name, format_args!("{count}u"));
    }
    constant(&mut text, "HAS_WINDOW", specialization.has_window);
    constant(&mut text, "HAS_KEY_MASKS", !specialization.key_masks.is_empty());
    let is_alibi = specialization.score_mods.names().any(|name| name == "alibi");
    // ALiBi takes from a score what its key is far from the diagonal.
    constant(&mut text, "NEAREST_FIRST", is_alibi && !specialization.has_lists);
    for snippet in specialization.wgsl.snippets() {
        let name = match snippet.role {
            Role::Score => "SCORE_TURNS",
            Role::Mask => "MASK_TURNS",
        };
        constant(&mut text, name, format_args!("{}u", snippet.max_turns));
    }
    // Tiles of packed sequences end where these do.
    constant(&mut text, "HAS_LENGTHS", specialization.has_lengths && !specialization.packed_kv);
    constant(&mut text, "HAS_DROPOUT", specialization.has_dropout);
    constant(&mut text, "HAS_SCORE_MODS", !specialization.score_mods.is_empty());
    for (name, index) in specialization.tables() {
        constant(&mut text, &format!("TABLE_{name}"), format_args!("{index}u"));
    }

    let mut lists = tensor_lists(specialization);
    counts.into_iter().for_each(|(name, count)| lists.count(name, count));
    (text, lists)
}

fn constant(text: &mut String, name: &str, value: impl Display) {
    *text += &format!("const {name} = {value};\n");
}

/// What must stand before all else, and the types of matrices.
fn enables(specialization: &Specialization, dialect: Dialect) -> String {
    let mut text = String::new();
    let matrix_side = specialization.tiles.matrix_side;
    if specialization.storage == Storage::F16 || matrix_side.is_some() {
        text += "enable f16;\n";
    }
    // naga knows subgroup operations without the line and refuses it; Tint insists on it.
    if specialization.row_reduce == RowReduce::Subgroup && dialect == Dialect::Tint {
        text += "enable subgroups;\n";
    }
    if let Some(side) = matrix_side {
        text += "enable wgpu_cooperative_matrix;\n";
        for (name, scalar) in [("A", "f16"), ("B", "f16"), ("C", "f32")] {
            text += &format!("alias Matrix{name} = coop_mat{side}x{side}<{scalar}, {name}>;\n");
        }
    }
    text
}

/// Lists of names.
fn tensor_lists(specialization: &Specialization) -> Lists {
    let kernel = specialization.kernel.spec();
    let tensors = |usage: Usage, in_f32: bool| {
        let is_part = |operand| operand == Operand::OParts && usage == Usage::Read && !specialization.parts_in_f32;
        let in_element = |operand: Operand| operand.holds_elements() || is_part(operand);
        let stored_in_f32 = |operand: Operand| {
            specialization.f32_gradients && operand.is_gradient() || specialization.f32_output && operand == Operand::O
        };
        let operands = kernel.operands.iter();
        operands
            .filter(|&&(operand, used)| used == usage && in_element(operand) && stored_in_f32(operand) == in_f32)
            .map(|(operand, _)| operand.name())
            .collect::<Vec<_>>()
    };
    let mut lists = Lists::default();
    // The number of steps in which the lanes of a row sum. Each step is between lanes twice as far apart.
    lists.count("LANE_STEPS", specialization.tiles.lanes.trailing_zeros());
    // Parameters of the entry point, not members of a struct: naga 30 forgets these builtins there when it writes HLSL.
    lists.names(
        "INVOCATION_BUILTINS",
        match specialization.row_reduce {
            RowReduce::Subgroup => vec!["subgroup_id", "subgroup_size", "subgroup_invocation_id"],
            RowReduce::Alone | RowReduce::Workgroup => vec!["local_invocation_index"],
        },
    );
    // K and V in a cache of another type are loaded by text of their own.
    let is_cached = |name: &&str| specialization.cached.element.is_some() && ["k", "v"].contains(name);
    let (caches, inputs): (Vec<_>, Vec<_>) = tensors(Usage::Read, false).into_iter().partition(is_cached);
    lists.names("INPUTS", inputs);
    lists_of_caches(&mut lists, specialization, caches);
    lists.names("OUTPUTS", tensors(Usage::Write, false));
    lists.names("F32_OUTPUTS", tensors(Usage::Write, true));
    // Empty for kernels that own a tensor of the other width alone.
    lists.names("OWNED_V", vec![]);
    lists.names("GRADIENT_V", vec![]);
    for &(list, name) in kernel.names {
        lists.names(list, vec![name]);
    }
    // What f16 leaves of an element passes as a second part.
    let has_rest = specialization.storage.matrix_parts() > 1;
    lists.names("REST_PARTS", if has_rest { vec!["rest"] } else { vec![] });
    lists.names("PARTS", if has_rest { vec!["half", "rest"] } else { vec!["half"] });
    let (is_lazy, is_early, takes_first) = match specialization.row_maxima() {
        RowMaxima::Eager { is_early } => (false, is_early, false),
        RowMaxima::Lazy { takes_first } => (true, false, takes_first),
    };
    lists.names("EAGER_MAXIMA", if is_lazy { vec![] } else { vec!["eager"] });
    lists.names("EARLY_MAXIMA", if is_early { vec!["early"] } else { vec![] });
    lists.names("LATE_MAXIMA", if is_lazy || is_early { vec![] } else { vec!["late"] });
    lists.names("LATE_VOTES", if is_early { vec![] } else { vec!["late"] });
    lists.names("LAZY_MAXIMA", if is_lazy { vec!["lazy"] } else { vec![] });
    lists.names("CARRIED_NUMBERS", if is_lazy && !takes_first { vec!["carried"] } else { vec![] });
    lists.names("COUNTED_NUMBERS", if takes_first { vec!["counted"] } else { vec![] });
    lists.names("LAST_STEPS", if takes_first { vec!["take", "place"] } else { vec!["place", "take"] });
    // Tensors are as wide as K (Q, K and their gradients) or as V (V, O and theirs).
    lists.names("WIDTHS", vec!["K", "V"]);
    lists.names("V_THEN_K", vec!["V", "K"]);
    lists.names("SCORE_MODS", specialization.score_mods.names().collect());
    lists.names("KEY_MASKS", specialization.key_masks.names().collect());
    // The gradient of a bias goes back no further than to the bias.
    let ends_at_bias = kernel.binds(Operand::DBias) || kernel.binds(Operand::DBiasSums);
    let back = specialization.score_mods.names().rev().take_while(|name| !ends_at_bias || *name != "bias");
    lists.names("SCORE_MODS_BACK", back.collect());
    // The same for scores that are modified, and for those that are not.
    let is_modified = !specialization.score_mods.is_empty();
    lists.names("MODIFIED_SCORES", if is_modified { vec!["modified"] } else { vec![] });
    lists.names("LONG_SUMS", if specialization.has_long_sums { vec!["long"] } else { vec![] });
    lists.names("PLAIN_SCORES", if is_modified { vec![] } else { vec!["plain"] });
    lists_of_lengths(&mut lists, specialization.lengths_at_call);
    lists_of_sequences(&mut lists, specialization);
    lists_of_places(&mut lists, specialization);
    let walked = match kernel.owns {
        Owns::Keys => vec!["q", "d_o"],
        _ => vec!["k", "v"],
    };
    lists.names("WALKED", walked);
    lists.names("SEEN_LOOPS", if specialization.masked_loop { vec!["whole", "partial"] } else { vec!["any"] });
    // Loops over the first tile, over those that all rows see whole, and over the others.
    lists.names("FIRST_WHOLE_AND_PARTIAL", vec!["first", "whole", "partial"]);
    lists
}

/// How K and V are loaded, and Q beside them.
fn lists_of_caches(lists: &mut Lists, specialization: &Specialization, caches: Vec<&'static str>) {
    let &Specialization { ref cached, packed_q, packed_kv, .. } = specialization;
    lists.names("CACHES", caches);
    let is_own = cached.element.is_some();
    lists.names("LOADED_ROW", vec![if is_own { "LoadedRow" } else { "Loaded" }]);
    // Where rows have scales, sums take them instead of elements.
    let is_scaled = cached.element == Some(CacheElement::Int8);
    lists.names("SCALED_ROWS", if is_scaled { vec!["scaled"] } else { vec![] });
    lists.names("DECODE_CACHED", vec![if is_scaled { "decode_bytes" } else { "decode" }]);
    lists.names("DECODE_ROW", vec![if is_own { "decode_row" } else { "decode" }]);
    // Where keys lie in pages, their place is looked up first.
    lists.names("PLACES_OF_KEYS", if cached.is_paged { vec!["place"] } else { vec![] });
    lists.names("ROWS_IN_ORDER", if cached.is_paged { vec![] } else { vec!["rows"] });
    let page = match packed_kv {
        _ if cached.is_paged => "place.page",
        true => "tile.sequence.at_k",
        false => "tile.batch",
    };
    let row = match packed_q {
        _ if cached.is_paged => "place.row",
        true => "min(key, tile.sequence.seqlen_kv - 1u)",
        false => "min(key, params.seqlen_kv - 1u)",
    };
    lists.names("PAGE_OF_KEY", vec![page]);
    lists.names("ROW_OF_KEY", vec![row]);
}

/// The sides of the score matrix whose lengths come at the call, and the buffers that say them.
fn lists_of_lengths(lists: &mut Lists, given: LengthsAtCall) {
    let listed = |is_given: bool, name: &'static str| if is_given { vec![name] } else { vec![] };
    let mut sides = listed(given.seqlens_q || given.cu_seqlens_q, "q");
    sides.extend(listed(given.seqlens_kv || given.cu_seqlens_kv, "kv"));
    lists.names("SIDES_AT_CALL", sides);
    lists.names("SEQLENS_q", listed(given.seqlens_q, "seqlens_q"));
    lists.names("SEQLENS_kv", listed(given.seqlens_kv, "seqlens_kv"));
    lists.names("SUMS_q", listed(given.cu_seqlens_q, "cu_seqlens_q"));
    lists.names("SUMS_kv", listed(given.cu_seqlens_kv, "cu_seqlens_kv"));
}

/// Where a row, four keys and a head stand in the whole problem: as they do in this one, or in a larger one. Then the same for
/// the caller's own functions.
fn lists_of_places(lists: &mut Lists, specialization: &Specialization) {
    let has_place = specialization.has_place;
    let mut either = |list, here, in_larger| lists.names(list, vec![if has_place { in_larger } else { here }]);
    either("WHOLE_ROW", "i", "params.first_row + i");
    either("WHOLE_QUAD", "key / 4u", "params.first_key / 4u + key / 4u");
    either(
        "WHOLE_HEAD",
        "batch * params.num_heads + head",
        "(params.first_batch + batch) * params.num_heads + params.first_head + head",
    );
    either("WGSL_BATCH", "cell.batch", "params.first_batch + cell.batch");
    either("WGSL_HEAD", "cell.head", "params.first_head + cell.head");
    // Over a cache a row is told as its position.
    let row = match specialization.wgsl.by_position {
        true => "u32(max(position_of(cell.batch, min(cell.i, params.seqlen_q - 1u)), 0))",
        false => "min(cell.i, params.seqlen_q - 1u)",
    };
    either("WGSL_ROW", row, "params.first_row + min(cell.i, params.seqlen_q - 1u)");
    either(
        "WGSL_KEY",
        "min(cell.key + score, params.seqlen_kv - 1u)",
        "params.first_key + min(cell.key + score, params.seqlen_kv - 1u)",
    );
}

/// What says how many rows and keys there are, and the number of a sequence in the tensors: those of the call, or of a sequence
/// that is packed with others.
fn lists_of_sequences(lists: &mut Lists, specialization: &Specialization) {
    let &Specialization { packed_q, packed_kv, .. } = specialization;
    let writes_parts =
        specialization.operands().any(|(operand, usage)| (operand, usage) == (Operand::OParts, Usage::Write));
    let of_sequence = |dense: &'static str, packed: &'static str| vec![if packed_q { packed } else { dense }];
    lists.names("PACKED_SEQUENCES", if packed_q { vec!["packed"] } else { vec![] });
    lists.names("DENSE_SEQUENCES", if packed_q { vec![] } else { vec!["dense"] });
    let are_parts = writes_parts && specialization.has_lengths;
    lists.names("PARTS_OF_SEQUENCES", if are_parts { vec!["part"] } else { vec![] });
    lists.names("EXTENT_OF_TILE", of_sequence("params", "tile.sequence"));
    lists.names("EXTENT_OF_SHARE", of_sequence("params", "share.sequence"));
    lists.names("EXTENT_OF_SEQUENCE", of_sequence("params", "sequence"));
    lists.names("ROWS_OF_GROUP", of_sequence("packed_rows()", "packed_rows_of(tile)"));
    lists.names("AT_Q", of_sequence("batch", "sequence.at_q"));
    lists.names("AT_K", vec![if packed_kv { "sequence.at_k" } else { "batch" }]);
    lists.names("AT_O", if writes_parts { vec!["batch"] } else { of_sequence("batch", "sequence.at_q") });
}
