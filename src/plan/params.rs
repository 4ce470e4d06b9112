use super::tensor::Tensor;
use crate::operand::Operand;
use crate::problem::TensorLayout;

/// Declares the uniform once and derives its list of fields, which a test compares with `shaders/common/params.wgsl`.
macro_rules! uniform {
    ($(#[$meta:meta])* pub struct $name:ident { $($field:ident: $type:ty,)* }) => {
        $(#[$meta])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug, Default, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
        pub struct $name { $(#[allow(missing_docs, reason = "the WGSL file documents them")] pub $field: $type,)* }

        impl $name {
            /// Name and byte offset of every field, in order.
            pub const FIELDS: &[(&str, usize)] = &[$((stringify!($field), std::mem::offset_of!($name, $field)),)*];
        }
    };
}

uniform! {
    /// The uniform of every kernel. `shaders/common/params.wgsl` says what each field means.
    pub struct Params {
        seqlen_q: u32,
        seqlen_kv: u32,
        heads_per_kv: u32,
        num_heads: u32,
        batch_first: u32,
        batch_count: u32,
        head_first: u32,
        head_count: u32,
        row_first: u32,
        row_count: u32,
        grid_width: u32,
        mask_offset: i32,
        window_left: i32,
        window_right: i32,
        softmax_scale_log2: f32,
        dropout_threshold: u32,
        dropout_scale: f32,
        philox_seed_low: u32,
        philox_seed_high: u32,
        philox_offset: u32,
        negative_infinity: f32,
        q_offset: u32,
        q_stride_batch: u32,
        q_stride_row: u32,
        q_stride_head: u32,
        k_offset: u32,
        k_stride_batch: u32,
        k_stride_row: u32,
        k_stride_head: u32,
        v_offset: u32,
        v_stride_batch: u32,
        v_stride_row: u32,
        v_stride_head: u32,
        o_offset: u32,
        o_stride_batch: u32,
        o_stride_row: u32,
        o_stride_head: u32,
        lse_offset: u32,
        lse_stride_batch: u32,
        lse_stride_head: u32,
        s_stride_row: u32,
        key_first: u32,
        key_count: u32,
        has_d_lse: u32,
        d_lse_offset: u32,
        row_stats_offset: u32,
        d_o_offset: u32,
        d_o_stride_batch: u32,
        d_o_stride_row: u32,
        d_o_stride_head: u32,
        dq_offset: u32,
        dq_stride_batch: u32,
        dq_stride_row: u32,
        dq_stride_head: u32,
        dk_offset: u32,
        dk_stride_batch: u32,
        dk_stride_row: u32,
        dk_stride_head: u32,
        dv_offset: u32,
        dv_stride_batch: u32,
        dv_stride_row: u32,
        dv_stride_head: u32,
        num_splits: u32,
        o_parts_offset: u32,
        o_parts_stride_split: u32,
        o_parts_stride_batch: u32,
        o_parts_stride_row: u32,
        o_parts_stride_head: u32,
        lse_parts_offset: u32,
        lse_parts_stride_split: u32,
        lse_parts_stride_batch: u32,
        lse_parts_stride_head: u32,
        bias_offset: u32,
        bias_stride_batch: u32,
        bias_stride_head: u32,
        bias_stride_row: u32,
        bias_stride_key: u32,
        key_mask_offset: u32,
        key_mask_stride_batch: u32,
        key_mask_stride_head: u32,
        key_mask_stride_row: u32,
        key_mask_stride_key: u32,
        sink_offset: u32,
        dsink_offset: u32,
        dbias_offset: u32,
        dbias_stride_batch: u32,
        dbias_stride_head: u32,
        dbias_stride_row: u32,
        dbias_stride_key: u32,
        probabilities_offset: u32,
        probabilities_stride_batch: u32,
        probabilities_stride_head: u32,
        k_cache_offset: u32,
        k_cache_stride_batch: u32,
        k_cache_stride_row: u32,
        k_cache_stride_head: u32,
        v_cache_offset: u32,
        v_cache_stride_batch: u32,
        v_cache_stride_row: u32,
        v_cache_stride_head: u32,
        q_rotated_offset: u32,
        q_rotated_stride_batch: u32,
        q_rotated_stride_row: u32,
        q_rotated_stride_head: u32,
        page_size: u32,
        num_pages: u32,
        max_pages: u32,
        rotary_positions: u32,
        token_rows: u32,
        cache_seqlens_offset: u32,
        page_table_offset: u32,
        slot_mapping_offset: u32,
        cu_seqlens_new_offset: u32,
        rotary_cos_offset: u32,
        rotary_sin_offset: u32,
        new_cache_seqlens_offset: u32,
        first_batch: u32,
        first_head: u32,
        first_row: u32,
        first_key: u32,
    }
}

impl Params {
    /// Writes where a tensor lies in what is bound of it. Strides along a dimension of which a part holds one entry are
    /// never used and may pass 32 bits.
    pub(super) fn place(&mut self, tensor: &Tensor, offset: u32) {
        let TensorLayout { stride_batch, stride_row, stride_head, .. } = tensor.layout;
        let [batch, row, head, split, dim] =
            [stride_batch, stride_row, stride_head, tensor.stride_split, tensor.stride_dim].map(|stride| stride as u32);
        match tensor.operand {
            Operand::Q => {
                (self.q_offset, self.q_stride_batch, self.q_stride_row, self.q_stride_head) =
                    (offset, batch, row, head);
            }
            Operand::K => {
                (self.k_offset, self.k_stride_batch, self.k_stride_row, self.k_stride_head) =
                    (offset, batch, row, head);
            }
            Operand::V => {
                (self.v_offset, self.v_stride_batch, self.v_stride_row, self.v_stride_head) =
                    (offset, batch, row, head);
            }
            Operand::O => {
                (self.o_offset, self.o_stride_batch, self.o_stride_row, self.o_stride_head) =
                    (offset, batch, row, head);
            }
            Operand::DO => {
                (self.d_o_offset, self.d_o_stride_batch) = (offset, batch);
                (self.d_o_stride_row, self.d_o_stride_head) = (row, head);
            }
            Operand::Dq => {
                (self.dq_offset, self.dq_stride_batch) = (offset, batch);
                (self.dq_stride_row, self.dq_stride_head) = (row, head);
            }
            Operand::Dk => {
                (self.dk_offset, self.dk_stride_batch) = (offset, batch);
                (self.dk_stride_row, self.dk_stride_head) = (row, head);
            }
            Operand::Dv => {
                (self.dv_offset, self.dv_stride_batch) = (offset, batch);
                (self.dv_stride_row, self.dv_stride_head) = (row, head);
            }
            Operand::Lse => {
                (self.lse_offset, self.lse_stride_batch, self.lse_stride_head) = (offset, batch, head);
            }
            // dLSE has the strides of LSE, and so have the pairs that are the statistics of a row.
            Operand::DLse => (self.has_d_lse, self.d_lse_offset) = (1, offset),
            Operand::RowStats => self.row_stats_offset = offset / 2,
            Operand::OParts => {
                (self.o_parts_offset, self.o_parts_stride_split, self.o_parts_stride_batch) = (offset, split, batch);
                (self.o_parts_stride_row, self.o_parts_stride_head) = (row, head);
            }
            Operand::LseParts => {
                (self.lse_parts_offset, self.lse_parts_stride_split) = (offset, split);
                (self.lse_parts_stride_batch, self.lse_parts_stride_head) = (batch, head);
            }
            Operand::Bias | Operand::KeyMask | Operand::DBias | Operand::Probabilities => {
                self.place_entries(tensor.operand, offset, [batch, head, row, dim])
            }
            Operand::Sink => self.sink_offset = offset,
            Operand::DSink => self.dsink_offset = offset,
            // dP has the strides of S, whose matrices lie one behind another.
            Operand::S => self.s_stride_row = row,
            // The sums start at 0, with the strides of what they become.
            // Aux and lengths are bound from the first entry to the last.
            Operand::Dp | Operand::DBiasSums | Operand::Params | Operand::Tables | Operand::Aux => {}
            Operand::SeqlensQ | Operand::SeqlensKv | Operand::CuSeqlensQ | Operand::CuSeqlensKv => {}
            operand => self.place_append(operand, offset, [batch, row, head]),
        }
    }

    /// K and V are words of four bytes, and count as bytes. Numbers of entries that are bound fit 32 bits.
    pub(super) fn count_kv_in_bytes(&mut self) {
        let of_k = [&mut self.k_offset, &mut self.k_stride_batch, &mut self.k_stride_row, &mut self.k_stride_head];
        let of_v = [&mut self.v_offset, &mut self.v_stride_batch, &mut self.v_stride_row, &mut self.v_stride_head];
        of_k.into_iter().chain(of_v).for_each(|number| *number = number.wrapping_mul(4));
    }

    /// Writes where the tensors of an append lie.
    fn place_append(&mut self, operand: Operand, offset: u32, [batch, row, head]: [u32; 3]) {
        match operand {
            Operand::KCache => {
                (self.k_cache_offset, self.k_cache_stride_batch) = (offset, batch);
                (self.k_cache_stride_row, self.k_cache_stride_head) = (row, head);
            }
            Operand::VCache => {
                (self.v_cache_offset, self.v_cache_stride_batch) = (offset, batch);
                (self.v_cache_stride_row, self.v_cache_stride_head) = (row, head);
            }
            Operand::QRotated => {
                (self.q_rotated_offset, self.q_rotated_stride_batch) = (offset, batch);
                (self.q_rotated_stride_row, self.q_rotated_stride_head) = (row, head);
            }
            Operand::CacheSeqlens => self.cache_seqlens_offset = offset,
            Operand::PageTable => self.page_table_offset = offset,
            Operand::SlotMapping => self.slot_mapping_offset = offset,
            Operand::CuSeqlensNew => self.cu_seqlens_new_offset = offset,
            Operand::RotaryCos => self.rotary_cos_offset = offset,
            Operand::RotarySin => self.rotary_sin_offset = offset,
            Operand::NewCacheSeqlens => self.new_cache_seqlens_offset = offset,
            _ => {}
        }
    }

    /// Writes where the entries of a bias, its gradient, a mask or probabilities lie, and the strides of batch, head, row and key.
    fn place_entries(&mut self, operand: Operand, offset: u32, [batch, head, row, key]: [u32; 4]) {
        match operand {
            Operand::Bias => {
                (self.bias_offset, self.bias_stride_batch, self.bias_stride_head) = (offset, batch, head);
                (self.bias_stride_row, self.bias_stride_key) = (row, key);
            }
            Operand::DBias => {
                (self.dbias_offset, self.dbias_stride_batch, self.dbias_stride_head) = (offset, batch, head);
                (self.dbias_stride_row, self.dbias_stride_key) = (row, key);
            }
            Operand::Probabilities => {
                (self.probabilities_offset, self.s_stride_row) = (offset, row);
                (self.probabilities_stride_batch, self.probabilities_stride_head) = (batch, head);
            }
            _ => {
                (self.key_mask_offset, self.key_mask_stride_batch, self.key_mask_stride_head) = (offset, batch, head);
                (self.key_mask_stride_row, self.key_mask_stride_key) = (row, key);
            }
        }
    }
}
