//! The files of `shaders/`, and which of them make up a kernel.

use crate::operand::Operand;
use crate::plan::{Access, Kernel, RowReduce, Specialization, Storage};

#[derive(Clone, Copy)]
pub(super) struct File {
    pub name: &'static str,
    pub text: &'static str,
}

macro_rules! file {
    ($name:literal) => {
        File { name: $name, text: include_str!(concat!("../../shaders/", $name)) }
    };
}

/// As `file!`, for kernels on cooperative matrices. WebGPU has none, and a page downloads every byte.
macro_rules! matrix_file {
    ($name:literal) => {
        File { text: if cfg!(target_arch = "wasm32") { "" } else { file!($name).text }, name: $name }
    };
}

pub(super) fn files_of(specialization: &Specialization) -> Vec<File> {
    let mut files = vec![file!("common/params.wgsl"), file!("common/mask.wgsl"), file!("common/block_range.wgsl")];
    let kernel = specialization.kernel;
    if kernel.drops() {
        files.push(file!("common/philox.wgsl"));
    }
    if kernel.operands().iter().any(|(operand, _)| operand.holds_elements()) {
        files.push(match specialization.storage {
            Storage::F32 => file!("slots/element/f32.wgsl"),
            Storage::F16 => file!("slots/element/f16.wgsl"),
            Storage::F16Packed => file!("slots/element/f16_packed.wgsl"),
            Storage::Bf16 => file!("slots/element/bf16.wgsl"),
        });
        files.push(match (specialization.access, specialization.storage) {
            (Access::Quad, _) => file!("slots/access/quad.wgsl"),
            (Access::Single, Storage::F32 | Storage::F16) => file!("slots/access/single.wgsl"),
            (Access::Single, Storage::F16Packed | Storage::Bf16) => file!("slots/access/half_word.wgsl"),
        });
        if specialization.f32_gradients {
            files.push(match specialization.access {
                Access::Quad => file!("slots/f32_store/quad.wgsl"),
                Access::Single => file!("slots/f32_store/single.wgsl"),
            });
        }
        files.push(match kernel {
            kernel if kernel.owns_keys() => file!("common/kv_tile.wgsl"),
            kernel if kernel.packs_heads() => file!("common/group_tile.wgsl"),
            _ => file!("common/q_tile.wgsl"),
        });
        files.push(file!("common/arithmetic.wgsl"));
    }
    if kernel.has_masked_loop()
        || matches!(kernel, Kernel::FlashForwardCooperative | Kernel::FlashForwardCooperativeSplit)
    {
        files.push(file!("common/visits.wgsl"));
    }
    if kernel.has_masked_loop() && kernel.owns_keys() {
        files.push(file!("common/row_steps.wgsl"));
    }
    if kernel.reduces_rows() {
        files.push(match specialization.row_reduce {
            RowReduce::Alone => file!("slots/row_reduce/alone.wgsl"),
            RowReduce::Workgroup => file!("slots/row_reduce/workgroup.wgsl"),
            RowReduce::Subgroup => file!("slots/row_reduce/subgroup.wgsl"),
        });
    }
    if kernel.binds(Operand::Lse) && kernel.binds(Operand::Delta) {
        files.push(file!("common/row_stats.wgsl"));
    }
    if matches!(kernel, Kernel::FlashBackwardDkdv | Kernel::FlashBackwardDq) {
        files.push(match specialization.has_dropout {
            true => file!("slots/keep/philox.wgsl"),
            false => file!("slots/keep/all.wgsl"),
        });
    }
    let is_partial = kernel.binds(Operand::OParts);
    if kernel.split().is_some() || (is_partial && kernel != Kernel::Combine) {
        files.push(match is_partial {
            false => file!("slots/output/whole.wgsl"),
            true => file!("slots/output/partial.wgsl"),
        });
    }
    if kernel.uses_matrices() {
        files.push(match (specialization.storage, specialization.access) {
            (Storage::F16, Access::Quad) => matrix_file!("slots/matrix_operand/stored.wgsl"),
            (Storage::F32, _) => matrix_file!("slots/matrix_operand/split.wgsl"),
            _ => matrix_file!("slots/matrix_operand/converted.wgsl"),
        });
        files.push(match specialization.storage.has_row_units() {
            true => matrix_file!("slots/row_units/own.wgsl"),
            false => matrix_file!("slots/row_units/one.wgsl"),
        });
    }
    match kernel {
        Kernel::FlashForward | Kernel::FlashForwardSplit => {
            files.push(file!("common/flash_tiles.wgsl"));
            files.push(match specialization.tiles.broadcast {
                1 => file!("slots/tile_read/own.wgsl"),
                _ => file!("slots/tile_read/broadcast.wgsl"),
            });
        }
        Kernel::FlashBackwardDq => files.push(file!("common/flash_tiles.wgsl")),
        Kernel::FlashDecode | Kernel::FlashDecodeSplit => files.push(file!("common/decode_tiles.wgsl")),
        Kernel::Combine => files.push(match specialization.parts_in_f32 {
            true => file!("slots/parts/f32.wgsl"),
            false => file!("slots/parts/element.wgsl"),
        }),
        Kernel::FlashBackwardDkdv => files.push(file!("common/flash_q_tiles.wgsl")),
        Kernel::FlashBackwardPreprocess => {}
        Kernel::FlashBackwardDkdvCooperative | Kernel::FlashBackwardDqCooperative => {
            files.push(matrix_file!("common/cooperative_gradient_tiles.wgsl"));
        }
        Kernel::FlashForwardCooperative | Kernel::FlashForwardCooperativeSplit => {
            files.push(matrix_file!("common/cooperative_tiles.wgsl"));
        }
        Kernel::StandardScores | Kernel::StandardDp => files.push(file!("common/standard_product.wgsl")),
        Kernel::StandardSoftmax | Kernel::StandardDs => {}
        Kernel::StandardOutput | Kernel::StandardDq => files.push(file!("common/standard_sum.wgsl")),
        Kernel::StandardDv | Kernel::StandardDk => files.push(file!("common/standard_transposed_sum.wgsl")),
    }
    files.push(match kernel {
        Kernel::FlashForward | Kernel::FlashForwardSplit => file!("flash_forward.wgsl"),
        Kernel::FlashDecode | Kernel::FlashDecodeSplit => file!("flash_decode.wgsl"),
        Kernel::Combine => file!("combine.wgsl"),
        Kernel::FlashForwardCooperative | Kernel::FlashForwardCooperativeSplit => {
            matrix_file!("flash_forward_cooperative.wgsl")
        }
        Kernel::StandardScores => file!("standard_scores.wgsl"),
        Kernel::StandardSoftmax => file!("standard_softmax.wgsl"),
        Kernel::StandardOutput => file!("standard_output.wgsl"),
        Kernel::FlashBackwardPreprocess => file!("flash_backward_preprocess.wgsl"),
        Kernel::FlashBackwardDkdv => file!("flash_backward_dkdv.wgsl"),
        Kernel::FlashBackwardDq => file!("flash_backward_dq.wgsl"),
        Kernel::FlashBackwardDkdvCooperative => matrix_file!("flash_backward_dkdv_cooperative.wgsl"),
        Kernel::FlashBackwardDqCooperative => matrix_file!("flash_backward_dq_cooperative.wgsl"),
        Kernel::StandardDp => file!("standard_dp.wgsl"),
        Kernel::StandardDs => file!("standard_ds.wgsl"),
        Kernel::StandardDv => file!("standard_dv.wgsl"),
        Kernel::StandardDk => file!("standard_dk.wgsl"),
        Kernel::StandardDq => file!("standard_dq.wgsl"),
    });
    files
}
