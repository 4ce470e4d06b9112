use super::attention::AttentionProblem;
use super::cache::KvCache;
use super::element::Element;
use super::layout::{AttentionLayout, TensorLayout};
use super::shape::AttentionShape;

/// Which dimensions of a row are turned together by rotary embeddings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RotaryPairs {
    /// 2m and 2m + 1 (GPT-J).
    Interleaved,
    /// m and m + rotary_dim / 2 (GPT-NeoX, Llama).
    Halves,
}

/// Rotary embeddings: a pair (x, y) of a row's first `rotary_dim` dimensions becomes (x·cos − y·sin, x·sin + y·cos). The other
/// dimensions stay. Pair m has column m of the tables, which are f32 `[positions, rotary_dim / 2]`, or `[batch, seqlen_q,
/// rotary_dim / 2]` with an entry for each new token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[must_use]
#[non_exhaustive]
pub struct Rotary {
    /// Which dimensions are a pair.
    pub pairs: RotaryPairs,
    /// Dimensions that are turned: even, at most head_dim.
    pub rotary_dim: u32,
    /// Positions that the tables hold, or `None` for tables with a row for each new token.
    pub positions: Option<u32>,
}

impl Rotary {
    /// Turns dimensions 2m and 2m + 1 together, by tables of this many positions.
    pub const fn interleaved(rotary_dim: u32, positions: u32) -> Self {
        Self { pairs: RotaryPairs::Interleaved, rotary_dim, positions: Some(positions) }
    }

    /// Turns dimensions m and m + rotary_dim / 2 together, by tables of this many positions.
    pub const fn halves(rotary_dim: u32, positions: u32) -> Self {
        Self { pairs: RotaryPairs::Halves, rotary_dim, positions: Some(positions) }
    }

    /// Takes tables with a row for each new token, `[batch, seqlen_q, rotary_dim / 2]`, or `[total, rotary_dim / 2]` of packed ones.
    pub const fn per_token(mut self) -> Self {
        self.positions = None;
        self
    }
}

/// What is done with Q.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum RotatedQ {
    None,
    InPlace,
    Apart,
}

/// What an append reads and writes beside rows, all of the GPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct AppendTables {
    pub slot_mapping: bool,
    pub writes_seqlens: bool,
    /// Rows of all sequences together, where they are packed.
    pub packed: Option<u32>,
}

/// Writes the keys and values of new tokens into a [cache](KvCache), converted to its type, and rotates them and Q on request.
///
/// `shape.seqlen_q` is the number of new tokens of each sequence, `shape.seqlen_kv` the most positions that a sequence has in the
/// cache. New K is `[batch, seqlen_q, num_heads_kv, head_dim]`, new V `[batch, seqlen_q, num_heads_kv, head_dim_v]`. Token i of
/// sequence b goes to position `cache_seqlens[b] + i`; `cache_seqlens` is u32 `[batch]` in a buffer on the GPU. What would lie past
/// the last position, or in a page that does not exist, is not written.
///
/// ```
/// use wgpu_flash_attention::{AppendProblem, AttentionShape, CacheElement, Element, KvCache, Rotary};
///
/// // One new token for each of 4 sequences of at most 4096 tokens.
/// let shape = AttentionShape::new(4, 32, 1, 128).with_num_heads_kv(8).with_seqlen_kv(4096);
/// let append = AppendProblem::new(shape, KvCache::contiguous(&shape, CacheElement::F16))
///     .with_element(Element::F16)
///     .with_rotary(Rotary::halves(128, 4096))
///     .with_rotated_q_in_place();
/// assert_eq!(append.rotary().map(|rotary| rotary.rotary_dim), Some(128));
/// ```
#[derive(Clone, Debug, PartialEq)]
#[must_use]
#[non_exhaustive]
pub struct AppendProblem {
    /// New tokens of each sequence (`seqlen_q`), positions of the cache (`seqlen_kv`), heads and head dimensions.
    pub shape: AttentionShape,
    /// The type of the new K and V, and of Q.
    pub element: Element,
    /// Where Q and the new K and V lie; `o` is where Q goes if it is rotated into another buffer. Of packed tokens `stride_batch` is
    /// not used.
    pub layout: AttentionLayout,
    /// The cache.
    pub cache: KvCache,
    rotary: Option<Rotary>,
    rotated_q: RotatedQ,
    tables: AppendTables,
}

impl AppendProblem {
    /// Appends f32 in the `bshd` layout, without rotary embeddings.
    pub fn new(shape: AttentionShape, cache: KvCache) -> Self {
        let AttentionShape { seqlen_q, num_heads, num_heads_kv, head_dim, head_dim_v, .. } = shape;
        let q = TensorLayout::bshd(seqlen_q, num_heads, head_dim);
        let k = TensorLayout::bshd(seqlen_q, num_heads_kv, head_dim);
        let v = TensorLayout::bshd(seqlen_q, num_heads_kv, head_dim_v);
        Self {
            shape,
            element: Element::F32,
            layout: AttentionLayout { q, k, v, o: q },
            cache,
            rotary: None,
            rotated_q: RotatedQ::None,
            tables: AppendTables::default(),
        }
    }

    /// Takes Q and new K and V in this type.
    pub fn with_element(mut self, element: Element) -> Self {
        self.element = element;
        self
    }

    /// Places Q, the new K and V, and (as `o`) the rotated Q.
    pub fn with_layout(mut self, layout: AttentionLayout) -> Self {
        self.layout = layout;
        self
    }

    /// Rotates the new K, by the tables of [`Operand::RotaryCos`](crate::Operand::RotaryCos) and
    /// [`Operand::RotarySin`](crate::Operand::RotarySin). Positions past the last of the tables take the last.
    pub fn with_rotary(mut self, rotary: Rotary) -> Self {
        self.rotary = Some(rotary);
        self
    }

    /// Rotates Q too, `[batch, seqlen_q, num_heads, head_dim]`, and writes it over itself.
    pub fn with_rotated_q_in_place(mut self) -> Self {
        self.rotated_q = RotatedQ::InPlace;
        self
    }

    /// Rotates Q too, and writes it to [`Operand::QRotated`](crate::Operand::QRotated).
    pub fn with_rotated_q(mut self) -> Self {
        self.rotated_q = RotatedQ::Apart;
        self
    }

    /// Says by slots where tokens go, not by lengths: [`Operand::SlotMapping`](crate::Operand::SlotMapping) is u32 `[batch,
    /// seqlen_q]`. Slot s is row s % page_size of page s / page_size; in a contiguous cache a sequence counts as a page of
    /// seqlen_kv positions. 0xffffffff, and slots that do not exist, store nothing. Tables of positions still need
    /// `cache_seqlens`.
    pub fn with_slot_mapping(mut self) -> Self {
        self.tables.slot_mapping = true;
        self
    }

    /// Writes the new lengths to [`Operand::NewCacheSeqlens`](crate::Operand::NewCacheSeqlens), u32 `[batch]`: `cache_seqlens` and the
    /// new tokens, at most seqlen_kv.
    pub fn with_new_cache_seqlens(mut self) -> Self {
        self.tables.writes_seqlens = true;
        self
    }

    /// Takes packed tokens: Q, new K and V are `[total, heads, dim]`, and the rows of sequence b are those from `cu_seqlens_new[b]` to
    /// `cu_seqlens_new[b + 1]`, u32 `[batch + 1]` in the buffer of [`Operand::CuSeqlensNew`](crate::Operand::CuSeqlensNew).
    /// `shape.seqlen_q` is the most that a sequence may have. A slot mapping is `[total]`.
    pub fn with_packed_tokens(mut self, total: u32) -> Self {
        self.tables.packed = Some(total);
        self
    }

    /// The rotary embeddings, if there are any.
    pub fn rotary(&self) -> Option<Rotary> {
        self.rotary
    }

    /// Rows of all sequences together, if tokens are packed.
    pub fn packed_tokens(&self) -> Option<u32> {
        self.tables.packed
    }

    /// Whether slots say where tokens go.
    pub fn has_slot_mapping(&self) -> bool {
        self.tables.slot_mapping
    }

    /// Whether it reads `cache_seqlens`.
    pub fn has_cache_seqlens(&self) -> bool {
        let of_positions = self.rotary.is_some_and(|rotary| rotary.positions.is_some());
        !self.tables.slot_mapping || self.tables.writes_seqlens || of_positions
    }

    pub(crate) fn rotated_q(&self) -> RotatedQ {
        self.rotated_q
    }

    pub(crate) fn writes_seqlens(&self) -> bool {
        self.tables.writes_seqlens
    }

    /// The problem whose rows and keys these are.
    pub(crate) fn rows(&self) -> AttentionProblem {
        AttentionProblem::new(self.shape).with_element(self.element).with_layout(self.layout)
    }

    /// What contradicts itself, by name, if anything does. `most` is the largest length.
    pub(crate) fn fault(&self, most: u32) -> Option<(&'static str, String)> {
        if let Some(reason) = self.cache.fault(&self.shape, most) {
            return Some(("cache", reason));
        }
        let (head_dim, is_rotated) = (self.shape.head_dim, self.rotated_q != RotatedQ::None);
        match self.rotary {
            Some(Rotary { rotary_dim, .. }) if rotary_dim == 0 || rotary_dim % 2 == 1 || rotary_dim > head_dim => {
                Some((
                    "rotary",
                    format!("rotary_dim = {rotary_dim}; it must be even, at least 2 and at most head_dim = {head_dim}"),
                ))
            }
            Some(Rotary { positions: Some(0), .. }) => Some(("rotary", "the tables have 0 positions".into())),
            None if is_rotated => Some(("rotary", "Q is to be rotated, and there are no rotary embeddings".into())),
            _ => {
                let total = self.tables.packed.filter(|total| *total > most)?;
                Some(("packed tokens", format!("{total} rows; at most {most} are supported")))
            }
        }
    }
}
