use std::fmt;

/// The sides of a workgroup's tiles, and how its invocations share them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
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
    /// Groups of lanes that share the keys of a tile, four keys at a time. It is 1 except for decoding.
    pub key_lanes: u32,
    /// Invocations of a subgroup that load K and V for each other and broadcast them. It is 1 if each invocation loads what
    /// it needs.
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

/// Bytes of a quad in workgroup memory, which always holds f32.
pub(super) const QUAD: u64 = 16;

/// What a workgroup owns one tile of. It goes over the tiles of the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Owns {
    /// Rows of Q and O.
    Rows,
    /// Rows of K and V.
    Keys,
    /// Whole heads, of all sequences. Such a kernel has no tiles.
    Heads,
    /// Entries of a bias: rows by keys. It goes over all tiles of scores that share them.
    Entries,
    /// All. Such a kernel has no tiles.
    Everything,
    /// Some sequences, of which it reads how long they are. Such a kernel has no tiles.
    Sequences,
}

impl Tiles {
    /// For kernels that have no tiles.
    pub(crate) const NONE: Self = Self::new(1, 4, 1, 1);

    /// Tiles with these sides.
    pub const fn new(tile_q: u32, tile_kv: u32, thread_rows: u32, lanes: u32) -> Self {
        Self { tile_q, tile_kv, thread_rows, lanes, key_lanes: 1, broadcast: 1, matrix_side: None }
    }

    /// Tiles whose invocations own whole rows and load K and V together. `broadcast` is the size of a subgroup.
    pub const fn broadcasting(tile_q: u32, tile_kv: u32, thread_rows: u32, broadcast: u32) -> Self {
        Self { tile_q, tile_kv, thread_rows, lanes: 1, key_lanes: 1, broadcast, matrix_side: None }
    }

    /// Tiles for decoding. There are `key_lanes` groups of `lanes` invocations, and each group holds all `tile_q` rows in
    /// registers.
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

    /// Whether some kernel could have these sides. Plans have no others. The numbers below saturate.
    pub(crate) fn are_in_range(&self) -> bool {
        let Self { tile_q, tile_kv, thread_rows, lanes, key_lanes, broadcast, matrix_side } = *self;
        let mut sides = [tile_q, tile_kv, thread_rows, lanes, key_lanes, broadcast].into_iter();
        sides.all(|side| (1..=1024).contains(&side)) && matrix_side.is_none_or(|side| [8, 16].contains(&side))
    }

    /// Quads of a row that all its lanes hold together.
    pub(super) fn row_quads(&self, head_dim: u32) -> u64 {
        u64::from(self.lanes) * u64::from(self.quads(head_dim))
    }

    /// Invocations of a workgroup.
    pub const fn invocations(&self) -> u32 {
        self.invocations_of(Owns::Rows)
    }

    /// Rows, or keys, of the tile that a workgroup owns.
    pub(crate) const fn owned(&self, owns: Owns) -> u32 {
        match owns {
            Owns::Keys => self.tile_kv,
            _ => self.tile_q,
        }
    }

    /// Keys, or rows, of a tile that the workgroup goes over.
    pub(crate) const fn passing(&self, owns: Owns) -> u32 {
        match owns {
            Owns::Keys => self.tile_q,
            _ => self.tile_kv,
        }
    }

    /// Invocations of a workgroup that owns rows, or keys.
    pub(crate) const fn invocations_of(&self, owns: Owns) -> u32 {
        match self.owned(owns).checked_div(self.thread_rows) {
            Some(groups) => self.lanes.saturating_mul(groups).saturating_mul(self.key_lanes),
            None => 0,
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
}
