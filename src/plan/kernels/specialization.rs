//! What the text of a kernel depends on.

use super::kernel::Kernel;
use crate::operand::Operand;
use crate::plan::capabilities::Capabilities;
use crate::plan::tile_table::row_maxima;
use crate::plan::tiles::Tiles;
use crate::problem::{AttentionProblem, CacheElement, Element, Role, RotaryPairs, Snippet};

/// How the elements of Q, K, V and O are held in WGSL: the slot `shaders/slots/element/`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Storage {
    /// f32
    F32,
    /// f16, on devices with f16 in shaders
    F16,
    /// f16 in pairs in a u32, on other devices
    F16Packed,
    /// bf16 in pairs in a u32
    Bf16,
}

impl Storage {
    pub(crate) fn of(element: Element, capabilities: &Capabilities) -> Self {
        match element {
            Element::F32 => Storage::F32,
            Element::F16 if capabilities.shader_f16 => Storage::F16,
            Element::F16 => Storage::F16Packed,
            Element::Bf16 => Storage::Bf16,
        }
    }

    /// On cooperative matrices: the number of f16 parts of an element.
    pub(crate) const fn matrix_parts(self) -> u32 {
        match self {
            Storage::F32 => 2,
            Storage::F16 | Storage::F16Packed | Storage::Bf16 => 1,
        }
    }

    /// On cooperative matrices: whether each row is scaled by its own unit, because the range of the type does not fit f16.
    pub(crate) const fn has_row_units(self) -> bool {
        matches!(self, Storage::F32 | Storage::Bf16)
    }
}

/// How rows are read and written: the slot `shaders/slots/access/`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Access {
    /// Four elements at a time: every row starts on and is a whole number of quads.
    Quad,
    /// One element at a time.
    Single,
}

/// How the invocations of a row reduce: the slot `shaders/slots/row_reduce/`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RowReduce {
    /// Not at all: each row has one invocation.
    Alone,
    /// Through workgroup memory.
    Workgroup,
    /// By subgroup shuffles.
    Subgroup,
}

impl RowReduce {
    /// That of tiles on a device.
    pub(crate) fn of(tiles: Tiles, capabilities: &Capabilities) -> Self {
        // A smaller subgroup than a row's lanes would reduce only a part of the row.
        match tiles.lanes {
            _ if tiles.broadcast > 1 => RowReduce::Subgroup,
            1 => RowReduce::Alone,
            lanes if capabilities.subgroups && capabilities.subgroup_min_size >= lanes => RowReduce::Subgroup,
            _ => RowReduce::Workgroup,
        }
    }
}

/// On cooperative matrices, forward: when a row's maximum is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RowMaxima {
    /// The maximum of each row is taken in each tile. K and V are fetched a turn before they are placed.
    Eager {
        /// Whether it is taken before the products with V, not after them.
        is_early: bool,
    },
    /// It is taken only where P has grown too large: the slot `shaders/slots/row_max/`. K and V are fetched in the turn
    /// that places them.
    Lazy {
        /// Whether the next P is taken before fetched tiles are placed, not after.
        takes_first: bool,
    },
}

/// What is done one after another: the names of files of a slot, in their order. Modifiers of the scores are files of
/// `shaders/slots/score/`, masks of `shaders/slots/mask/`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Chain([Option<(&'static str, Option<Operand>)>; Chain::LONGEST]);

impl Chain {
    /// The most that there are of one kind.
    pub(crate) const LONGEST: usize = 4;

    /// Those of a problem, which has each once: each name, and the operand that its WGSL reads, if any.
    pub(crate) fn of(given: impl Iterator<Item = (&'static str, Option<Operand>)>) -> Self {
        let mut chain = Self::default();
        for (index, link) in given.enumerate() {
            debug_assert!(index < chain.0.len(), "a name for each kind");
            chain.0[index] = Some(link);
        }
        chain
    }

    /// The names.
    pub fn names(&self) -> impl DoubleEndedIterator<Item = &'static str> {
        self.0.into_iter().flatten().map(|(name, _)| name)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Whether one of them reads this.
    pub fn reads(&self, operand: Operand) -> bool {
        self.0.into_iter().flatten().any(|(_, read)| read == Some(operand))
    }
}

/// Functions in the caller's own WGSL.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct OwnWgsl {
    pub score: Option<Snippet>,
    pub mask: Option<Snippet>,
    /// Whether rows count as positions among the keys: those over a cache do.
    pub by_position: bool,
}

impl OwnWgsl {
    pub fn of(problem: &AttentionProblem) -> Self {
        let of = |role: Role| problem.snippets().find(|snippet| snippet.role == role).cloned();
        let (score, mask) = (of(Role::Score), of(Role::Mask));
        let by_position = problem.cache().is_some() && (score.is_some() || mask.is_some());
        Self { score, mask, by_position }
    }

    pub fn snippets(&self) -> impl Iterator<Item = &Snippet> {
        self.score.iter().chain(&self.mask)
    }
}

/// Which lengths of sequences are in buffers at each call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct LengthsAtCall {
    /// How many rows of Q each sequence has.
    pub seqlens_q: bool,
    /// How many rows of K and V each sequence has.
    pub seqlens_kv: bool,
    /// Where each sequence begins in Q.
    pub cu_seqlens_q: bool,
    /// Where each sequence begins in K and V.
    pub cu_seqlens_kv: bool,
}

impl LengthsAtCall {
    /// Those of a problem.
    pub(crate) fn of(problem: &AttentionProblem) -> Self {
        let Some(lengths) = problem.lengths() else { return Self::default() };
        Self {
            seqlens_q: lengths.q.has_seqlens_at_call(),
            seqlens_kv: lengths.kv.has_seqlens_at_call(),
            cu_seqlens_q: lengths.q.has_sums_at_call(),
            cu_seqlens_kv: lengths.kv.has_sums_at_call(),
        }
    }

    /// The buffers that hold them.
    pub(crate) fn operands(self) -> impl Iterator<Item = Operand> {
        let all = [
            (Operand::SeqlensQ, self.seqlens_q),
            (Operand::SeqlensKv, self.seqlens_kv),
            (Operand::CuSeqlensQ, self.cu_seqlens_q),
            (Operand::CuSeqlensKv, self.cu_seqlens_kv),
        ];
        all.into_iter().filter(|(_, is_given)| *is_given).map(|(operand, _)| operand)
    }
}

/// How K and V lie in a cache, where this is not as in other tensors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct CachedText {
    /// Their type, if it is another than that of Q: the slot `shaders/slots/cached_element/`.
    pub element: Option<CacheElement>,
    /// Whether they are in pages.
    pub is_paged: bool,
    /// Whether those are whole quads of keys.
    pub pages_are_quads: bool,
}

impl CachedText {
    pub fn of(problem: &AttentionProblem) -> Self {
        let Some(cache) = problem.cache() else { return Self::default() };
        let is_other = cache.element != problem.element.into();
        Self {
            element: is_other.then_some(cache.element),
            is_paged: cache.pages.is_some(),
            pages_are_quads: cache.pages.is_some_and(|pages| pages.page_size.is_multiple_of(4)),
        }
    }
}

/// How the rows that an append writes are stored: the slot `shaders/slots/row_target/`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum RowTarget {
    F32,
    /// 16-bit elements, rows of whole words.
    Pairs,
    /// 16-bit elements, rows that may share a word.
    Halves,
    Int8,
}

/// Where an append writes them: the slot `shaders/slots/row_place/`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum RowPlace {
    /// To the place that they have among the rows that are read.
    Rows,
    /// To the positions of their sequence, side by side.
    Contiguous,
    /// To positions in pages.
    Paged,
    /// To slots.
    Slots,
}

/// What the text of an append depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct AppendText {
    /// The type that is written.
    pub element: CacheElement,
    pub target: RowTarget,
    pub place: RowPlace,
    /// Whether the tokens of all sequences are packed.
    pub packed: bool,
    /// Which dimensions are pairs, and how many are rotated.
    pub rotary: Option<(RotaryPairs, u32)>,
    /// Whether the rotary tables have a row for each position, not for each token.
    pub of_positions: bool,
}

impl AppendText {
    /// Whether it reads the lengths before the append.
    pub fn reads_seqlens(&self) -> bool {
        matches!(self.place, RowPlace::Contiguous | RowPlace::Paged) || self.rotary.is_some() && self.of_positions
    }
}

/// All that the text of a shader depends on. Two passes with equal specializations share one pipeline.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Specialization {
    /// The kernel file.
    pub kernel: Kernel,
    /// The element slot.
    pub storage: Storage,
    /// The access slot.
    pub access: Access,
    /// The row_reduce slot.
    pub row_reduce: RowReduce,
    /// The tiles.
    pub tiles: Tiles,
    /// Width of Q and K.
    pub head_dim: u32,
    /// Width of V and O.
    pub head_dim_v: u32,
    /// Whether a row may be unable to see a key that exists: causal, window or another mask.
    pub has_window: bool,
    /// Whether probabilities are dropped.
    pub has_dropout: bool,
    /// What becomes of the scores.
    pub score_mods: Chain,
    /// What hides keys from rows, beside causal and window.
    pub key_masks: Chain,
    /// Whether the tiles to visit are listed.
    pub has_lists: bool,
    /// Functions in the caller's own WGSL.
    pub(crate) wgsl: OwnWgsl,
    /// Whether each sequence has lengths of its own.
    pub has_lengths: bool,
    /// Whether sequences are packed in Q, and in all that has its rows.
    pub packed_q: bool,
    /// Whether they are packed in K and V too.
    pub packed_kv: bool,
    /// Which lengths come at the call. Only the kernel that reads them uses this.
    pub lengths_at_call: LengthsAtCall,
    /// Whether a sink joins the sum of each row.
    pub has_sink: bool,
    /// The type of what is added to the scores, if something is.
    pub bias_element: Option<Element>,
    /// Whether its rows are whole quads of neighbouring keys.
    pub bias_in_quads: bool,
    /// How K and V lie in a cache.
    pub(crate) cached: CachedText,
    /// What it appends to a cache.
    pub(crate) append: Option<AppendText>,
    /// Whether gradients are stored in f32 though the element is another, or added to others.
    pub f32_gradients: bool,
    /// Whether they are added to what is there.
    pub adds_gradients: bool,
    /// Whether O is stored in f32 though the element is another.
    pub f32_output: bool,
    /// Whether positions of rows and keys are those of a larger problem. Masks need not know.
    pub has_place: bool,
    /// Whether partial results are in f32, for every element. Only their merge uses this.
    pub parts_in_f32: bool,
    /// Whether tiles that need a mask have a separate loop, so that the loop over other tiles needs none. Software drivers
    /// compile slowly and have one loop. Only the kernels with such loops use this.
    pub masked_loop: bool,
    /// Whether a gradient may have so many terms that they are added up a few tiles at a time.
    pub has_long_sums: bool,
    /// Whether the invocations of a subgroup run in lockstep, as on software drivers. Only kernels on cooperative matrices
    /// use this.
    pub in_lockstep: bool,
    /// Whether what it reads may lie in a buffer that it writes. Then every storage variable is declared read_write.
    pub shares_buffers: bool,
}

impl Specialization {
    /// Whether a storage variable that is only read is declared read_write all the same. The tables never are: their buffer is the
    /// library's own, and an early return by a length that may be written would not be uniform, which matrices need.
    pub fn is_declared_writable(&self, operand: Operand) -> bool {
        self.shares_buffers && operand != Operand::Tables
    }

    /// Whether its module needs wgpu's checks: functions in the caller's own WGSL may index their variables out of bounds.
    pub(crate) fn needs_checks(&self) -> bool {
        self.wgsl.snippets().any(|snippet| snippet.has_indices)
    }

    /// Whether it unpacks f16 from words, as every device can.
    pub fn unpacks_f16(&self) -> bool {
        let is_cached = self.cached.element == Some(CacheElement::F16);
        self.storage == Storage::F16Packed || self.bias_element == Some(Element::F16) || is_cached
    }

    /// Whether it holds functions in the caller's own WGSL.
    pub fn has_own_wgsl(&self) -> bool {
        self.wgsl.snippets().next().is_some()
    }

    /// On cooperative matrices, forward.
    pub(crate) fn row_maxima(&self) -> RowMaxima {
        row_maxima(self.storage, self.head_dim.max(self.head_dim_v), self.tiles.thread_rows)
    }

    /// On cooperative matrices: how many lanes fetch a row of so many quads together. If they compute the row's unit, it is
    /// a power of two.
    pub(super) fn matrix_fetch_lanes(&self, quads: u32) -> u32 {
        match self.storage.has_row_units() {
            true => quads.next_power_of_two().min(self.tiles.lanes),
            false => quads,
        }
    }
}
