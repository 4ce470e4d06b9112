//! Where the tensors of an operation lie, and which part of each a dispatch needs. No other file says this.

use super::direction::Direction;
use super::kernels::LengthsAtCall;
use super::part::Part;
use crate::operand::{Operand, Usage};
use crate::problem::{
    AppendProblem, AttentionProblem, Element, EntryLayout, KeyMask, KvCache, MergeProblem, Pages, ProbabilitiesProblem,
    RotatedQ, ScoreMod, TensorLayout,
};

/// Counts along batch, rows, heads and the contiguous dimension.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Extent {
    pub batch: u32,
    pub rows: u32,
    pub heads: u32,
    pub dim: u32,
}

/// Which part of a tensor a dispatch needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Follows {
    /// The dispatch's rows, of its query heads.
    Rows,
    /// As `Rows`, of a tensor that begins with this query head and row.
    ChosenRows { head_first: u32, row_first: u32 },
    /// The dispatch's keys, of the KV heads that its query heads share: `heads_per_kv` query heads for each.
    Keys { heads_per_kv: u32 },
    /// All rows, of the dispatch's query heads: sequences are packed.
    PackedRows,
    /// All rows, of the KV heads as for `Keys`: sequences are packed.
    PackedKeys { heads_per_kv: u32 },
    /// The dispatch's rows, of the KV heads that its query heads share.
    RowsOfKv { heads_per_kv: u32 },
    /// All pages, of the KV heads that the dispatch's query heads share.
    Pages { heads_per_kv: u32 },
    /// All of it, whatever the dispatch: its entries are found by their place in the whole problem.
    Whole,
    /// All of it: scratch memory, which is laid out anew for each dispatch.
    Scratch,
}

/// A tensor of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tensor {
    pub operand: Operand,
    /// Whether the operation reads or writes it.
    pub usage: Usage,
    /// Whether the caller may leave it out.
    pub optional: bool,
    pub layout: TensorLayout,
    pub extent: Extent,
    /// The type that it is stored in.
    pub element: Element,
    pub follows: Follows,
    /// How many of it there are: one for each split of the keys if it is a partial result, otherwise 1.
    pub num_splits: u32,
    /// Elements from one of these to the next.
    pub stride_split: u64,
    /// Elements from one entry of its last dimension to the next: 1, but for a bias or a mask.
    pub stride_dim: u64,
}

impl Tensor {
    /// Elements that its layout spans, or `None` past 2⁶⁴.
    pub fn len(&self) -> Option<u64> {
        self.len_of(&self.extent)
    }

    /// Bytes that its buffer must hold, whole words, or `None` past 2⁶⁴.
    pub fn bytes(&self) -> Option<u64> {
        self.len()?.checked_mul(self.element.size())?.checked_next_multiple_of(4)
    }

    /// As `bytes`, for a tensor that is known to stay below 2⁶⁴.
    pub fn required_bytes(&self) -> u64 {
        self.bytes().unwrap_or(u64::MAX)
    }

    /// As `len`, of as much of it as `extent` says.
    pub fn len_of(&self, extent: &Extent) -> Option<u64> {
        let Extent { batch, rows, heads, dim } = *extent;
        let span = match u64::from(dim) {
            0 => 0,
            dim => (dim - 1).checked_mul(self.stride_dim)?.checked_add(1)?,
        };
        match (self.layout.required_len(batch, rows, heads, u32::try_from(span).ok()?)?, self.num_splits) {
            (0, _) | (_, 0) => Some(0),
            (len, splits) => len.checked_add(self.stride_split.checked_mul(u64::from(splits - 1))?),
        }
    }

    /// Its extent within a part of the problem.
    pub(super) fn extent_in(&self, part: &Part) -> Extent {
        let at_most = self.extent_at_most(part);
        match self.follows {
            Follows::Keys { heads_per_kv }
            | Follows::PackedKeys { heads_per_kv }
            | Follows::RowsOfKv { heads_per_kv }
            | Follows::Pages { heads_per_kv } => {
                let last = (part.head_first + part.head_count - 1) / heads_per_kv;
                Extent { heads: last - part.head_first / heads_per_kv + 1, ..at_most }
            }
            Follows::Rows | Follows::ChosenRows { .. } | Follows::PackedRows | Follows::Whole | Follows::Scratch => {
                at_most
            }
        }
    }

    /// As `extent_in`, of as many KV heads as a part of this size can touch wherever it starts.
    pub(super) fn extent_at_most(&self, part: &Part) -> Extent {
        let (batch, dim) = (part.batch_count, self.extent.dim);
        let kv_heads = |heads_per_kv: u32| {
            let is_whole = |count: u32| count.is_multiple_of(heads_per_kv);
            let touched = match is_whole(part.head_first) && is_whole(part.head_count) {
                true => part.head_count / heads_per_kv,
                false => (part.head_count - 1).div_ceil(heads_per_kv) + 1,
            };
            touched.min(self.extent.heads)
        };
        match self.follows {
            Follows::Rows | Follows::ChosenRows { .. } => {
                Extent { batch, rows: part.row_count, heads: part.head_count, dim }
            }
            Follows::Keys { heads_per_kv } => {
                Extent { batch, rows: part.key_count, heads: kv_heads(heads_per_kv), dim }
            }
            Follows::RowsOfKv { heads_per_kv } => {
                Extent { batch, rows: part.row_count, heads: kv_heads(heads_per_kv), dim }
            }
            Follows::PackedRows => Extent { heads: part.head_count, ..self.extent },
            Follows::PackedKeys { heads_per_kv } | Follows::Pages { heads_per_kv } => {
                Extent { heads: kv_heads(heads_per_kv), ..self.extent }
            }
            Follows::Whole | Follows::Scratch => self.extent,
        }
    }

    /// The index of a part's first element.
    pub(super) fn first_in(&self, part: &Part) -> u64 {
        match self.follows {
            Follows::Rows => self.layout.index(part.batch_first, part.row_first, part.head_first),
            Follows::Keys { heads_per_kv } => {
                self.layout.index(part.batch_first, part.key_first, part.head_first / heads_per_kv)
            }
            Follows::Pages { heads_per_kv } => self.layout.index(0, 0, part.head_first / heads_per_kv),
            Follows::RowsOfKv { heads_per_kv } => {
                self.layout.index(part.batch_first, part.row_first, part.head_first / heads_per_kv)
            }
            Follows::ChosenRows { head_first, row_first } => {
                self.layout.index(part.batch_first, part.row_first - row_first, part.head_first - head_first)
            }
            Follows::PackedRows => self.layout.index(0, 0, part.head_first),
            Follows::PackedKeys { heads_per_kv } => self.layout.index(0, 0, part.head_first / heads_per_kv),
            Follows::Whole => self.layout.offset,
            Follows::Scratch => 0,
        }
    }

    /// Bytes that a part of this size spans at most, counted from its first element.
    pub(super) fn span_at_most(&self, part: &Part) -> Option<u64> {
        let len = self.len_of(&self.extent_at_most(part))?;
        (len - self.layout.offset.min(len)).checked_mul(self.element.size())
    }

    const fn written(mut self) -> Self {
        self.usage = Usage::Write;
        self
    }
}

/// Whether every row of elements starts on and is a whole number of quads.
pub(super) fn in_quads(problem: &AttentionProblem, tensors: &[Tensor]) -> bool {
    // Four bytes of int8 are a word in any case.
    let is_int8 = |tensor: &Tensor| problem.has_int8_cache() && matches!(tensor.operand, Operand::K | Operand::V);
    let is_quad = |tensor: &Tensor| {
        let TensorLayout { offset, stride_batch, stride_row, stride_head } = tensor.layout;
        let numbers = [offset, stride_batch, stride_row, stride_head, tensor.stride_split, tensor.extent.dim.into()];
        numbers.iter().all(|number| number % 4 == 0)
    };
    let of_elements = |tensor: &&Tensor| tensor.operand.holds_elements() || tensor.operand == Operand::OParts;
    tensors.iter().filter(of_elements).all(|tensor| is_int8(tensor) || is_quad(tensor))
}

/// The caller's tensors. Those of a merge that hold its parts come from [`parts_to_merge`], probabilities from
/// [`probabilities`].
pub(super) fn tensors(problem: &AttentionProblem, direction: Direction) -> Vec<Tensor> {
    let AttentionProblem { shape, layout, .. } = problem;
    let element = problem.element;
    let q = of_q(problem, Operand::Q, layout.q, shape.head_dim, element);
    let of_kv = |operand, layout, dim| match problem.cache() {
        Some(cache) => of_cache(problem, operand, cache, dim),
        None => of_keys(problem, operand, layout, dim, element),
    };
    let k = of_kv(Operand::K, layout.k, shape.head_dim);
    let v = of_kv(Operand::V, layout.v, shape.head_dim_v);
    let o = of_q(problem, Operand::O, layout.o, shape.head_dim_v, problem.output_element());
    let lse = of_each_row(problem, Operand::Lse);
    let pages = problem.cache().and_then(|cache| cache.pages);
    let page_table = pages.map(|pages| table(problem, Operand::PageTable, [shape.batch, 1, pages.max_pages]));
    let sink = problem.has_sink().then(|| of_each_head(problem, Operand::Sink));
    let entries = tensors_of_entries(problem).chain(lengths(problem)).chain(sink);
    match direction {
        Direction::Forward => {
            [q, k, v, o.written(), lse.written()].into_iter().chain(page_table).chain(entries).collect()
        }
        Direction::Merge => vec![o.written(), lse.written()],
        Direction::Probabilities => {
            [q, k, lse].into_iter().chain(tensors_of_entries(problem)).chain(lengths(problem)).collect()
        }
        // Those come from `tensors_of_append`.
        Direction::Append => Vec::new(),
        Direction::Backward => {
            let layout = problem.gradient_layout();
            let gradient_element = problem.gradient_element();
            let d_o = of_q(problem, Operand::DO, layout.o, shape.head_dim_v, element);
            let d_lse = Tensor { optional: true, ..of_each_row(problem, Operand::DLse) };
            let dq = of_q(problem, Operand::Dq, layout.q, shape.head_dim, gradient_element);
            let dk = of_keys(problem, Operand::Dk, layout.k, shape.head_dim, gradient_element);
            let dv = of_keys(problem, Operand::Dv, layout.v, shape.head_dim_v, gradient_element);
            let written = [dq, dk, dv].map(Tensor::written);
            let dsink = problem.has_sink().then(|| of_each_head(problem, Operand::DSink).written());
            let dbias =
                problem.bias_gradient().map(|(layout, element)| of_dbias(problem, Operand::DBias, &layout, element));
            let more = dsink.into_iter().chain(dbias);
            [q, k, v, o, lse, d_o, d_lse].into_iter().chain(written).chain(more).chain(entries).collect()
        }
    }
}

/// Those of the modifiers and masks that read one.
fn tensors_of_entries(problem: &AttentionProblem) -> impl Iterator<Item = Tensor> {
    let biases = problem.scores().iter().filter_map(|modifier| match modifier {
        ScoreMod::Bias { layout, element } => Some(of_entries(problem, Operand::Bias, layout, 1, *element)),
        ScoreMod::Softcap(_) | ScoreMod::Alibi(_) | ScoreMod::Wgsl(_) => None,
    });
    // Words, which no element is; they have the size of an f32.
    let masks = problem.key_masks().iter().flat_map(|mask| match mask {
        KeyMask::Boolean(layout) => Some(of_entries(problem, Operand::KeyMask, layout, 32, Element::F32)),
        KeyMask::Blocks(_) | KeyMask::Wgsl(_) => None,
    });
    biases.chain(masks).chain(problem.aux_len().map(|len| aux(problem, len)))
}

/// A tensor with an entry for each sequence, query head, row and so many keys.
fn of_entries(
    problem: &AttentionProblem,
    operand: Operand,
    layout: &EntryLayout,
    keys: u32,
    element: Element,
) -> Tensor {
    let &EntryLayout { offset, stride_batch, stride_head, stride_row, stride_key } = layout;
    let in_memory = TensorLayout { offset, stride_batch, stride_row, stride_head };
    let entries = if stride_key == 0 { 1.min(problem.shape.seqlen_kv) } else { problem.shape.seqlen_kv.div_ceil(keys) };
    let tensor = of_rows(problem, operand, in_memory, entries, element);
    Tensor { follows: Follows::Whole, stride_dim: stride_key, ..tensor }
}

/// The gradient of a bias, or the sums that it becomes: an entry for each that the bias has of its own.
fn of_dbias(problem: &AttentionProblem, operand: Operand, layout: &EntryLayout, element: Element) -> Tensor {
    let tensor = of_entries(problem, operand, layout, 1, element).written();
    let [batch, heads, rows, dim] = layout.own(&problem.shape);
    Tensor { extent: Extent { batch, rows, heads, dim }, ..tensor }
}

/// Scratch memory for the sums that become the gradient of a bias in 16 bits.
pub(super) fn dbias_sums(problem: &AttentionProblem) -> Option<Tensor> {
    let (layout, _) = problem.bias_gradient()?;
    Some(of_dbias(problem, Operand::DBiasSums, &layout, Element::F32))
}

/// The partial results that the caller of a merge gives.
pub(super) fn parts_to_merge(merge: &MergeProblem) -> [Tensor; 2] {
    let problem = merge.rows();
    let o = of_rows(&problem, Operand::OParts, merge.layout, merge.shape.head_dim_v, merge.parts_element);
    let lse = of_each_row(&problem, Operand::LseParts);
    let num_splits = merge.num_splits;
    [
        Tensor { num_splits, stride_split: merge.stride_split, ..o },
        Tensor { num_splits, stride_split: merge.lse_stride_split, ..lse },
    ]
}

/// The probabilities of the chosen heads and rows.
pub(super) fn probabilities(chosen: &ProbabilitiesProblem) -> Tensor {
    let ProbabilitiesProblem { attention, heads, rows } = chosen;
    let (num_heads, num_rows, dim) = (heads.len() as u32, rows.len() as u32, attention.shape.seqlen_kv);
    let layout = TensorLayout::bhsd(num_rows, num_heads, dim);
    let tensor = of_rows(attention, Operand::Probabilities, layout, dim, Element::F32).written();
    Tensor {
        extent: Extent { rows: num_rows, heads: num_heads, ..tensor.extent },
        follows: Follows::ChosenRows { head_first: heads.start, row_first: rows.start },
        ..tensor
    }
}

/// What an append reads and writes.
pub(super) fn tensors_of_append(append: &AppendProblem) -> Vec<Tensor> {
    let problem = &append.rows();
    let (shape, element) = (&append.shape, append.element);
    let (packed, cache) = (append.packed_tokens(), &append.cache);
    let whole = |tensor: Tensor, batch: u32, rows: u32| Tensor {
        extent: Extent { batch, rows, ..tensor.extent },
        follows: Follows::Whole,
        ..tensor
    };
    let of_tokens = |tensor: Tensor| packed.map_or(tensor, |total| whole(tensor, 1.min(total), total));
    let of_kv = |operand, layout, dim| {
        let keys = of_keys(problem, operand, layout, dim, element);
        let follows = Follows::RowsOfKv { heads_per_kv: shape.heads_per_kv() };
        of_tokens(Tensor { extent: Extent { rows: shape.seqlen_q, ..keys.extent }, follows, ..keys })
    };
    let of_cache = |operand, layout, dim| {
        let tensor = of_keys(problem, operand, layout, cache.element.row_len(dim), cache.element.entry()).written();
        let [pages, page_size] = cache.counts(shape);
        let is_whole = cache.pages.is_some() || append.has_slot_mapping();
        if is_whole { whole(tensor, pages, page_size) } else { tensor }
    };
    let layout = &append.layout;
    let mut tensors = vec![
        of_kv(Operand::K, layout.k, shape.head_dim),
        of_kv(Operand::V, layout.v, shape.head_dim_v),
        of_cache(Operand::KCache, cache.k, shape.head_dim),
        of_cache(Operand::VCache, cache.v, shape.head_dim_v),
    ];
    let q = of_tokens(of_rows(problem, Operand::Q, layout.q, shape.head_dim, element));
    let rotated = of_tokens(of_rows(problem, Operand::QRotated, layout.o, shape.head_dim, element)).written();
    match append.rotated_q() {
        RotatedQ::None => {}
        RotatedQ::InPlace => tensors.push(q.written()),
        RotatedQ::Apart => tensors.extend([q, rotated]),
    }
    tensors.extend(words_of_append(append).into_iter().map(|(operand, counts)| table(problem, operand, counts)));
    tensors
}

/// Those of an append that hold words or f32, `[batch, rows, dim]`.
fn words_of_append(append: &AppendProblem) -> Vec<(Operand, [u32; 3])> {
    let shape = &append.shape;
    let tokens = append.packed_tokens().map_or([shape.batch, shape.seqlen_q], |total| [1, total]);
    let mut all = Vec::new();
    all.extend(append.has_cache_seqlens().then_some((Operand::CacheSeqlens, [1, 1, shape.batch])));
    if append.has_slot_mapping() {
        all.push((Operand::SlotMapping, [tokens[0], 1, tokens[1]]));
    } else if let Some(pages) = append.cache.pages {
        all.push((Operand::PageTable, [shape.batch, 1, pages.max_pages]));
    }
    all.extend(append.packed_tokens().map(|_| (Operand::CuSeqlensNew, [1, 1, shape.batch.saturating_add(1)])));
    if let Some(rotary) = append.rotary() {
        let [batch, rows] = rotary.positions.map_or(tokens, |positions| [1, positions]);
        let tables = [Operand::RotaryCos, Operand::RotarySin];
        all.extend(tables.map(|operand| (operand, [batch, rows, rotary.rotary_dim / 2])));
    }
    all.extend(append.writes_seqlens().then_some((Operand::NewCacheSeqlens, [1, 1, shape.batch])));
    all
}

/// Contiguous `[batch, rows, dim]`, words or f32.
fn table(problem: &AttentionProblem, operand: Operand, [batch, rows, dim]: [u32; 3]) -> Tensor {
    let usage = if operand == Operand::NewCacheSeqlens { Usage::Write } else { Usage::Read };
    let layout = TensorLayout::bshd(rows, 1, dim);
    let extent = Extent { batch, rows, heads: 1, dim };
    Tensor { usage, extent, layout, ..of_each_head(problem, operand) }
}

/// Scratch memory for LSE and D, two f32 for each row: contiguous `[batch, num_heads, seqlen_q, 2]`, packed `[num_heads,
/// total_q, 2]`.
pub(super) fn row_stats(problem: &AttentionProblem) -> Tensor {
    let layout = TensorLayout::bhsd(rows_of_q(problem), problem.shape.num_heads, 2);
    of_q(problem, Operand::RowStats, layout, 2, Element::F32).written()
}

/// Scratch memory for a matrix of a part's rows and keys, in rows of `stride_row` f32.
pub(super) fn scores(operand: Operand, part: &Part, stride_row: u32) -> Tensor {
    in_scratch(operand, part, stride_row, 1)
}

/// Scratch memory for the partial results of a part: O is `[split, batch, head, row, dim]` with rows of whole quads, LSE
/// `[split, batch, head, row]`.
pub(super) fn partial_results(part: &Part, head_dim_v: u32, num_splits: u32) -> [Tensor; 2] {
    [
        in_scratch(Operand::OParts, part, head_dim_v.next_multiple_of(4), num_splits),
        in_scratch(Operand::LseParts, part, 1, num_splits),
    ]
}

/// A tensor that is read, with rows of `dim` elements for each query head.
fn of_rows(problem: &AttentionProblem, operand: Operand, layout: TensorLayout, dim: u32, element: Element) -> Tensor {
    let shape = &problem.shape;
    Tensor {
        operand,
        usage: Usage::Read,
        optional: false,
        layout,
        extent: Extent { batch: shape.batch, rows: shape.seqlen_q, heads: shape.num_heads, dim },
        element,
        follows: Follows::Rows,
        num_splits: 1,
        stride_split: 0,
        stride_dim: 1,
    }
}

/// As `of_rows`, with the rows of Q, which may be packed.
fn of_q(problem: &AttentionProblem, operand: Operand, layout: TensorLayout, dim: u32, element: Element) -> Tensor {
    let tensor = of_rows(problem, operand, layout, dim, element);
    match problem.total_q() {
        Some(total) => packed(tensor, total, Follows::PackedRows),
        None => tensor,
    }
}

/// K or V in a cache, with rows of `dim` elements.
fn of_cache(problem: &AttentionProblem, operand: Operand, cache: &KvCache, dim: u32) -> Tensor {
    let layout = if operand == Operand::K { cache.k } else { cache.v };
    let keys = of_keys(problem, operand, layout, cache.element.row_len(dim), cache.element.entry());
    let Some(Pages { num_pages, page_size, .. }) = cache.pages else { return keys };
    Tensor {
        extent: Extent { batch: num_pages, rows: page_size, ..keys.extent },
        follows: Follows::Pages { heads_per_kv: problem.shape.heads_per_kv() },
        ..keys
    }
}

/// As `of_rows`, with rows for the keys of each KV head.
fn of_keys(problem: &AttentionProblem, operand: Operand, layout: TensorLayout, dim: u32, element: Element) -> Tensor {
    let shape = &problem.shape;
    let heads_per_kv = shape.heads_per_kv();
    let tensor = Tensor {
        extent: Extent { batch: shape.batch, rows: shape.seqlen_kv, heads: shape.num_heads_kv, dim },
        follows: Follows::Keys { heads_per_kv },
        ..of_rows(problem, operand, layout, dim, element)
    };
    match problem.total_kv() {
        Some(total) => packed(tensor, total, Follows::PackedKeys { heads_per_kv }),
        None => tensor,
    }
}

/// The same tensor with packed sequences. The number of a sequence is that of its first row, as `slots/lengths/packed.wgsl` says.
fn packed(tensor: Tensor, total: u32, follows: Follows) -> Tensor {
    Tensor {
        layout: TensorLayout { stride_batch: tensor.layout.stride_row, ..tensor.layout },
        extent: Extent { batch: 1, rows: total, ..tensor.extent },
        follows,
        ..tensor
    }
}

/// Rows of Q in a sequence, or in all that are packed.
fn rows_of_q(problem: &AttentionProblem) -> u32 {
    problem.total_q().unwrap_or(problem.shape.seqlen_q)
}

/// One f32 for each row: contiguous `[batch, num_heads, seqlen_q]`, packed `[num_heads, total_q]`.
fn of_each_row(problem: &AttentionProblem, operand: Operand) -> Tensor {
    let layout = TensorLayout::bhsd(rows_of_q(problem), problem.shape.num_heads, 1);
    of_q(problem, operand, layout, 1, Element::F32)
}

/// One f32 for each query head.
fn of_each_head(problem: &AttentionProblem, operand: Operand) -> Tensor {
    let each_row = of_each_row(problem, operand);
    Tensor {
        layout: TensorLayout::bhsd(1, problem.shape.num_heads, 1),
        extent: Extent { batch: 1, rows: 1, ..each_row.extent },
        follows: Follows::Whole,
        ..each_row
    }
}

/// The caller's data, f32 or other words of their size.
fn aux(problem: &AttentionProblem, len: u32) -> Tensor {
    words(problem, Operand::Aux, len)
}

/// So many words, which no element is; they have the size of an f32.
fn words(problem: &AttentionProblem, operand: Operand, len: u32) -> Tensor {
    let each_head = of_each_head(problem, operand);
    Tensor { extent: Extent { batch: 1, rows: 1, heads: 1, dim: len }, ..each_head }
}

/// The lengths that come at the call: a word for each sequence; of prefix sums one more.
fn lengths(problem: &AttentionProblem) -> impl Iterator<Item = Tensor> {
    let batch = problem.shape.batch;
    LengthsAtCall::of(problem).operands().map(move |operand| {
        let is_sums = matches!(operand, Operand::CuSeqlensQ | Operand::CuSeqlensKv);
        words(problem, operand, if is_sums && batch > 0 { batch.saturating_add(1) } else { batch })
    })
}

/// Contiguous `[split, batch, head, row, dim]` of f32, for the rows of a part.
fn in_scratch(operand: Operand, part: &Part, dim: u32, num_splits: u32) -> Tensor {
    let Part { batch_count: batch, head_count: heads, row_count: rows, .. } = *part;
    Tensor {
        operand,
        usage: Usage::Write,
        optional: false,
        layout: TensorLayout::bhsd(rows, heads, dim),
        extent: Extent { batch, rows, heads, dim },
        element: Element::F32,
        follows: Follows::Scratch,
        num_splits,
        stride_split: (u64::from(batch) * u64::from(heads)).saturating_mul(rows.into()).saturating_mul(dim.into()),
        stride_dim: 1,
    }
}
