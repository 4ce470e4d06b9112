//! What the public types promise, told by the compiler. No GPU.

use wgpu_flash_attention::reference::{Arithmetic, BackwardErrors, ForwardErrors, ReferenceGradients, ReferenceOutput};
use wgpu_flash_attention::unstable::{
    Access, Dialect, Dispatch, Kernel, Origin, Origins, Params, Pass, RowReduce, ShaderSource, Specialization, Storage,
    Usage, Window,
};
use wgpu_flash_attention::*;

const fn can_cross_threads<T: Send + Sync + 'static>() {}

#[test]
fn types_can_cross_threads() {
    const {
        can_cross_threads::<FlashAttention>();
        can_cross_threads::<(PreparedForward, PreparedBackward, PreparedMerge, PreparedProbabilities)>();
        can_cross_threads::<(ForwardBuffers, BackwardBuffers, MergeBuffers)>();
        can_cross_threads::<(ForwardOutput<f32>, BackwardOutput<f32>, BackwardSlices<f32>)>();
        can_cross_threads::<(Error, InvalidProblem, Operand)>();
        can_cross_threads::<(Plan, PlanBuilder, Call, Capabilities, DeviceClass, Direction)>();
        can_cross_threads::<(Tiles, TunedTiles, Tuning, Workload)>();
        can_cross_threads::<(AttentionProblem, AttentionShape, AttentionLayout, TensorLayout, MergeProblem)>();
        can_cross_threads::<(Algorithm, Alignment, Dropout, Element, Mask)>();
        can_cross_threads::<(Access, Dialect, Dispatch, Kernel, Origin, Origins, Params, Pass)>();
        can_cross_threads::<(RowReduce, ShaderSource, Specialization, Storage, Usage, Window)>();
        can_cross_threads::<(Arithmetic, BackwardErrors, ForwardErrors, ReferenceGradients, ReferenceOutput)>();
    }
}

/// Executors of servers move futures between threads.
#[test]
fn futures_can_cross_threads() {
    fn can_be_sent(_: impl Send) {}
    fn of(attention: &FlashAttention, problem: &AttentionProblem, merge: &MergeProblem, slices: BackwardSlices<f32>) {
        can_be_sent(FlashAttention::request());
        can_be_sent(attention.prepare_forward(problem));
        can_be_sent(attention.prepare_backward(problem));
        can_be_sent(attention.prepare_merge(merge));
        can_be_sent(attention.forward(problem, slices.q, slices.k, slices.v));
        can_be_sent(attention.backward(problem, &slices));
        can_be_sent(attention.merge::<f32, f32>(merge, slices.o, slices.lse));
    }
    let _ = of;
}

/// A caller needs no wgpu and no half of its own, which might be of another version.
#[test]
fn the_crates_of_the_interface_are_exported() {
    mod exported {
        pub use wgpu_flash_attention::{half::f16, wgpu::Adapter};
    }
    let _: fn(&exported::Adapter) -> ::wgpu::DeviceDescriptor<'static> = FlashAttention::device_descriptor;
    assert_eq!(exported::f16::ELEMENT, Element::F16);
}
