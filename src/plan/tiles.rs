use super::{Capabilities, DeviceClass, Kernel, RowReduce, Storage};
use crate::problem::{Algorithm, AttentionProblem, AttentionShape, Element};
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
const QUAD: u32 = 16;

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

    /// Invocations of a workgroup.
    pub const fn invocations(&self) -> u32 {
        self.lanes * (self.tile_q / self.thread_rows) * self.key_lanes
    }

    /// Invocations of a workgroup of this kernel, which may own a tile of keys instead of one of rows.
    pub(crate) const fn invocations_of(&self, kernel: Kernel) -> u32 {
        if kernel.owns_keys() { self.lanes * (self.tile_kv / self.thread_rows) } else { self.invocations() }
    }

    /// Quads of a head that one lane holds.
    pub const fn quads(&self, head_dim: u32) -> u32 {
        head_dim.div_ceil(4).div_ceil(self.lanes).next_multiple_of(self.broadcast)
    }

    /// Standard attention: in how many chunks Q and K pass, and how many quads of head dimensions each holds.
    pub const fn k_chunks(&self, head_dim: u32) -> (u32, u32) {
        let quads = head_dim.div_ceil(4);
        let chunks = quads.div_ceil(STANDARD_CHUNK_QUADS);
        (chunks, quads.div_ceil(chunks))
    }

    /// Standard attention: in how many chunks V passes, and how many quads of each one invocation owns.
    pub const fn v_chunks(&self, head_dim_v: u32) -> (u32, u32) {
        let quads = self.quads(head_dim_v);
        let at_most = STANDARD_CHUNK_QUADS / self.lanes;
        let chunks = quads.div_ceil(if at_most == 0 { 1 } else { at_most });
        (chunks, quads.div_ceil(chunks))
    }

    /// Bytes of workgroup memory. A test compares this with the shader.
    pub fn workgroup_bytes(
        &self,
        kernel: Kernel,
        (head_dim, head_dim_v): (u32, u32),
        storage: Storage,
        row_reduce: RowReduce,
        has_dropout: bool,
    ) -> u32 {
        let dim = kernel.product_dim(head_dim, head_dim_v);
        let k_chunk = self.k_chunks(dim).1 | 1;
        let v_chunk = (self.v_chunks(dim).1 * self.lanes) | 1;
        let partials = match row_reduce {
            RowReduce::Workgroup => QUAD * self.thread_rows * self.key_quads() * self.invocations_of(kernel),
            RowReduce::Alone | RowReduce::Subgroup => 0,
        };
        match kernel {
            Kernel::FlashBackwardPreprocess => partials / 2,
            Kernel::FlashBackwardDkdv | Kernel::FlashBackwardDq => {
                let (walked, stats) =
                    if kernel.owns_keys() { (self.tile_q, 8 * self.tile_q) } else { (self.tile_kv, 0) };
                let quads = self.lanes * (self.quads(head_dim) + self.quads(head_dim_v));
                let keep = if has_dropout { self.tile_q * self.tile_kv } else { 0 };
                // Two floats of each row are summed, where the forward sums four.
                QUAD * walked * quads + stats + keep + partials / 2
            }
            Kernel::FlashForward | Kernel::FlashForwardSplit => {
                let tiles = QUAD * self.tile_kv * self.lanes * (self.quads(head_dim) + self.quads(head_dim_v));
                tiles + partials
            }
            Kernel::FlashDecode | Kernel::FlashDecodeSplit => {
                self.key_lanes * (8 + QUAD * self.lanes * self.quads(head_dim_v)) + partials
            }
            Kernel::Combine => 0,
            Kernel::FlashBackwardDkdvCooperative | Kernel::FlashBackwardDqCooperative => {
                let side = self.matrix_side.unwrap_or(1);
                let row = |dim: u32| dim.div_ceil(side) * side / 4 + 2;
                let (walked, stats) =
                    if kernel.owns_keys() { (self.tile_q, 8 * self.tile_q) } else { (self.tile_kv, 0) };
                let rows = self.invocations_of(kernel) / self.lanes * side;
                // A mark for each row of the walked tile; the tiles, P and dS are f16, S and dP f32.
                let halves =
                    storage.matrix_parts() * (walked * (row(head_dim) + row(head_dim_v)) + rows * (side / 4 + 2));
                let units = if storage.has_row_units() { 8 * (walked + 4) } else { 0 };
                let s_stride = if kernel.owns_keys() { side / 4 + 1 } else { side / 4 + 2 };
                QUAD / 2 * halves + QUAD * rows * s_stride + stats + 4 * walked + units
            }
            Kernel::FlashForwardCooperative => {
                let side = self.matrix_side.unwrap_or(1);
                let chunk = self.chunk_fragments(side) * side;
                let row = |dim: u32| dim.next_multiple_of(chunk) / 4 + 2;
                let scratch = self.tile_q / self.thread_rows * side * (chunk / 4 + 2);
                // K, V and P are f16, S is f32; one quad says whether a maximum has grown.
                let halves = storage.matrix_parts() * (self.tile_kv * (row(head_dim) + row(head_dim_v)) + 4 + scratch);
                let units = if storage.has_row_units() { 8 * (self.tile_kv + 4) } else { 0 };
                QUAD / 2 * halves + QUAD * (scratch + 1) + units
            }
            Kernel::StandardScores | Kernel::StandardDp => QUAD * (self.tile_q + self.tile_kv) * k_chunk,
            Kernel::StandardSoftmax => 8 * SOFTMAX_INVOCATIONS,
            Kernel::StandardDs => 0,
            Kernel::StandardOutput | Kernel::StandardDq => {
                QUAD * (self.tile_q * (self.lanes | 1) + self.tile_kv * v_chunk)
            }
            Kernel::StandardDv | Kernel::StandardDk => QUAD * self.tile_q * (((self.tile_kv / 4) | 1) + v_chunk),
        }
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
        let in_range =
            [tile_q, tile_kv, thread_rows, lanes, key_lanes, broadcast].iter().all(|side| (1..=1024).contains(side));
        let row_reduce = self.row_reduce(capabilities);
        let head_dims = (problem.shape.head_dim, problem.shape.head_dim_v);
        let widest = head_dims.0.max(head_dims.1);
        let storage = Storage::of(problem.element, capabilities);
        let matrices_fit = matrix_side.is_none_or(|side| {
            in_range
                && capabilities.matrix_side == Some(side)
                && capabilities.shader_f16
                && capabilities.subgroups
                && [capabilities.subgroup_min_size, capabilities.subgroup_max_size] == [lanes; 2]
                && [8, 16].contains(&side)
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
            Kernel::FlashForwardCooperative => {
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
        in_range
            && matrices_fit
            && sides_fit
            && tile_kv.is_multiple_of(4)
            // The row reductions pair lanes off.
            && lanes.is_power_of_two()
            && self.invocations_of(kernel).max(SOFTMAX_INVOCATIONS) <= capabilities.max_invocations
            && self.workgroup_bytes(kernel, head_dims, storage, row_reduce, problem.dropout.is_some())
                <= capabilities.max_workgroup_storage
    }
}

/// Tiles on cooperative matrices to try, the best first. They need f16 in storage and in shaders.
pub(super) fn cooperative_candidates(capabilities: &Capabilities, problem: &AttentionProblem) -> &'static [Tiles] {
    const fn of_16(tile_q: u32, tile_kv: u32, thread_rows: u32) -> Tiles {
        Tiles::cooperative(tile_q, tile_kv, thread_rows, 32, 16)
    }
    let shape = &problem.shape;
    let widest = shape.head_dim.max(shape.head_dim_v);
    match (capabilities.matrix_side, capabilities.subgroup_min_size) {
        // lavapipe (Mesa 26) computes matrices one element at a time: 200 rows at head_dim 64 take 6.7 ms, and 3.0 ms
        // without them.
        _ if capabilities.device_class == DeviceClass::Cpu => &[],
        // TFLOP/s on an NVIDIA H200, 2×16×4096 rows and keys. What decides is, first, that the fragments of 32 rows
        // share each load of K and V; then, that registers (255 at most, no spills) and 48 KiB of workgroup memory leave
        // room for 8 subgroups on a core, at best in two workgroups, of which one computes while the other waits.
        //
        // f32 passes in two parts of f16.
        (Some(16), 32) if problem.element == Element::F32 => match widest {
            0..=64 => const { &[of_16(128, 16, 32), of_16(64, 16, 16)] },
            _ => const { &[of_16(128, 16, 16), of_16(64, 16, 16)] },
        },
        // Few rows: 4 heads of 512 at head_dim 64 are 16 tiles of 128 rows; smaller ones use more of the GPU.
        (Some(16), 32) if widest <= 128 && shape.lse_len() <= 8192 => const { &[of_16(64, 32, 16)] },
        // head_dim 32: 145; 32 keys 139.
        (Some(16), 32) if widest <= 32 => const { &[of_16(128, 64, 32), of_16(128, 32, 32)] },
        // head_dim 64: 212; 16 rows to a subgroup (16 subgroups) 185, 256 query rows 191, 16 keys 187, 64 query rows 141.
        (Some(16), 32) if widest <= 64 => const { &[of_16(128, 32, 32)] },
        // head_dim 80: 209; 32 keys 195, with 256 query rows 201, 16 rows to a subgroup 176.
        (Some(16), 32) if widest <= 80 => const { &[of_16(128, 16, 32)] },
        // head_dim 96: 216; 128 query rows 191, with 32 keys 194, 16 rows to a subgroup 187.
        (Some(16), 32) if widest <= 96 => const { &[of_16(256, 16, 32), of_16(128, 16, 32)] },
        // head_dim 128: 217 (112: 204, 160: 217, 192: 209); 32 rows to a subgroup and 16 keys 177, the registers spill.
        (Some(16), 32) if widest <= 192 => const { &[of_16(128, 32, 16), of_16(128, 16, 16)] },
        // head_dim 256: 166.
        (Some(16), 32) => const { &[of_16(128, 16, 16)] },
        // Not run on such a GPU: 8×8 matrices in subgroups of 32, as Metal has them.
        (Some(8), 32) => const { &[Tiles::cooperative(64, 32, 16, 32, 8), Tiles::cooperative(64, 32, 8, 32, 8)] },
        (Some(8), 8) => const { &[Tiles::cooperative(64, 8, 8, 8, 8)] },
        _ => &[],
    }
}

/// Tiles to try, the best first: the first that fits the device's limits is taken. The last of each list fits WebGPU's
/// least limits.
pub(super) fn candidates(
    algorithm: Algorithm,
    capabilities: &Capabilities,
    shape: &AttentionShape,
) -> &'static [Tiles] {
    if algorithm == Algorithm::Standard {
        return const { &[Tiles::new(64, 32, 4, 8), Tiles::new(32, 16, 4, 4)] };
    }
    let widest = shape.head_dim.max(shape.head_dim_v);
    // One row to an invocation spreads few rows over more of the GPU.
    let is_small = is_small(shape);
    // Lanes meet by shuffles as far as one subgroup reaches, and in slow workgroup memory beyond.
    let subgroup = if capabilities.subgroups { capabilities.subgroup_min_size } else { 1 };
    const LEAST: Tiles = Tiles::new(32, 4, 1, 1);
    match (capabilities.device_class, subgroup) {
        // lavapipe (Mesa 22.3.6, 2 cores) works on 8 invocations at a time and pays for each load, so many rows share
        // one; and it compiles slowly, so each invocation holds few quads. 1×1×256×head_dim f32 in ms, and compilation
        // in s: head_dim 64 11.2 and 0.9 (4 rows by 8 lanes 19.0 and 0.5, 8 by 4 slower to compile by half; one row to
        // an invocation 82 and 1.6); head_dim 256 24.5 and 4.3, 4 rows by 8 lanes 36.8 and 2.0.
        //
        // Best of all, 8 invocations load for each other and broadcast. Processor time of 1×4×512 f32 in ms, and
        // compilation in s: head_dim 64 18.5 and 2.3 (16 keys and 64 rows to a tile 21.6, 8 rows to an
        // invocation 18.5 and 7.1; 8 rows by 8 lanes
        // 41.4 and 0.9; Burn's kernel 26 and 12); head_dim 128, 2 heads, 19.3 and 7.6 (39.1 and 1.4). Few rows are not
        // worth the compilation.
        (DeviceClass::Cpu, 8..) if widest <= 128 && shape.seqlen_q >= 256 => {
            const { &[Tiles::broadcasting(128, 32, 4, 8), Tiles::new(64, 16, 8, 8), LEAST] }
        }
        (DeviceClass::Cpu, 8..) if widest <= 128 => const { &[Tiles::new(64, 16, 8, 8), LEAST] },
        (DeviceClass::Cpu, 8..) => const { &[Tiles::new(64, 16, 4, 8), Tiles::new(64, 8, 4, 8), LEAST] },
        // Without shuffles, head_dim 64: 26.8 and 1.0; 4 rows by 8 lanes 51.6, 2 rows of one invocation 34.0 and 2.5.
        (DeviceClass::Cpu, _) if widest <= 128 => const { &[Tiles::new(64, 16, 4, 4), Tiles::new(32, 8, 4, 4), LEAST] },
        (DeviceClass::Cpu, _) => const { &[Tiles::new(32, 8, 4, 8), Tiles::new(32, 4, 4, 8), LEAST] },

        // TFLOP/s on an NVIDIA H200, f32, 2×16×4096 (head_dim 256: 2048). What decides is how many invocations the
        // registers leave room for (workgroup memory too: about 48 KiB serve all workgroups of a core together), then
        // how many rows share one load of K or V. All fit the 16 KiB that WebGPU promises, or the next one does.
        //
        //
        // Small problems first, in ms, beside the tiles for large ones and standard attention. head_dim 32, 12 heads of
        // 512 rows: 0.050, 0.101, 0.055; head_dim 64, 4 heads of 512: 0.054, 0.104, 0.059; head_dim 128, 8 heads of
        // 512: 0.109, 0.132, 0.111; head_dim 256, likewise: 0.187, 0.217, 0.192. At 16,384 rows the others win.
        (_, 2..) if is_small && widest <= 32 => const { &[Tiles::new(32, 32, 1, 2), LEAST] },
        (_, 8..) if is_small && widest <= 64 => const { &[Tiles::new(16, 32, 1, 8), LEAST] },
        (_, 8..) if is_small && widest <= 128 => const { &[Tiles::new(32, 16, 1, 8), LEAST] },
        (_, 16..) if is_small => const { &[Tiles::new(32, 16, 1, 16), Tiles::new(32, 8, 1, 16), LEAST] },
        // head_dim 32: 25.2; 4 rows by 2 lanes 21.6, 4 by 4 21.0.
        (_, 1..) if widest <= 32 => const { &[Tiles::new(64, 32, 2, 1), LEAST] },
        // head_dim 64: 30.9; 256 invocations 24.3, one row to an invocation 26.8, 4 rows by 4 lanes 25.3.
        (_, 2..) if widest <= 64 => const { &[Tiles::new(128, 32, 2, 2), LEAST] },
        // head_dim 80: 26.1; 2 rows by 4 lanes 21.5, 4 rows by 8 lanes 16.2.
        (_, 4..) if widest <= 96 => const { &[Tiles::new(64, 16, 4, 4), LEAST] },
        // head_dim 128: 23.1; 4 rows by 8 lanes 22.1, 4 by 16 18.5.
        (_, 4..) if widest <= 128 => const { &[Tiles::new(64, 16, 2, 4), LEAST] },
        // head_dim 256: 20.6; 4 rows by 16 lanes 18.9.
        (_, 8..) => const { &[Tiles::new(64, 16, 2, 8), Tiles::new(64, 8, 2, 8), LEAST] },
        // Without shuffles, head_dim 64: 26.8, one row to an invocation as long as the registers hold it; 4 rows by 4
        // lanes in workgroup memory 12.0.
        _ if widest <= 64 => const { &[Tiles::new(128, 32, 1, 1), LEAST] },
        _ if widest <= 128 => const { &[Tiles::new(64, 8, 2, 4), LEAST] },
        _ => const { &[Tiles::new(32, 4, 2, 8), LEAST] },
    }
}

/// The most rows, of all query heads that share a KV head, for which decoding is tried.
const DECODE_ROWS: u64 = 32;

/// Rows of all query heads that share a KV head.
fn rows_of_a_group(shape: &AttentionShape) -> u64 {
    u64::from(shape.num_heads.checked_div(shape.num_heads_kv).unwrap_or(0)) * u64::from(shape.seqlen_q)
}

pub(super) fn decodes(shape: &AttentionShape) -> bool {
    rows_of_a_group(shape) <= DECODE_ROWS
}

/// Whether so few rows leave most of a large GPU idle.
pub(super) fn is_small(shape: &AttentionShape) -> bool {
    shape.lse_len() <= 6144
}

/// Tiles for decoding to try, the best first; none where there are too many rows for it.
pub(super) fn decode_candidates(capabilities: &Capabilities, shape: &AttentionShape) -> &'static [Tiles] {
    let rows = rows_of_a_group(shape);
    let subgroup = if capabilities.subgroups { capabilities.subgroup_min_size } else { 1 };
    if !decodes(shape) {
        return &[];
    }
    let widest = shape.head_dim.max(shape.head_dim_v);
    // Not yet measured on a GPU. What a lane holds of Q and of O, rows times quads, is kept at 16 registers four wide, and
    // the groups of a workgroup many enough for 128 invocations. lavapipe (Mesa 22.3.6), 8 heads over 2, 4096 keys, in ms:
    // head_dim 64 1.5, 128 5.4; with one row tile of 64 rows, as for more rows, 90 and 184.
    match (rows, subgroup) {
        (0..=2, 8..) if widest <= 128 => const { &[Tiles::decode(2, 64, 8, 16), Tiles::decode(2, 32, 8, 8)] },
        (0..=4, 8..) if widest <= 128 => const { &[Tiles::decode(4, 64, 8, 16), Tiles::decode(4, 32, 8, 8)] },
        (0..=4, 16..) => const { &[Tiles::decode(4, 32, 16, 8), Tiles::decode(4, 16, 16, 4)] },
        (_, 16..) if widest <= 128 => const { &[Tiles::decode(8, 32, 16, 8), Tiles::decode(8, 16, 16, 4)] },
        (_, 32..) => const { &[Tiles::decode(8, 16, 32, 4), Tiles::decode(4, 8, 32, 2)] },
        (_, 8..) if widest <= 64 => const { &[Tiles::decode(8, 32, 8, 8)] },
        (_, 4..) if widest <= 64 => const { &[Tiles::decode(4, 32, 4, 8)] },
        // Lanes that meet in workgroup memory.
        _ if widest <= 128 => const { &[Tiles::decode(4, 32, 8, 8), Tiles::decode(2, 32, 8, 8)] },
        _ => const { &[Tiles::decode(2, 16, 16, 4)] },
    }
}

/// Tiles to try for a kernel of the backward pass, the best first. The last of each list fits WebGPU's least limits.
pub(super) fn backward_candidates(
    kernel: Kernel,
    capabilities: &Capabilities,
    shape: &AttentionShape,
) -> &'static [Tiles] {
    // Chosen by counting: a row that passes by costs 16 multiply-adds' time for each quad read from workgroup memory, and 4
    // for each shuffle, so two keys (or rows) share it, with as few lanes as leave their registers below 200.
    let widest = shape.head_dim.max(shape.head_dim_v);
    let subgroup = if capabilities.subgroups { capabilities.subgroup_min_size } else { 1 };
    match (kernel, subgroup) {
        (Kernel::FlashBackwardPreprocess, 4..) => const { &[Tiles::new(32, 4, 1, 4)] },
        (Kernel::FlashBackwardPreprocess, _) => const { &[Tiles::new(64, 4, 1, 1)] },
        (Kernel::FlashBackwardDkdv, 8..) if capabilities.device_class == DeviceClass::Cpu => {
            const { &[Tiles::new(8, 32, 4, 8), Tiles::new(4, 32, 4, 8)] }
        }
        (_, 8..) if capabilities.device_class == DeviceClass::Cpu => {
            const { &[Tiles::new(32, 8, 4, 8), Tiles::new(32, 4, 4, 8)] }
        }
        (Kernel::FlashBackwardDkdv, 2..) if widest <= 32 => const { &[Tiles::new(16, 64, 2, 2)] },
        (Kernel::FlashBackwardDkdv, 4..) if widest <= 64 => const { &[Tiles::new(16, 64, 2, 4)] },
        (Kernel::FlashBackwardDkdv, 8..) if widest <= 128 => const { &[Tiles::new(8, 32, 2, 8)] },
        (Kernel::FlashBackwardDkdv, 16..) => const { &[Tiles::new(4, 16, 2, 16)] },
        (_, 2..) if widest <= 32 => const { &[Tiles::new(64, 16, 2, 2)] },
        (_, 4..) if widest <= 64 => const { &[Tiles::new(64, 16, 2, 4)] },
        (_, 8..) if widest <= 128 => const { &[Tiles::new(32, 8, 2, 8)] },
        (_, 16..) => const { &[Tiles::new(16, 4, 2, 16)] },
        // Without shuffles: one invocation to a row as long as the registers hold it.
        (Kernel::FlashBackwardDkdv, _) if widest <= 64 => const { &[Tiles::new(16, 32, 1, 1)] },
        (Kernel::FlashBackwardDkdv, _) => const { &[Tiles::new(4, 16, 1, 4)] },
        _ if widest <= 64 => const { &[Tiles::new(32, 16, 1, 1)] },
        _ => const { &[Tiles::new(16, 4, 1, 4)] },
    }
}

/// Tiles of a kernel of the backward pass on cooperative matrices, the best first.
pub(super) fn cooperative_backward_candidates(
    kernel: Kernel,
    capabilities: &Capabilities,
    problem: &AttentionProblem,
) -> &'static [Tiles] {
    let widest = problem.shape.head_dim.max(problem.shape.head_dim_v);
    let is_narrow = widest <= 64;
    match (kernel, capabilities.matrix_side) {
        // As forward.
        _ if capabilities.device_class == DeviceClass::Cpu => &[],
        // f32 passes in two parts of f16, which take twice the registers. As below, head_dim 64: 7.29; 64 keys and rows 7.63, with
        // twice as many rows or keys in the walked tiles 9.07; 32 rows to a subgroup for dQ 8.98; without matrices 23.8.
        (Kernel::FlashBackwardDkdvCooperative, Some(16)) if problem.element == Element::F32 => match widest {
            0..=64 => const { &[Tiles::cooperative(16, 128, 16, 32, 16), Tiles::cooperative(16, 64, 16, 32, 16)] },
            _ => &[],
        },
        (_, Some(16)) if problem.element == Element::F32 => match widest {
            0..=64 => const { &[Tiles::cooperative(128, 32, 16, 32, 16), Tiles::cooperative(64, 16, 16, 32, 16)] },
            65..=128 => const { &[Tiles::cooperative(64, 16, 16, 32, 16)] },
            _ => &[],
        },
        // The whole backward pass on an NVIDIA H100, 2×16×4096, in ms, tiles of dK and dV and of dQ together. head_dim 64:
        // 2.83; 16 rows to a subgroup 3.81, of dK and dV alone 3.26; 64 keys by 16 rows with 64 query rows by 16 3.48.
        (Kernel::FlashBackwardDkdvCooperative, Some(16)) if is_narrow => {
            const { &[Tiles::cooperative(32, 128, 32, 32, 16), Tiles::cooperative(16, 64, 16, 32, 16)] }
        }
        // head_dim 128: 5.81; 64 keys, 64 query rows for dQ 6.86; 128 keys with 64 query rows by 16 keys for dQ 6.22, by 32
        // 7.13. 32 rows to a subgroup 9.5 and more, the registers spill.
        (Kernel::FlashBackwardDkdvCooperative, Some(16)) => {
            const {
                &[
                    Tiles::cooperative(16, 128, 16, 32, 16),
                    Tiles::cooperative(16, 64, 16, 32, 16),
                    Tiles::cooperative(16, 32, 16, 32, 16),
                ]
            }
        }
        (_, Some(16)) if is_narrow => {
            const { &[Tiles::cooperative(128, 32, 32, 32, 16), Tiles::cooperative(64, 16, 16, 32, 16)] }
        }
        (_, Some(16)) => {
            const {
                &[
                    Tiles::cooperative(128, 32, 16, 32, 16),
                    Tiles::cooperative(64, 16, 16, 32, 16),
                    Tiles::cooperative(32, 16, 16, 32, 16),
                ]
            }
        }
        (_, Some(8)) => const { &[Tiles::cooperative(32, 32, 8, 8, 8), Tiles::cooperative(8, 8, 8, 8, 8)] },
        _ => &[],
    }
}
