use super::{Capabilities, DeviceClass, Kernel};
use std::fmt;

/// The sides of a workgroup's tiles.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tiles {
    /// Rows of Q and O in a workgroup.
    pub tile_q: u32,
    /// Keys in a tile of K and V; a multiple of 4.
    pub tile_kv: u32,
    /// Rows that one invocation owns.
    pub thread_rows: u32,
    /// Quads of head dimensions that workgroup memory holds at a time; larger heads go through in chunks.
    pub chunk_quads: u32,
}

impl fmt::Display for Tiles {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}x{}", self.tile_q, self.tile_kv)
    }
}

impl Tiles {
    /// Tiles with these sides.
    pub const fn new(tile_q: u32, tile_kv: u32, thread_rows: u32, chunk_quads: u32) -> Self {
        Self { tile_q, tile_kv, thread_rows, chunk_quads }
    }

    /// Whether these are tiles at all, and kernels made of them fit the device.
    pub(super) fn fit(&self, kernels: &[Kernel], capabilities: &Capabilities, head_dim: u32, head_dim_v: u32) -> bool {
        let Self { tile_q, tile_kv, thread_rows, chunk_quads } = *self;
        // The row reductions pair lanes off, so the lanes must be a power of two; sides beyond these fit no device.
        let in_range = [tile_q, tile_kv, thread_rows, chunk_quads].iter().all(|side| (1..=1024).contains(side));
        in_range
            && tile_kv >= 4
            && tile_kv.is_power_of_two()
            && tile_q.is_multiple_of(thread_rows)
            && self.invocations().max(SOFTMAX_INVOCATIONS) <= capabilities.max_invocations
            && kernels.iter().all(|&kernel| {
                self.workgroup_bytes(kernel, head_dim, head_dim_v, false) <= capabilities.max_workgroup_storage
            })
    }

    /// Invocations side by side along the keys, four keys each.
    pub const fn key_lanes(&self) -> u32 {
        self.tile_kv / 4
    }

    /// Invocations of a workgroup.
    pub const fn invocations(&self) -> u32 {
        self.key_lanes() * (self.tile_q / self.thread_rows)
    }

    /// In how many chunks Q and K pass, and how many quads of head dimensions each holds.
    pub const fn k_chunks(&self, head_dim: u32) -> (u32, u32) {
        let quads = head_dim.div_ceil(4);
        let chunks = quads.div_ceil(self.chunk_quads);
        (chunks, quads.div_ceil(chunks))
    }

    /// In how many chunks V passes, and how many quads of each one invocation owns.
    pub const fn v_chunks(&self, head_dim_v: u32) -> (u32, u32) {
        let quads_per_lane = head_dim_v.div_ceil(4).div_ceil(self.key_lanes());
        let at_most = self.chunk_quads / self.key_lanes();
        let chunks = quads_per_lane.div_ceil(if at_most == 0 { 1 } else { at_most });
        (chunks, quads_per_lane.div_ceil(chunks))
    }

    /// Bytes of workgroup memory. A test compares this with the shader.
    pub fn workgroup_bytes(&self, kernel: Kernel, head_dim: u32, head_dim_v: u32, subgroups: bool) -> u32 {
        const QUAD: u32 = 16;
        let k_chunk = self.k_chunks(head_dim).1;
        let v_chunk = self.v_chunks(head_dim_v).1 * self.key_lanes();
        let q_tile = QUAD * self.tile_q * (k_chunk | 1);
        let kv_tile = QUAD * self.tile_kv * (k_chunk.max(v_chunk) | 1);
        let p_tile = QUAD * self.tile_q * (self.key_lanes() | 1);
        let row_partials = if subgroups { 0 } else { 4 * self.tile_q * self.key_lanes() };
        match kernel {
            Kernel::FlashForward => q_tile + kv_tile + p_tile + row_partials,
            Kernel::StandardScores => q_tile + kv_tile,
            Kernel::StandardSoftmax => 8 * SOFTMAX_INVOCATIONS,
            Kernel::StandardOutput => p_tile + kv_tile,
        }
    }
}

/// Invocations that share a row in `standard_softmax.wgsl`.
pub(crate) const SOFTMAX_INVOCATIONS: u32 = 64;

/// Tiles to try, the best first: the first that fits the device's limits is taken. The last fits WebGPU's least limits
/// at every head_dim.
pub(crate) fn candidates(class: DeviceClass, head_dim: u32, head_dim_v: u32) -> &'static [Tiles] {
    let widest = if head_dim > head_dim_v { head_dim } else { head_dim_v };
    match class {
        DeviceClass::Cpu => const { &[Tiles::new(32, 16, 4, 16), Tiles::new(16, 16, 4, 8)] },
        _ if widest <= 64 => {
            const { &[Tiles::new(64, 32, 8, 16), Tiles::new(32, 16, 4, 16), Tiles::new(16, 16, 4, 8)] }
        }
        _ => const { &[Tiles::new(64, 32, 4, 32), Tiles::new(32, 16, 4, 16), Tiles::new(16, 16, 4, 8)] },
    }
}
