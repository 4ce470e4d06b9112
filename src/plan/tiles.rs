use super::{Capabilities, Kernel, MAX_HEAD_DIM, RowReduce, Storage};
use crate::problem::AttentionProblem;
use std::fmt;

/// The sides of a workgroup's tiles, and how its invocations share them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tiles {
    /// Rows of Q and O in a workgroup.
    pub tile_q: u32,
    /// Keys in a tile of K and V; a multiple of 4.
    pub tile_kv: u32,
    /// Rows that one invocation works on. With matrices, one subgroup.
    pub thread_rows: u32,
    /// Neighbouring invocations that share each row: its head dimensions in flash attention, its keys in standard
    /// attention. With matrices, the size of a subgroup.
    pub lanes: u32,
    /// Groups of lanes that share out the keys of a tile, by fours; 1 in all kernels but decoding.
    pub key_lanes: u32,
    /// Invocations of a subgroup that load K and V for each other and broadcast; 1 where each loads what it needs.
    pub broadcast: u32,
    /// The side of the cooperative matrices that compute the products, or `None` for plain arithmetic.
    pub matrix_side: Option<u32>,
}

impl fmt::Display for Tiles {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}x{}, ", self.tile_q, self.tile_kv)?;
        match self.matrix_side {
            Some(side) => write!(f, "{} rows by {side}x{side} matrices", self.thread_rows),
            None if self.broadcast > 1 => write!(f, "{} rows, {} broadcast", self.thread_rows, self.broadcast),
            None if self.key_lanes > 1 => write!(f, "{} lanes by {} groups", self.lanes, self.key_lanes),
            None => write!(f, "{} rows by {} lanes", self.thread_rows, self.lanes),
        }
    }
}

/// Bytes of a quad in workgroup memory, which holds f32 whatever the storage.
const QUAD: u64 = 16;

/// Quads of head dimensions that workgroup memory holds at a time in standard attention.
const STANDARD_CHUNK_QUADS: u32 = 16;

/// Invocations that share a row in `standard_softmax.wgsl`.
pub(crate) const SOFTMAX_INVOCATIONS: u32 = 64;

/// Invocations of a workgroup in `combine.wgsl`.
pub(crate) const COMBINE_INVOCATIONS: u32 = 64;

impl Tiles {
    /// For kernels that have no tiles.
    pub(crate) const NONE: Self = Self::new(1, 4, 1, 1);

    /// Tiles with these sides.
    pub const fn new(tile_q: u32, tile_kv: u32, thread_rows: u32, lanes: u32) -> Self {
        Self { tile_q, tile_kv, thread_rows, lanes, key_lanes: 1, broadcast: 1, matrix_side: None }
    }

    /// Tiles whose invocations own whole rows, and load K and V together: `broadcast` of them, as many as a subgroup has.
    pub const fn broadcasting(tile_q: u32, tile_kv: u32, thread_rows: u32, broadcast: u32) -> Self {
        Self { tile_q, tile_kv, thread_rows, lanes: 1, key_lanes: 1, broadcast, matrix_side: None }
    }

    /// Tiles for decoding: `tile_q` rows in the registers of every one of `key_lanes` groups of `lanes` invocations.
    pub const fn decode(tile_q: u32, tile_kv: u32, lanes: u32, key_lanes: u32) -> Self {
        Self { tile_q, tile_kv, thread_rows: tile_q, lanes, key_lanes, broadcast: 1, matrix_side: None }
    }

    /// Quads of keys that one invocation works on at a time.
    pub(crate) const fn key_quads(&self) -> u32 {
        match self {
            Self { key_lanes: 2.., .. } => self.tile_kv / 4 / self.key_lanes,
            // NVIDIA H100, f32, head_dim 64, 2×16×4096: 4.02 ms, one quad 4.23; with other tiles it costs registers
            // that they lack.
            Self { thread_rows: 2, lanes: 2, tile_kv: 32, .. } => 2,
            _ => 1,
        }
    }

    /// Tiles on cooperative matrices with this side. A subgroup of `lanes` invocations owns `thread_rows` rows, whole
    /// fragments of them.
    pub const fn cooperative(tile_q: u32, tile_kv: u32, thread_rows: u32, lanes: u32, side: u32) -> Self {
        Self { tile_q, tile_kv, thread_rows, lanes, key_lanes: 1, broadcast: 1, matrix_side: Some(side) }
    }

    /// On cooperative matrices: fragments side by side in a chunk, which has 8 elements for each invocation; 0 where
    /// a single fragment has fewer.
    pub(crate) const fn chunk_fragments(&self, side: u32) -> u32 {
        8 * self.lanes / (side * side)
    }

    /// Whether all sides are such that some kernel could have them. Plans have no others; the numbers below saturate.
    pub(crate) fn are_in_range(&self) -> bool {
        let Self { tile_q, tile_kv, thread_rows, lanes, key_lanes, broadcast, matrix_side } = *self;
        let mut sides = [tile_q, tile_kv, thread_rows, lanes, key_lanes, broadcast].into_iter();
        sides.all(|side| (1..=1024).contains(&side)) && matrix_side.is_none_or(|side| [8, 16].contains(&side))
    }

    /// Invocations of a workgroup.
    pub const fn invocations(&self) -> u32 {
        match self.tile_q.checked_div(self.thread_rows) {
            Some(groups) => self.lanes.saturating_mul(groups).saturating_mul(self.key_lanes),
            None => 0,
        }
    }

    /// Invocations of a workgroup of this kernel, which may own a tile of keys instead of one of rows.
    pub(crate) const fn invocations_of(&self, kernel: Kernel) -> u32 {
        match self.tile_kv.checked_div(self.thread_rows) {
            Some(groups) if kernel.owns_keys() => self.lanes.saturating_mul(groups),
            _ => self.invocations(),
        }
    }

    /// Quads of a head that one lane holds.
    pub const fn quads(&self, head_dim: u32) -> u32 {
        let lanes = if self.lanes == 0 { 1 } else { self.lanes };
        match head_dim.div_ceil(4).div_ceil(lanes).checked_next_multiple_of(self.broadcast) {
            Some(quads) => quads,
            None => u32::MAX,
        }
    }

    /// Standard attention: in how many chunks Q and K pass, and how many quads of head dimensions each holds.
    pub const fn k_chunks(&self, head_dim: u32) -> (u32, u32) {
        Self::chunks(head_dim.div_ceil(4), STANDARD_CHUNK_QUADS)
    }

    /// Standard attention: in how many chunks V passes, and how many quads of each one invocation owns.
    pub const fn v_chunks(&self, head_dim_v: u32) -> (u32, u32) {
        match STANDARD_CHUNK_QUADS.checked_div(self.lanes) {
            None | Some(0) => Self::chunks(self.quads(head_dim_v), 1),
            Some(at_most) => Self::chunks(self.quads(head_dim_v), at_most),
        }
    }

    /// Into how many chunks so many quads go, and how many are in each.
    const fn chunks(quads: u32, at_most: u32) -> (u32, u32) {
        match quads.div_ceil(at_most) {
            0 => (0, 0),
            chunks => (chunks, quads.div_ceil(chunks)),
        }
    }

    /// Bytes of workgroup memory; 2³² − 1 if there are more, or for tiles that no kernel has. A test compares this with the
    /// shader.
    pub fn workgroup_bytes(
        &self,
        kernel: Kernel,
        (head_dim, head_dim_v): (u32, u32),
        storage: Storage,
        row_reduce: RowReduce,
        has_dropout: bool,
    ) -> u32 {
        if !self.are_in_range() || head_dim.max(head_dim_v) > MAX_HEAD_DIM {
            return u32::MAX;
        }
        // Sides in range may still be too much together for 32 bits.
        let [tile_q, tile_kv, thread_rows, lanes] =
            [self.tile_q, self.tile_kv, self.thread_rows, self.lanes].map(u64::from);
        let [k_quads, v_quads] = [head_dim, head_dim_v].map(|dim| lanes * u64::from(self.quads(dim)));
        let invocations = u64::from(self.invocations_of(kernel));
        let dim = kernel.product_dim(head_dim, head_dim_v);
        let k_chunk = u64::from(self.k_chunks(dim).1 | 1);
        let v_chunk = (u64::from(self.v_chunks(dim).1) * lanes) | 1;
        let (walked, stats) = if kernel.owns_keys() { (tile_q, 8 * tile_q) } else { (tile_kv, 0) };
        let partials = match row_reduce {
            RowReduce::Workgroup => QUAD * thread_rows * u64::from(self.key_quads()) * invocations,
            RowReduce::Alone | RowReduce::Subgroup => 0,
        };
        let bytes = match kernel {
            Kernel::FlashBackwardPreprocess => partials / 2,
            Kernel::FlashBackwardDkdv | Kernel::FlashBackwardDq => {
                let keep = if has_dropout { tile_q * tile_kv } else { 0 };
                // Two floats of each row are summed, where the forward sums four.
                QUAD * walked * (k_quads + v_quads) + stats + keep + partials / 2
            }
            Kernel::FlashForward | Kernel::FlashForwardSplit => QUAD * tile_kv * (k_quads + v_quads) + partials,
            Kernel::FlashDecode | Kernel::FlashDecodeSplit => {
                u64::from(self.key_lanes) * (8 + QUAD * v_quads) + partials
            }
            Kernel::Combine => 0,
            Kernel::FlashForwardCooperative
            | Kernel::FlashForwardCooperativeSplit
            | Kernel::FlashBackwardDkdvCooperative
            | Kernel::FlashBackwardDqCooperative => {
                self.bytes_on_matrices(kernel, (head_dim.into(), head_dim_v.into()), storage)
            }
            Kernel::StandardScores | Kernel::StandardDp => QUAD * (tile_q + tile_kv) * k_chunk,
            Kernel::StandardSoftmax => 8 * u64::from(SOFTMAX_INVOCATIONS),
            Kernel::StandardDs => 0,
            Kernel::StandardOutput | Kernel::StandardDq => QUAD * (tile_q * (lanes | 1) + tile_kv * v_chunk),
            Kernel::StandardDv | Kernel::StandardDk => QUAD * tile_q * (((tile_kv / 4) | 1) + v_chunk),
        };
        u32::try_from(bytes).unwrap_or(u32::MAX)
    }

    fn bytes_on_matrices(&self, kernel: Kernel, (head_dim, head_dim_v): (u64, u64), storage: Storage) -> u64 {
        let [tile_q, tile_kv, thread_rows, lanes] =
            [self.tile_q, self.tile_kv, self.thread_rows, self.lanes].map(u64::from);
        let (parts, side) = (u64::from(storage.matrix_parts()), u64::from(self.matrix_side.unwrap_or(1)));
        let units = |rows: u64| if storage.has_row_units() { 8 * (rows + 4) } else { 0 };
        if matches!(kernel, Kernel::FlashForwardCooperative | Kernel::FlashForwardCooperativeSplit) {
            // A subgroup too small for a single fragment has no chunk; `fit` refuses it.
            let chunk = (u64::from(self.chunk_fragments(side as u32)) * side).max(1);
            let row = |dim: u64| dim.next_multiple_of(chunk) / 4 + 2;
            let scratch = tile_q / thread_rows * side * (chunk / 4 + 2);
            // K, V and P are f16, S is f32; one quad says whether a maximum has grown.
            let halves = parts * (tile_kv * (row(head_dim) + row(head_dim_v)) + 4 + scratch);
            return QUAD / 2 * halves + QUAD * (scratch + 1) + units(tile_kv);
        }
        let row = |dim: u64| dim.div_ceil(side) * side / 4 + 2;
        let rows = u64::from(self.invocations_of(kernel)) / lanes * side;
        let (walked, stats, s_stride) =
            if kernel.owns_keys() { (tile_q, 8 * tile_q, side / 4 + 1) } else { (tile_kv, 0, side / 4 + 2) };
        // A mark for each row of the walked tile; the tiles, P and dS are f16, S and dP f32.
        let halves = parts * (walked * (row(head_dim) + row(head_dim_v)) + rows * (side / 4 + 2));
        QUAD / 2 * halves + QUAD * rows * s_stride + stats + 4 * walked + units(walked)
    }

    /// How the lanes of a row reduce on this device.
    pub(super) fn row_reduce(&self, capabilities: &Capabilities) -> RowReduce {
        // A smaller subgroup than a row's lanes would reduce only a part of the row.
        match self.lanes {
            _ if self.broadcast > 1 => RowReduce::Subgroup,
            1 => RowReduce::Alone,
            lanes if capabilities.subgroups && capabilities.subgroup_min_size >= lanes => RowReduce::Subgroup,
            _ => RowReduce::Workgroup,
        }
    }

    /// Whether these are tiles at all, and this kernel made of them fits the device.
    pub(super) fn fit(&self, kernel: Kernel, capabilities: &Capabilities, problem: &AttentionProblem) -> bool {
        let Self { tile_q, tile_kv, thread_rows, lanes, key_lanes, broadcast, matrix_side } = *self;
        // Sides beyond these fit no device, and would overflow the sums below.
        if !self.are_in_range() {
            return false;
        }
        let row_reduce = self.row_reduce(capabilities);
        let head_dims = (problem.shape.head_dim, problem.shape.head_dim_v);
        let widest = head_dims.0.max(head_dims.1);
        let storage = Storage::of(problem.element, capabilities);
        let matrices_fit = matrix_side.is_none_or(|side| {
            capabilities.matrix_side == Some(side)
                && capabilities.shader_f16
                && capabilities.subgroups
                && [capabilities.subgroup_min_size, capabilities.subgroup_max_size] == [lanes; 2]
                && thread_rows.is_multiple_of(side)
        });
        let sides_fit = match kernel {
            Kernel::FlashDecode | Kernel::FlashDecodeSplit => {
                thread_rows == tile_q && key_lanes > 1 && tile_kv.is_multiple_of(4 * key_lanes)
            }
            _ if key_lanes != 1 => false,
            // Only whole subgroups, all of one size, can load for each other.
            Kernel::FlashForward | Kernel::FlashForwardSplit if broadcast > 1 => {
                lanes == 1
                    && capabilities.subgroups
                    && [capabilities.subgroup_min_size, capabilities.subgroup_max_size] == [broadcast; 2]
                    && tile_q.is_multiple_of(thread_rows * broadcast)
            }
            _ if broadcast != 1 => false,
            // The keys of an invocation lie within one quad, whose dropout is drawn together.
            Kernel::FlashBackwardDkdv => tile_kv.is_multiple_of(thread_rows) && matches!(thread_rows, 1 | 2 | 4),
            Kernel::FlashForwardCooperative | Kernel::FlashForwardCooperativeSplit => {
                let side = matrix_side.unwrap_or(1).max(1);
                let chunk = self.chunk_fragments(side) * side;
                matrices_fit
                    && chunk > 0
                    && tile_q.is_multiple_of(thread_rows)
                    && tile_kv.is_multiple_of(chunk)
                    // The invocations load at least a row of K and V at a time.
                    && widest.next_multiple_of(chunk) <= 4 * self.invocations()
                    // Where rows have units, a subgroup loads whole rows.
                    && (!storage.has_row_units() || widest.next_multiple_of(chunk) <= 4 * lanes)
            }
            Kernel::FlashBackwardDkdvCooperative | Kernel::FlashBackwardDqCooperative => {
                let side = matrix_side.unwrap_or(1);
                let (owned, walked) = if kernel.owns_keys() { (tile_kv, tile_q) } else { (tile_q, tile_kv) };
                lanes == side * side / 8 && owned.is_multiple_of(thread_rows) && walked.is_multiple_of(side)
            }
            Kernel::StandardDv | Kernel::StandardDk => thread_rows == 4 && tile_kv.is_multiple_of(4),
            Kernel::StandardScores
            | Kernel::StandardSoftmax
            | Kernel::StandardOutput
            | Kernel::StandardDp
            | Kernel::StandardDs
            | Kernel::StandardDq => tile_q.is_multiple_of(thread_rows) && tile_kv == 4 * lanes,
            _ => tile_q.is_multiple_of(thread_rows),
        };
        matrices_fit
            && sides_fit
            && tile_kv.is_multiple_of(4)
            // The row reductions pair lanes off.
            && lanes.is_power_of_two()
            && self.invocations_of(kernel).max(SOFTMAX_INVOCATIONS) <= capabilities.max_invocations
            && self.workgroup_bytes(kernel, head_dims, storage, row_reduce, problem.dropout.is_some())
                <= capabilities.max_workgroup_storage
    }
}
