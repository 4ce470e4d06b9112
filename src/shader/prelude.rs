//! The only generated text: `enable` lines and constants.

use super::Dialect;
use super::unroll::Lists;
use crate::operand::{Operand, Usage};
use crate::plan::{COMBINE_INVOCATIONS, Kernel, RowReduce, SOFTMAX_INVOCATIONS, Specialization, Storage};
use std::fmt::Write;

pub(super) fn prelude(specialization: &Specialization, dialect: Dialect) -> (String, Lists) {
    let tiles = specialization.tiles;
    let Specialization { head_dim, head_dim_v, .. } = *specialization;
    let mut text = String::new();
    let mut line = |arguments: std::fmt::Arguments| {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{arguments}");
    };
    if specialization.storage == Storage::F16 || tiles.matrix_side.is_some() {
        line(format_args!("enable f16;"));
    }
    // naga knows subgroup operations without the line and refuses it; Tint insists on it.
    if specialization.row_reduce == RowReduce::Subgroup && dialect == Dialect::Tint {
        line(format_args!("enable subgroups;"));
    }
    if let Some(side) = tiles.matrix_side {
        line(format_args!("enable wgpu_cooperative_matrix;"));
        for (name, scalar) in [("A", "f16"), ("B", "f16"), ("C", "f32")] {
            line(format_args!("alias Matrix{name} = coop_mat{side}x{side}<{scalar}, {name}>;"));
        }
    }
    for operand in Operand::ALL {
        line(format_args!("const BINDING_{} = {}u;", operand.name(), operand.binding()));
    }
    let invocations = tiles.invocations_of(specialization.kernel);
    if specialization.kernel.reduces_rows() {
        // What the lanes of a row sum: the forward four scores, the backward S and dP.
        let size = match specialization.kernel {
            Kernel::FlashBackwardPreprocess | Kernel::FlashBackwardDkdv | Kernel::FlashBackwardDq => 2,
            _ => 4,
        };
        line(format_args!("alias Partial = vec{size}<f32>;"));
        line(format_args!("const PARTIALS = {}u;", tiles.thread_rows * tiles.key_quads()));
    }
    let mut counts = vec![
        ("TILE_Q", tiles.tile_q),
        ("TILE_KV", tiles.tile_kv),
        ("THREAD_ROWS", tiles.thread_rows),
        ("LANES", tiles.lanes),
        ("ROW_LANES", invocations / tiles.lanes),
        ("HEAD_DIM", head_dim),
        ("HEAD_DIM_V", head_dim_v),
    ];
    // On matrices: lanes that fetch a row of the walked tile together. Where they find the row's unit, they are a power of
    // two.
    let fetch_lanes = |quads: u32| match specialization.storage.has_row_units() {
        true => quads.next_power_of_two().min(tiles.lanes),
        false => quads,
    };
    // Quads in a row of a K and of a V tile, or of the chunks of them that standard attention holds at a time.
    let (k_quads, v_quads) = match specialization.kernel {
        Kernel::FlashForward | Kernel::FlashForwardSplit | Kernel::FlashDecode | Kernel::FlashDecodeSplit => {
            let (k_quads, v_quads) = (tiles.quads(head_dim), tiles.quads(head_dim_v));
            counts.extend([("K_QUADS", k_quads), ("V_QUADS", v_quads), ("KEYS", 4)]);
            let (k_loads, v_loads) = (k_quads / tiles.broadcast, v_quads / tiles.broadcast);
            counts.extend([("BROADCAST", tiles.broadcast), ("K_LOADS", k_loads), ("V_LOADS", v_loads)]);
            counts.extend([("KEY_LANES", tiles.key_lanes), ("GROUP_QUADS", tiles.key_quads())]);
            (tiles.lanes * k_quads, tiles.lanes * v_quads)
        }
        Kernel::FlashBackwardPreprocess => (0, 0),
        Kernel::Combine => {
            counts.push(("COMBINE_INVOCATIONS", COMBINE_INVOCATIONS));
            (0, 0)
        }
        Kernel::FlashBackwardDkdv | Kernel::FlashBackwardDq => {
            let (k_quads, v_quads) = (tiles.quads(head_dim), tiles.quads(head_dim_v));
            counts.extend([("K_QUADS", k_quads), ("V_QUADS", v_quads)]);
            counts.push(("STATS_FETCHES", tiles.tile_q.div_ceil(invocations)));
            (tiles.lanes * k_quads, tiles.lanes * v_quads)
        }
        Kernel::FlashBackwardDkdvCooperative | Kernel::FlashBackwardDqCooperative => {
            let side = tiles.matrix_side.unwrap_or(1);
            let (k_fragments, v_fragments) = (head_dim.div_ceil(side), head_dim_v.div_ceil(side));
            let walked = if specialization.kernel.owns_keys() { tiles.tile_q } else { tiles.tile_kv };
            line(format_args!("const IN_LOCKSTEP = {};", specialization.in_lockstep));
            counts.extend([("MATRIX_SIDE", side), ("OWNED_FRAGMENTS", tiles.thread_rows / side)]);
            counts.extend([("K_FRAGMENTS", k_fragments), ("V_FRAGMENTS", v_fragments), ("TILE_ROWS", walked)]);
            // Two fragments of the walked tile at a time, where the registers of what is owned leave room for them.
            let parts = specialization.storage.matrix_parts();
            let owned = tiles.thread_rows / side * (k_fragments + v_fragments) * parts;
            let is_pair = owned <= if specialization.kernel.owns_keys() { 8 } else { 16 };
            counts.push(("PASSING_FRAGMENTS", if is_pair && (walked / side).is_multiple_of(2) { 2 } else { 1 }));
            counts.push(("STATS_FETCHES", tiles.tile_q.div_ceil(invocations)));
            let (k_quads, v_quads) = (k_fragments * side / 4, v_fragments * side / 4);
            let (k_lanes, v_lanes) = (fetch_lanes(k_quads), fetch_lanes(v_quads));
            counts.extend([("K_FETCH_LANES", k_lanes), ("K_FETCH_PARTS", k_quads.div_ceil(k_lanes))]);
            counts.extend([("V_FETCH_LANES", v_lanes), ("V_FETCH_PARTS", v_quads.div_ceil(v_lanes))]);
            (k_lanes, v_lanes)
        }
        Kernel::FlashForwardCooperative | Kernel::FlashForwardCooperativeSplit => {
            let side = tiles.matrix_side.unwrap_or(1);
            let chunk_fragments = tiles.chunk_fragments(side);
            let chunk = chunk_fragments * side;
            let (k_chunks, v_chunks) = (head_dim.div_ceil(chunk), head_dim_v.div_ceil(chunk));
            line(format_args!("const IN_LOCKSTEP = {};", specialization.in_lockstep));
            counts.extend([("MATRIX_SIDE", side), ("CHUNK_FRAGMENTS", chunk_fragments)]);
            counts.extend([("ROW_FRAGMENTS", tiles.thread_rows / side), ("KEY_CHUNKS", tiles.tile_kv / chunk)]);
            counts.extend([("K_CHUNKS", k_chunks), ("V_CHUNKS", v_chunks)]);
            let (k_lanes, v_lanes) = (fetch_lanes(k_chunks * chunk / 4), fetch_lanes(v_chunks * chunk / 4));
            counts.extend([("TILE_ROWS", tiles.tile_kv), ("K_FETCH_LANES", k_lanes), ("V_FETCH_LANES", v_lanes)]);
            (k_lanes, v_lanes)
        }
        _ => {
            let dim = specialization.kernel.product_dim(head_dim, head_dim_v);
            let (k_chunks, k_chunk_quads) = tiles.k_chunks(dim);
            let (v_chunks, thread_quads) = tiles.v_chunks(dim);
            counts.extend([("PRODUCT_DIM", dim), ("KEYS", 4), ("SOFTMAX_INVOCATIONS", SOFTMAX_INVOCATIONS)]);
            counts.extend([("K_CHUNKS", k_chunks), ("K_CHUNK_QUADS", k_chunk_quads)]);
            counts.extend([("V_CHUNKS", v_chunks), ("THREAD_QUADS", thread_quads)]);
            (k_chunk_quads, thread_quads * tiles.lanes)
        }
    };
    // The tile that passes through workgroup memory. The cooperative kernel loads whole rows of it at a time, the others
    // quads wherever they lie.
    let rows = if specialization.kernel.owns_keys() { tiles.tile_q } else { tiles.tile_kv };
    let fetches = |quads: u32| match specialization.kernel {
        Kernel::FlashForwardCooperative | Kernel::FlashForwardCooperativeSplit => {
            rows.div_ceil((invocations / quads).max(1))
        }
        _ => (rows * quads).div_ceil(invocations),
    };
    counts.extend([("K_FETCHES", fetches(k_quads)), ("V_FETCHES", fetches(v_quads))]);
    let mut lists = Lists::default();
    // The lanes of a row meet in so many steps, each between lanes twice as far apart.
    lists.count("LANE_STEPS", tiles.lanes.trailing_zeros());
    for (name, value) in counts {
        line(format_args!("const {name} = {value}u;"));
        lists.count(name, value);
    }
    line(format_args!("const HAS_WINDOW = {};", specialization.has_window));
    line(format_args!("const HAS_DROPOUT = {};", specialization.has_dropout));

    let tensors = |usage: Usage, in_f32: bool| {
        let is_part = |operand| operand == Operand::OParts && usage == Usage::Read && !specialization.parts_in_f32;
        let in_element = |operand: Operand| operand.holds_elements() || is_part(operand);
        let stored_in_f32 = |operand: Operand| specialization.f32_gradients && operand.is_gradient();
        let operands = specialization.kernel.operands().iter();
        operands
            .filter(|&&(operand, used)| used == usage && in_element(operand) && stored_in_f32(operand) == in_f32)
            .map(|(operand, _)| operand.name())
            .collect()
    };
    // Parameters of the entry point, not members of a struct: naga 30 forgets these builtins there when it writes HLSL.
    lists.names(
        "INVOCATION_BUILTINS",
        match specialization.row_reduce {
            RowReduce::Subgroup => vec!["subgroup_id", "subgroup_size", "subgroup_invocation_id"],
            RowReduce::Alone | RowReduce::Workgroup => vec!["local_invocation_index"],
        },
    );
    lists.names("INPUTS", tensors(Usage::Read, false));
    lists.names("OUTPUTS", tensors(Usage::Write, false));
    lists.names("F32_OUTPUTS", tensors(Usage::Write, true));
    for (list, names) in shared_names(specialization.kernel) {
        lists.names(list, vec![names]);
    }
    // What f16 leaves of an element passes as a second part; the lists let a text speak of it, or of there being none.
    let has_rest = specialization.storage.matrix_parts() > 1;
    lists.names("REST_PARTS", if has_rest { vec!["rest"] } else { vec![] });
    lists.names("ONLY_PARTS", if has_rest { vec![] } else { vec!["only"] });
    lists.names("WALKED", if specialization.kernel.owns_keys() { vec!["q", "d_o"] } else { vec!["k", "v"] });
    lists.names("SEEN_LOOPS", if specialization.masked_loop { vec!["whole", "partial"] } else { vec!["any"] });
    // Loops over the first tile, over those that all rows see whole, and over the others.
    lists.names("FIRST_WHOLE_AND_PARTIAL", vec!["first", "whole", "partial"]);
    (text, lists)
}

/// Which tensors the text that several kernels share works on.
fn shared_names(kernel: Kernel) -> Vec<(&'static str, &'static str)> {
    match kernel {
        Kernel::StandardScores => vec![("ROWS", "q"), ("KEY_TENSOR", "k")],
        Kernel::StandardDp => vec![("ROWS", "d_o"), ("KEY_TENSOR", "v")],
        Kernel::StandardOutput => vec![("MATRIX", "s"), ("KEY_TENSOR", "v"), ("SUM", "o")],
        Kernel::StandardDq => vec![("MATRIX", "dp"), ("KEY_TENSOR", "k"), ("SUM", "dq")],
        Kernel::StandardDv => vec![("MATRIX", "s"), ("ROWS", "d_o"), ("SUM", "dv")],
        Kernel::StandardDk => vec![("MATRIX", "dp"), ("ROWS", "q"), ("SUM", "dk")],
        Kernel::FlashBackwardDkdvCooperative => {
            vec![("WALKED_K", "q"), ("WALKED_V", "d_o"), ("OWNED_K", "k"), ("OWNED_V", "v")]
        }
        Kernel::FlashBackwardDqCooperative => {
            vec![("WALKED_K", "k"), ("WALKED_V", "v"), ("OWNED_K", "q"), ("OWNED_V", "d_o")]
        }
        _ => Vec::new(),
    }
}
