use super::element::{Element, sealed::Sealed};
use super::layout::TensorLayout;
use super::shape::AttentionShape;
use half::{bf16, f16};

/// The type that a KV cache is stored in. It may differ from that of Q, K and V.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum CacheElement {
    /// 32-bit floats.
    F32,
    /// IEEE half precision.
    F16,
    /// bfloat16.
    Bf16,
    /// Signed bytes with a scale for each token and head. A row is 1 + ⌈dim / 4⌉ words of 32 bits: an f32 scale, the row's largest
    /// magnitude / 127, then the bytes, four in a word, the first in its low byte. An entry is scale · byte. Entries behind the
    /// row's end are 0. A row of zeros has scale 0; a row with something that is not finite has scale NaN.
    Int8,
}

impl CacheElement {
    /// All types of caches.
    pub const ALL: &[CacheElement] = &[CacheElement::F32, CacheElement::F16, CacheElement::Bf16, CacheElement::Int8];

    /// The name used by the CLI and in records.
    pub const fn name(self) -> &'static str {
        match self {
            CacheElement::F32 => "f32",
            CacheElement::F16 => "f16",
            CacheElement::Bf16 => "bf16",
            CacheElement::Int8 => "int8",
        }
    }

    /// Entries of a row of `dim` elements, in which layouts of caches count: elements, or words of int8.
    pub const fn row_len(self, dim: u32) -> u32 {
        match self {
            CacheElement::Int8 => 1 + dim.div_ceil(4),
            CacheElement::F32 | CacheElement::F16 | CacheElement::Bf16 => dim,
        }
    }

    /// The element as large as an entry. Words of int8 have the size of an f32.
    pub(crate) const fn entry(self) -> Element {
        match self {
            CacheElement::F32 | CacheElement::Int8 => Element::F32,
            CacheElement::F16 => Element::F16,
            CacheElement::Bf16 => Element::Bf16,
        }
    }
}

impl From<Element> for CacheElement {
    fn from(element: Element) -> Self {
        match element {
            Element::F32 => CacheElement::F32,
            Element::F16 => CacheElement::F16,
            Element::Bf16 => CacheElement::Bf16,
        }
    }
}

/// A Rust type that stands for a [`CacheElement`]: `f32`, `half::f16`, `half::bf16`, or `u32` for the words of int8.
pub trait CacheType: bytemuck::Pod + Send + Sync + Sealed {
    /// The type of cache that it stands for.
    const CACHE_ELEMENT: CacheElement;
}

impl Sealed for u32 {}

macro_rules! cache_types {
    ($($type:ty => $element:ident,)*) => {
        $(impl CacheType for $type { const CACHE_ELEMENT: CacheElement = CacheElement::$element; })*
    };
}

cache_types! { f32 => F32, f16 => F16, bf16 => Bf16, u32 => Int8, }

/// Pages of a cache: `[num_pages, page_size, num_heads_kv, dim]`. Position p of sequence b is row p % page_size of page
/// `page_table[b, p / page_size]`, where `page_table` is u32 `[batch, max_pages]`. Entries of the table that no position needs may
/// hold anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Pages {
    /// Pages that there are, for all sequences together.
    pub num_pages: u32,
    /// Positions of a page, at least 1.
    pub page_size: u32,
    /// Entries of the page table for each sequence: enough for seqlen_kv positions.
    pub max_pages: u32,
}

/// Where the keys and values of past tokens are kept, and how. Contiguous, K is `[batch, seqlen_kv, num_heads_kv, head_dim]` and V
/// `[batch, seqlen_kv, num_heads_kv, head_dim_v]`, where seqlen_kv is the most positions that a sequence may have.
///
/// ```
/// use wgpu_flash_attention::{AttentionShape, CacheElement, KvCache};
///
/// // 4 sequences of at most 4096 tokens, in pages of 16 tokens; 300 pages for all of them.
/// let shape = AttentionShape::new(4, 32, 1, 128).with_num_heads_kv(8).with_seqlen_kv(4096);
/// let cache = KvCache::paged(&shape, CacheElement::Int8, 300, 16);
/// assert_eq!(cache.required_len_of_k(&shape), Some(300 * 16 * 8 * 33));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[must_use]
#[non_exhaustive]
pub struct KvCache {
    /// The type that it is stored in.
    pub element: CacheElement,
    /// The pages it is in, or `None` where each sequence has its positions side by side.
    pub pages: Option<Pages>,
    /// Where K lies, in entries ([`CacheElement::row_len`]); `stride_batch` goes from one page to the next where there are pages.
    pub k: TensorLayout,
    /// Where V lies, likewise.
    pub v: TensorLayout,
}

impl KvCache {
    /// `[batch, seqlen_kv, num_heads_kv, dim]`, contiguous.
    pub fn contiguous(shape: &AttentionShape, element: CacheElement) -> Self {
        Self::of_rows(shape, element, shape.seqlen_kv, None)
    }

    /// `[num_pages, page_size, num_heads_kv, dim]`, contiguous, with as many entries of the page table for each sequence as
    /// seqlen_kv needs.
    pub fn paged(shape: &AttentionShape, element: CacheElement, num_pages: u32, page_size: u32) -> Self {
        let max_pages = shape.seqlen_kv.div_ceil(page_size.max(1));
        Self::of_rows(shape, element, page_size, Some(Pages { num_pages, page_size, max_pages }))
    }

    /// Places K and V otherwise.
    pub fn with_layouts(mut self, k: TensorLayout, v: TensorLayout) -> Self {
        (self.k, self.v) = (k, v);
        self
    }

    /// Gives each sequence this many entries of the page table, at least as many as seqlen_kv needs. Nothing changes without pages.
    pub fn with_max_pages(mut self, max_pages: u32) -> Self {
        self.pages = self.pages.map(|pages| Pages { max_pages, ..pages });
        self
    }

    /// Entries that the buffer of K must hold, or `None` past 2⁶⁴.
    pub fn required_len_of_k(&self, shape: &AttentionShape) -> Option<u64> {
        let [count, rows] = self.counts(shape);
        self.k.required_len(count, rows, shape.num_heads_kv, self.element.row_len(shape.head_dim))
    }

    /// Entries that the buffer of V must hold, or `None` past 2⁶⁴.
    pub fn required_len_of_v(&self, shape: &AttentionShape) -> Option<u64> {
        let [count, rows] = self.counts(shape);
        self.v.required_len(count, rows, shape.num_heads_kv, self.element.row_len(shape.head_dim_v))
    }

    fn of_rows(shape: &AttentionShape, element: CacheElement, rows: u32, pages: Option<Pages>) -> Self {
        let layout = |dim| TensorLayout::bshd(rows, shape.num_heads_kv, element.row_len(dim));
        Self { element, pages, k: layout(shape.head_dim), v: layout(shape.head_dim_v) }
    }

    /// Pages and positions of each. Where positions lie side by side, a sequence is a page.
    pub(crate) fn counts(&self, shape: &AttentionShape) -> [u32; 2] {
        self.pages.map_or([shape.batch, shape.seqlen_kv], |pages| [pages.num_pages, pages.page_size])
    }

    /// What makes it no cache for a problem of this shape, if anything does. `most` is the largest length.
    pub(crate) fn fault(&self, shape: &AttentionShape, most: u32) -> Option<String> {
        let Pages { num_pages, page_size, max_pages } = self.pages?;
        if page_size == 0 {
            return Some("page_size = 0; a page has at least one position".into());
        }
        let counts = [("num_pages", num_pages), ("page_size", page_size), ("max_pages", max_pages)];
        if let Some((name, found)) = counts.into_iter().find(|(_, found)| *found > most) {
            return Some(format!("{name} = {found}; at most {most} is supported"));
        }
        let needed = shape.seqlen_kv.div_ceil(page_size);
        (max_pages < needed).then(|| {
            format!(
                "max_pages = {max_pages} pages of {page_size} hold {} positions, seqlen_kv is {}; {needed} are needed",
                u64::from(max_pages) * u64::from(page_size),
                shape.seqlen_kv
            )
        })
    }
}
