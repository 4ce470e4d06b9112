use super::attention::AttentionProblem;
use super::element::Element;
use super::layout::TensorLayout;
use super::shape::AttentionShape;

/// The merge of partial results, each the attention of the same rows over other keys:
/// `O = Σ exp(LSE_s − LSE) · O_s` with `LSE = ln Σ exp(LSE_s)` over the parts s. Parts may be merged in any order and any
/// grouping. A part that sees nothing of a row has LSE_s = −∞ there, and its O_s is not read.
///
/// ```
/// use wgpu_flash_attention::{AttentionProblem, AttentionShape, MergeProblem};
///
/// let part = AttentionProblem::new(AttentionShape::new(1, 8, 128, 64).with_seqlen_kv(1000));
/// let merge = MergeProblem::of(&part, 3);
/// assert_eq!(merge.stride_split, 128 * 8 * 64);
/// ```
#[derive(Clone, Debug, PartialEq)]
#[must_use]
#[non_exhaustive]
pub struct MergeProblem {
    /// Lengths, heads and width of O. What it says about keys is not used.
    pub shape: AttentionShape,
    /// How many parts there are. With none, O is 0 and LSE −∞.
    pub num_splits: u32,
    /// The type that O is stored in.
    pub element: Element,
    /// The type that the parts are stored in: that of O, or f32.
    pub parts_element: Element,
    /// Where O lies in its buffer. Each part has the same layout, counted from its own start.
    pub layout: TensorLayout,
    /// Elements from one part of O to the next.
    pub stride_split: u64,
    /// Entries of LSE from one part to the next. Each part is contiguous `[batch, num_heads, seqlen_q]`.
    pub lse_stride_split: u64,
    /// Whether O and LSE hold a result already, which counts as a part.
    pub is_running: bool,
}

impl MergeProblem {
    /// Merges `num_splits` results of `part`, which lie one behind another, into one of the type of its inputs and the same
    /// layout.
    /// [`MergeProblem::with_strides`] sets other distances, for example to align each part to 16 bytes.
    pub fn of(part: &AttentionProblem, num_splits: u32) -> Self {
        let shape = part.shape;
        let layout = part.layout.o;
        let len = layout.required_len(shape.batch, shape.seqlen_q, shape.num_heads, shape.head_dim_v);
        Self {
            shape,
            num_splits,
            element: part.element,
            parts_element: part.output_element(),
            layout,
            stride_split: len.unwrap_or(u64::MAX),
            lse_stride_split: shape.lse_len(),
            is_running: false,
        }
    }

    /// Sets the distance from one part to the next, in elements of O and in entries of LSE.
    pub fn with_strides(mut self, stride_split: u64, lse_stride_split: u64) -> Self {
        self.stride_split = stride_split;
        self.lse_stride_split = lse_stride_split;
        self
    }

    /// Takes parts in f32, for every type of O.
    pub fn with_parts_in_f32(mut self) -> Self {
        self.parts_element = Element::F32;
        self
    }

    /// Folds the parts into the result that O and LSE hold, in place, all in f32. A running result without any keys has
    /// LSE = −∞, whatever its O.
    ///
    /// ```
    /// use wgpu_flash_attention::{AttentionProblem, AttentionShape, Element, MergeProblem};
    ///
    /// let part = AttentionProblem::new(AttentionShape::new(1, 8, 128, 64)).with_element(Element::F16).with_f32_output();
    /// let fold = MergeProblem::of(&part, 1).into_running();
    /// assert_eq!((fold.element, fold.parts_element), (Element::F32, Element::F32));
    /// ```
    pub fn into_running(mut self) -> Self {
        (self.element, self.parts_element, self.is_running) = (Element::F32, Element::F32, true);
        self
    }

    /// The problem without keys whose rows these are.
    pub(crate) fn rows(&self) -> AttentionProblem {
        let mut shape = self.shape;
        (shape.num_heads_kv, shape.seqlen_kv, shape.head_dim) = (shape.num_heads.max(1), 0, shape.head_dim_v);
        let mut problem = AttentionProblem::new(shape).with_element(self.element);
        problem.layout.o = self.layout;
        problem
    }
}
