//! The files of `shaders/`, and which of them make up a kernel.

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

pub(super) fn files_of(specialization: &Specialization) -> Vec<File> {
    let mut files = vec![file!("common/params.wgsl"), file!("common/mask.wgsl"), file!("common/block_range.wgsl")];
    let kernel = specialization.kernel;
    if matches!(kernel, Kernel::FlashForward | Kernel::FlashForwardCooperative | Kernel::StandardSoftmax) {
        files.push(file!("common/philox.wgsl"));
    }
    if kernel != Kernel::StandardSoftmax {
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
        files.push(file!("common/q_tile.wgsl"));
        files.push(file!("common/arithmetic.wgsl"));
    }
    match kernel {
        Kernel::FlashForward => {
            files.push(match specialization.row_reduce {
                RowReduce::Alone => file!("slots/row_reduce/alone.wgsl"),
                RowReduce::Workgroup => file!("slots/row_reduce/workgroup.wgsl"),
                RowReduce::Subgroup => file!("slots/row_reduce/subgroup.wgsl"),
            });
            files.push(file!("common/flash_tiles.wgsl"));
        }
        Kernel::FlashForwardCooperative => files.push(file!("common/cooperative_tiles.wgsl")),
        Kernel::StandardScores => {
            files.extend([file!("common/standard_kv_tile.wgsl"), file!("common/standard_qk_tiles.wgsl")]);
        }
        Kernel::StandardSoftmax => {}
        Kernel::StandardOutput => {
            files.extend([file!("common/standard_kv_tile.wgsl"), file!("common/standard_pv_tiles.wgsl")]);
        }
    }
    files.push(match kernel {
        Kernel::FlashForward => file!("flash_forward.wgsl"),
        Kernel::FlashForwardCooperative => file!("flash_forward_cooperative.wgsl"),
        Kernel::StandardScores => file!("standard_scores.wgsl"),
        Kernel::StandardSoftmax => file!("standard_softmax.wgsl"),
        Kernel::StandardOutput => file!("standard_output.wgsl"),
    });
    files
}
