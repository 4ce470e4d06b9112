use super::shape::AttentionShape;

/// Where the element (batch, row, head, dim) of one tensor lies in its buffer, in elements:
/// `offset + batch · stride_batch + row · stride_row + head · stride_head + dim`.
///
/// Inputs may repeat memory (a stride of 0 broadcasts); outputs may not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TensorLayout {
    /// First element.
    pub offset: u64,
    /// Elements from one sequence to the next.
    pub stride_batch: u64,
    /// Elements from one row (token) to the next.
    pub stride_row: u64,
    /// Elements from one head to the next.
    pub stride_head: u64,
}

impl TensorLayout {
    /// Contiguous `[batch, rows, heads, dim]`.
    pub fn bshd(rows: u32, heads: u32, dim: u32) -> Self {
        let (rows, heads, dim) = (u64::from(rows), u64::from(heads), u64::from(dim));
        Self { offset: 0, stride_batch: rows.saturating_mul(heads * dim), stride_row: heads * dim, stride_head: dim }
    }

    /// Contiguous `[batch, heads, rows, dim]`.
    pub fn bhsd(rows: u32, heads: u32, dim: u32) -> Self {
        let (rows, heads, dim) = (u64::from(rows), u64::from(heads), u64::from(dim));
        Self { offset: 0, stride_batch: heads.saturating_mul(rows * dim), stride_row: dim, stride_head: rows * dim }
    }

    /// The element index of (batch, row, head, 0). It wraps on layouts that [planning](crate::Plan) refuses.
    pub fn index(&self, batch: u32, row: u32, head: u32) -> u64 {
        self.offset
            .wrapping_add(u64::from(batch).wrapping_mul(self.stride_batch))
            .wrapping_add(u64::from(row).wrapping_mul(self.stride_row))
            .wrapping_add(u64::from(head).wrapping_mul(self.stride_head))
    }

    /// Elements that a buffer must hold for a tensor of this extent (0 if it has no elements), or `None` if that
    /// number passes 2⁶⁴ − 1.
    pub fn required_len(&self, batch: u32, rows: u32, heads: u32, dim: u32) -> Option<u64> {
        if batch == 0 || rows == 0 || heads == 0 || dim == 0 {
            return Some(0);
        }
        let last = |count: u32, stride: u64| u64::from(count - 1).checked_mul(stride);
        self.offset
            .checked_add(last(batch, self.stride_batch)?)?
            .checked_add(last(rows, self.stride_row)?)?
            .checked_add(last(heads, self.stride_head)?)?
            .checked_add(u64::from(dim))
    }
}

/// The layouts of Q, K, V and O. LSE is always contiguous `[batch, num_heads, seqlen_q]`, of packed sequences `[num_heads, total_q]`.
/// Where [sequences are packed](crate::AttentionProblem::with_cu_seqlens), `stride_batch` has no meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AttentionLayout {
    /// Q, `head_dim` wide.
    pub q: TensorLayout,
    /// K, `head_dim` wide.
    pub k: TensorLayout,
    /// V, `head_dim_v` wide.
    pub v: TensorLayout,
    /// O, `head_dim_v` wide.
    pub o: TensorLayout,
}

impl AttentionLayout {
    /// Contiguous `[batch, rows, heads, dim]`: FlashAttention's layout.
    pub fn bshd(shape: &AttentionShape) -> Self {
        Self::contiguous(shape, TensorLayout::bshd)
    }

    /// Contiguous `[batch, heads, rows, dim]`: the layout of PyTorch's `scaled_dot_product_attention`.
    pub fn bhsd(shape: &AttentionShape) -> Self {
        Self::contiguous(shape, TensorLayout::bhsd)
    }

    /// Q, K and V as views of one buffer `[batch, rows, num_heads + 2 · num_heads_kv, dim]`, the output of a fused
    /// projection. Pass the same buffer three times. O is contiguous `bshd`. This needs seqlen_q = seqlen_kv and
    /// head_dim = head_dim_v. With other shapes the views are still in bounds of a buffer that is long enough. Numbers
    /// that do not fit 64 bits become 2⁶⁴ − 1, which planning refuses.
    pub fn packed_qkv(shape: &AttentionShape) -> Self {
        let heads = u64::from(shape.num_heads) + 2 * u64::from(shape.num_heads_kv);
        let dim = u64::from(shape.head_dim);
        let view = |first_head: u64| TensorLayout {
            offset: first_head.saturating_mul(dim),
            stride_batch: u64::from(shape.seqlen_q).saturating_mul(heads.saturating_mul(dim)),
            stride_row: heads.saturating_mul(dim),
            stride_head: dim,
        };
        Self {
            q: view(0),
            k: view(u64::from(shape.num_heads)),
            v: view(u64::from(shape.num_heads) + u64::from(shape.num_heads_kv)),
            o: TensorLayout::bshd(shape.seqlen_q, shape.num_heads, shape.head_dim_v),
        }
    }

    fn contiguous(shape: &AttentionShape, layout: fn(u32, u32, u32) -> TensorLayout) -> Self {
        Self {
            q: layout(shape.seqlen_q, shape.num_heads, shape.head_dim),
            k: layout(shape.seqlen_kv, shape.num_heads_kv, shape.head_dim),
            v: layout(shape.seqlen_kv, shape.num_heads_kv, shape.head_dim_v),
            o: layout(shape.seqlen_q, shape.num_heads, shape.head_dim_v),
        }
    }
}
