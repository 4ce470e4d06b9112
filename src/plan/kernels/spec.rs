//! What planning and shaders must know of a kernel.

use super::kernel::Kernel;
use super::specialization::{RowReduce, Specialization};
use super::text::{File, Piece};
use super::turns::Loops;
use crate::operand::{Operand, Usage};
use crate::plan::capabilities::Capabilities;
use crate::plan::check::MAX_HEAD_DIM;
use crate::plan::part::Part;
use crate::plan::tiles::{Owns, Tiles};
use crate::problem::AttentionProblem;

/// Constants of the prelude, which `// unroll` can count to.
pub(crate) type Counts = Vec<(&'static str, u32)>;

/// What a kernel is. Each kernel has one, in the file of its family.
pub(crate) struct KernelSpec {
    pub name: &'static str,
    /// Its file in `shaders/`, the last piece of its text.
    pub file: File,
    /// The pieces before that, in their order, after those that all kernels have.
    pub text: &'static [Piece],
    /// What it binds, by number.
    pub operands: &'static [(Operand, Usage)],
    /// What a workgroup owns a tile of.
    pub owns: Owns,
    /// What its workgroups go over.
    pub grid: Grid,
    /// The workgroup size, where tiles do not say it.
    pub invocations: Option<u32>,
    /// How many sums the invocations of a row reduce together, if they do; such a kernel has a subgroup form.
    pub row_sums: Option<u32>,
    /// Whether cooperative matrices compute its products.
    pub on_matrices: bool,
    /// Whether the query heads that share a KV head share its workgroups.
    pub packs_heads: bool,
    /// The same on a split of the keys, if there is such a form.
    pub split: Option<Kernel>,
    /// Whether its text depends on there being keys that some row does not see.
    pub masks: bool,
    /// Whether it drops probabilities.
    pub drops: bool,
    /// Whether scores become final in it. Then it applies score modifiers.
    pub scores: bool,
    /// Whether the sum of a row becomes final in it. Then the sink joins the sum.
    pub ends_rows: bool,
    /// Whether it can read K and V from pages.
    pub reads_pages: bool,
    /// Whether it can read K and V in another type than that of Q.
    pub converts_kv: bool,
    /// Whether tiles that need a mask can have a separate loop.
    pub masked_loop: bool,
    /// Whether it has a form for long sums. Others have their sums split, or add up a few tiles at a time always.
    pub long_sums: bool,
    /// The tensors that shared text works on: lists of one name for `// unroll`.
    pub names: &'static [(&'static str, &'static str)],
    /// The problems that it is for, whatever tiles are given.
    pub serves: fn(&AttentionProblem) -> bool,
    /// Tiles to try, the best first.
    pub candidates: fn(&Capabilities, &AttentionProblem) -> &'static [Tiles],
    /// Whether tiles with these sides are tiles of this kernel.
    pub sides_fit: fn(&Specialization, &Capabilities) -> bool,
    /// Bytes of workgroup memory that its text declares, for tiles in range. A test compares the two.
    pub bytes: fn(&Specialization) -> u64,
    /// Its constants, besides those of all kernels.
    pub own_counts: fn(&Specialization) -> Counts,
    /// Turns of all loops that an invocation takes at most.
    pub turns: fn(&Specialization, &Loops) -> u64,
    /// Bytes that it reads and writes in device memory for one head.
    pub traffic: fn(&Traffic) -> u128,
}

/// What the workgroups of a kernel go over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Grid {
    /// Tiles of rows.
    RowTiles,
    /// Tiles of rows, for each split of the keys.
    RowTilesOfSplits,
    /// Tiles of the score matrix.
    ScoreTiles,
    /// Tiles of keys.
    KeyTiles,
    /// Rows.
    Rows,
    /// Heads.
    Heads,
    /// Sequences, as many as a workgroup has invocations.
    Sequences,
    /// Quads of O, as many as a workgroup has invocations.
    Quads,
    /// Tiles of the entries of a bias that have sums of their own.
    Entries,
    /// Pairs of entries of a bias, as many as a workgroup has invocations.
    PairsOfEntries,
    /// Rows of K or V, as many as a workgroup takes.
    RowsOfKv,
    /// Rows of Q.
    RowsOfQ,
}

/// Bytes of what a pass moves for one head, each as often as it is moved.
pub(crate) struct Traffic {
    /// Splits of the keys.
    pub splits: u128,
    /// Q, O and the f32 of each row, once.
    pub q: u128,
    pub o: u128,
    pub lse: u128,
    /// Gradients, once.
    pub dq: u128,
    pub dk: u128,
    pub dv: u128,
    /// K and V of the keys, once.
    pub own_k: u128,
    pub own_v: u128,
    /// K and V of each tile that a tile of rows visits, and Q, O and two f32 of each row that a tile of keys visits.
    pub k: u128,
    pub v: u128,
    pub passing_q: u128,
    pub passing_o: u128,
    pub passing_stats: u128,
    /// K and V, once for the heads that share them.
    pub shared: u128,
    /// The scores of the tiles that are visited.
    pub s: u128,
    /// The partial results of all splits.
    pub parts: u128,
}

impl KernelSpec {
    /// A kernel that has nothing. Others start from it.
    pub(super) const NONE: Self = Self {
        name: "",
        file: File { name: "", text: "" },
        text: &[],
        operands: &[],
        owns: Owns::Rows,
        grid: Grid::RowTiles,
        invocations: None,
        row_sums: None,
        on_matrices: false,
        packs_heads: false,
        split: None,
        masks: false,
        drops: false,
        scores: false,
        ends_rows: false,
        reads_pages: false,
        converts_kv: false,
        masked_loop: false,
        long_sums: false,
        names: &[],
        serves: |_| true,
        candidates: |_, _| &[],
        sides_fit: |specialization, _| has_rows_alone(specialization.tiles),
        bytes: |_| 0,
        own_counts: |_| NO_FETCHES.to_vec(),
        turns: |_, _| 0,
        traffic: |_| 0,
    };

    pub fn binds(&self, operand: Operand) -> bool {
        self.operands.iter().any(|&(other, _)| other == operand)
    }

    /// Its constants.
    pub fn counts(&self, specialization: &Specialization) -> Counts {
        let Specialization { tiles, head_dim, head_dim_v, .. } = *specialization;
        let mut counts = vec![
            ("TILE_Q", tiles.tile_q),
            ("TILE_KV", tiles.tile_kv),
            ("THREAD_ROWS", tiles.thread_rows),
            ("LANES", tiles.lanes),
            ("ROW_LANES", tiles.invocations_of(self.owns) / tiles.lanes),
            ("HEAD_DIM", head_dim),
            ("HEAD_DIM_V", head_dim_v),
        ];
        counts.extend((self.own_counts)(specialization));
        counts
    }

    /// Tiles of rows in a part, over all its heads and sequences.
    pub(in crate::plan) fn row_tiles(&self, tiles: Tiles, heads_per_kv: u32, part: &Part) -> u64 {
        let (heads, rows) = (u64::from(part.head_count), u64::from(part.row_count));
        let group = if self.packs_heads { u64::from(heads_per_kv) } else { 1 };
        let groups = u64::from(part.batch_count) * (heads / group);
        groups.saturating_mul((rows * group).div_ceil(tiles.tile_q.into()))
    }

    /// Bytes of workgroup memory; 2³² − 1 if there are more, or for tiles that no kernel has.
    pub fn workgroup_bytes(&self, specialization: &Specialization) -> u32 {
        let Specialization { tiles, head_dim, head_dim_v, .. } = *specialization;
        if !tiles.are_in_range() || head_dim.max(head_dim_v) > MAX_HEAD_DIM {
            return u32::MAX;
        }
        u32::try_from((self.bytes)(specialization)).unwrap_or(u32::MAX)
    }

    /// Whether the tiles of a specialization are tiles at all, and this kernel made of them fits the device.
    pub fn fits(&self, specialization: &Specialization, capabilities: &Capabilities) -> bool {
        let tiles = specialization.tiles;
        // Sides beyond these fit no device, and would overflow the sums below.
        tiles.are_in_range()
            && self.on_matrices == tiles.matrix_side.is_some()
            && (self.reads_pages || !specialization.cached.is_paged)
            && (self.converts_kv || specialization.cached.element.is_none())
            && tiles.matrix_side.is_none_or(|side| has_matrices(&tiles, side, capabilities))
            && (self.sides_fit)(specialization, capabilities)
            && tiles.tile_kv.is_multiple_of(4)
            // The row reductions pair lanes off.
            && tiles.lanes.is_power_of_two()
            && tiles.invocations_of(self.owns) <= capabilities.max_invocations
            && self.invocations.is_none_or(|invocations| invocations <= capabilities.max_invocations)
            && self.workgroup_bytes(specialization) <= capabilities.max_workgroup_storage
    }
}

/// Whether the device has such matrices, for subgroups of this one size.
fn has_matrices(tiles: &Tiles, side: u32, capabilities: &Capabilities) -> bool {
    capabilities.matrix_side == Some(side)
        && capabilities.shader_f16
        && capabilities.subgroups
        && [capabilities.subgroup_min_size, capabilities.subgroup_max_size] == [tiles.lanes; 2]
        && tiles.thread_rows.is_multiple_of(side)
}

/// Whether no groups of lanes share the keys of a row, and no subgroup loads for all its invocations.
pub(super) fn has_own_lanes(tiles: Tiles) -> bool {
    tiles.key_lanes == 1 && tiles.broadcast == 1
}

/// As `has_own_lanes`, with whole invocations' rows in a tile.
pub(super) fn has_rows_alone(tiles: Tiles) -> bool {
    has_own_lanes(tiles) && tiles.tile_q.is_multiple_of(tiles.thread_rows)
}

/// How often all invocations fetch, until rows of K and V with so many quads are in workgroup memory.
pub(super) fn fetches(tiles: Tiles, owns: Owns, k_quads: u32, v_quads: u32) -> [(&'static str, u32); 2] {
    let (rows, invocations) = (tiles.passing(owns), tiles.invocations_of(owns));
    [("K_FETCHES", (rows * k_quads).div_ceil(invocations)), ("V_FETCHES", (rows * v_quads).div_ceil(invocations))]
}

/// For kernels that fetch nothing.
pub(super) const NO_FETCHES: [(&str, u32); 2] = [("K_FETCHES", 0), ("V_FETCHES", 0)];

/// Bytes of workgroup memory that row reductions need where they do not go through subgroups: `sums` f32 for each row
/// and quad of keys of each invocation.
pub(super) fn partials(specialization: &Specialization, owns: Owns, sums: u64) -> u64 {
    let tiles = specialization.tiles;
    match specialization.row_reduce {
        RowReduce::Workgroup => {
            let of_an_invocation = u64::from(tiles.thread_rows) * u64::from(tiles.key_quads());
            4 * sums * of_an_invocation * u64::from(tiles.invocations_of(owns))
        }
        RowReduce::Alone | RowReduce::Subgroup => 0,
    }
}
