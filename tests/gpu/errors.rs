//! Each misuse and its exact error.

use half::f16;
use wgpu::BufferUsages;
use wgpu_flash_attention::{
    Algorithm, AttentionProblem, AttentionShape, Call, Element, Error, FlashAttention, ForwardBuffers, InvalidProblem,
    Operand, Plan, PreparedForward, TensorLayout, Tiles,
};

use crate::support::{Library, Tensors, Variant, adapter, inputs, library, limited};

const SHAPE: AttentionShape = AttentionShape::new(2, 4, 10, 8).with_num_heads_kv(2);

fn full() -> &'static Library {
    library(Variant::Full)
}

fn problem() -> AttentionProblem {
    AttentionProblem::new(SHAPE)
}

fn refusal(problem: &AttentionProblem) -> Error {
    full().prepare(problem).expect_err("the problem is refused")
}

fn invalid(problem: &AttentionProblem) -> InvalidProblem {
    match refusal(problem) {
        Error::InvalidProblem(invalid) => invalid,
        other => panic!("{other}"),
    }
}

#[test]
fn heads_that_cannot_be_shared_out() {
    for (num_heads, num_heads_kv) in [(4, 3), (2, 4), (4, 0)] {
        let problem = AttentionProblem::new(AttentionShape { num_heads, num_heads_kv, ..SHAPE });
        assert_eq!(invalid(&problem), InvalidProblem::HeadsMismatch { num_heads, num_heads_kv });
    }
}

#[test]
fn head_dims_without_a_kernel() {
    for found in [0, 257, u32::MAX] {
        let problem = AttentionProblem::new(AttentionShape { head_dim: found, ..SHAPE });
        assert!(
            matches!(invalid(&problem), InvalidProblem::HeadDim { name: "head_dim", found: f, max: 256 } if f == found)
        );
        let problem = AttentionProblem::new(AttentionShape { head_dim_v: found, ..SHAPE });
        assert!(
            matches!(invalid(&problem), InvalidProblem::HeadDim { name: "head_dim_v", found: f, max: 256 } if f == found)
        );
    }
}

#[test]
fn lengths_past_32_bit_positions() {
    for found in [(1 << 29) + 1, u32::MAX] {
        let shapes = [
            ("batch", AttentionShape { batch: found, ..SHAPE }),
            ("num_heads", AttentionShape { num_heads: found, num_heads_kv: found, ..SHAPE }),
            ("seqlen_q", AttentionShape { seqlen_q: found, ..SHAPE }),
            ("seqlen_kv", AttentionShape { seqlen_kv: found, ..SHAPE }),
        ];
        for (expected, shape) in shapes {
            match invalid(&AttentionProblem::new(shape)) {
                InvalidProblem::Length { name, found: f, .. } => assert_eq!((name, f), (expected, found)),
                other => panic!("{other}"),
            }
        }
    }
}

#[test]
fn outputs_that_overlap_themselves() {
    let changes: [fn(&mut TensorLayout); 3] = [|o| o.stride_row = 0, |o| o.stride_head = 7, |o| o.stride_batch = 8];
    for change in changes {
        let mut problem = problem();
        change(&mut problem.layout.o);
        assert_eq!(invalid(&problem), InvalidProblem::LayoutOverlaps(Operand::O));
    }
}

#[test]
fn layouts_past_64_bits() {
    type Change = fn(&mut AttentionProblem);
    let changes: [(Operand, Change); 4] = [
        (Operand::Q, |problem| problem.layout.q.stride_batch = u64::MAX),
        (Operand::K, |problem| problem.layout.k.offset = u64::MAX),
        (Operand::V, |problem| problem.layout.v.stride_row = u64::MAX / 4),
        (Operand::O, |problem| problem.layout.o.stride_head = u64::MAX / 2),
    ];
    for (operand, change) in changes {
        let mut problem = problem();
        change(&mut problem);
        assert_eq!(invalid(&problem), InvalidProblem::LayoutOverflows(operand));
    }
}

#[test]
fn chances_and_scales_that_are_none() {
    for p in [-0.1, 1.0, 1.5, f64::INFINITY] {
        assert_eq!(invalid(&problem().with_dropout(p, 1)), InvalidProblem::DropoutP(p));
    }
    assert!(matches!(invalid(&problem().with_dropout(f64::NAN, 1)), InvalidProblem::DropoutP(p) if p.is_nan()));
    for scale in [f64::INFINITY, f64::NEG_INFINITY, 1e39] {
        assert_eq!(invalid(&problem().with_softmax_scale(scale)), InvalidProblem::SoftmaxScale(scale));
    }
    assert!(
        matches!(invalid(&problem().with_softmax_scale(f64::NAN)), InvalidProblem::SoftmaxScale(scale) if scale.is_nan())
    );
    assert_eq!(invalid(&problem().with_bounded_work(0)), InvalidProblem::NoWorkAllowed);
}

#[test]
fn tensors_past_the_limits_of_the_device() {
    let limited = limited(|capabilities| capabilities.max_buffer = 1000);
    let error = limited.prepare(&problem()).err().unwrap();
    // 2 · 10 · 4 · 8 floats.
    let expected = Error::TooLarge { operand: Operand::Q, needed: 2560, allowed: 1000, limit: "max_buffer_size" };
    assert_eq!(error, expected);

    // Too large for any device, but no length is.
    let shape = AttentionShape::new(1 << 16, 1 << 4, 1 << 26, 256);
    assert!(matches!(refusal(&AttentionProblem::new(shape)), Error::TooLarge { .. }));
}

#[test]
fn devices_too_small_for_any_kernel() {
    let limits = [
        limited(|capabilities| capabilities.max_workgroup_storage = 1024),
        limited(|capabilities| capabilities.max_invocations = 8),
        limited(|capabilities| capabilities.max_workgroups_per_dimension = 1),
    ];
    for limited in limits {
        let problem = AttentionProblem::new(AttentionShape::new(1, 1, 100, 8)).with_algorithm(Algorithm::Standard);
        let error = limited.prepare(&problem).err().unwrap();
        assert!(matches!(error, Error::Unsupported { .. }), "{error}");
    }
}

#[test]
fn plans_for_another_device() {
    let limited = limited(|capabilities| capabilities.max_binding = 1 << 20);
    let plan = Plan::forward(&problem(), limited.capabilities()).build().unwrap();
    let error = pollster::block_on(full().prepare_forward_plan(plan)).err().unwrap();
    assert!(matches!(error, Error::InvalidPlan { what: "capabilities", .. }), "{error}");
}

#[test]
fn tiles_that_make_no_kernel() {
    for algorithm in [Algorithm::Flash, Algorithm::Standard] {
        let problem = problem().with_algorithm(algorithm);
        for tiles in [
            Tiles::new(0, 4, 1, 1),
            Tiles::new(32, 0, 1, 1),
            Tiles::new(32, 16, 0, 4),
            Tiles::new(32, 16, 4, 0),
            Tiles::new(32, 3, 4, 1),
            Tiles::new(30, 16, 4, 4),
            Tiles::new(32, 12, 4, 3),
            Tiles::new(u32::MAX, 16, 1, 4),
            Tiles::new(32, u32::MAX - 3, 1, 4),
        ] {
            let error = full().plan_forward(&problem).with_tiles(&[tiles]).build().expect_err("no such kernel");
            assert!(matches!(error, Error::InvalidPlan { what: "tiles", .. }), "{error}");
        }
    }
}

fn prepared(problem: &AttentionProblem) -> PreparedForward {
    full().prepare(problem).unwrap()
}

fn encode(prepared: &PreparedForward, buffers: &ForwardBuffers) -> Result<(), Error> {
    let mut encoder = full().device().create_command_encoder(&Default::default());
    let result = prepared.encode(&mut encoder, buffers);
    // A refused call must leave an encoder that can still be used.
    full().queue().submit([encoder.finish()]);
    result
}

/// Encodes with one operand's slice replaced.
fn encode_with(operand: Operand, change: impl FnOnce(wgpu::BufferSlice<'_>) -> wgpu::BufferSlice<'_>) -> Error {
    let tensors = Tensors::new(full(), &problem(), &inputs(&problem(), 1));
    let buffers = tensors.buffers();
    let buffers = buffers.with(operand, buffers.get(operand).map(change));
    encode(&prepared(&problem()), &buffers).expect_err("the buffer is refused")
}

const OPERANDS: [Operand; 5] = [Operand::Q, Operand::K, Operand::V, Operand::O, Operand::Lse];

#[test]
fn buffers_that_are_too_small() {
    for operand in OPERANDS {
        let needed = prepared(&problem()).plan().required_bytes(operand);
        let error = encode_with(operand, |slice| slice.slice(..slice.size() - 4));
        assert_eq!(error, Error::BufferTooSmall { operand, needed, found: needed - 4 });
        let error = encode_with(operand, |slice| slice.slice(..0));
        assert_eq!(error, Error::BufferTooSmall { operand, needed, found: 0 });
    }
}

#[test]
fn buffers_at_odd_offsets() {
    for operand in OPERANDS {
        let error = encode_with(operand, |slice| {
            let start = slice.offset() - 4;
            slice.buffer().slice(start..start + slice.size())
        });
        // The tensors of these tests start at byte 272.
        assert_eq!(error, Error::BufferAlignment { operand, needed: 16, found: 268 });
    }
}

#[test]
fn buffers_without_storage_usage() {
    let usage = BufferUsages::COPY_SRC | BufferUsages::COPY_DST;
    let descriptor = wgpu::BufferDescriptor { label: None, size: 1 << 16, usage, mapped_at_creation: false };
    let buffer = full().device().create_buffer(&descriptor);
    for operand in OPERANDS {
        let tensors = Tensors::new(full(), &problem(), &inputs(&problem(), 1));
        let buffers = tensors.buffers().with(operand, buffer.slice(..));
        let error = encode(&prepared(&problem()), &buffers).unwrap_err();
        assert_eq!(error, Error::BufferUsage { operand, needed: "STORAGE" });
    }
}

#[test]
fn outputs_that_share_a_buffer() {
    let tensors = Tensors::new(full(), &problem(), &inputs(&problem(), 1));
    let prepared = prepared(&problem());
    let good = tensors.buffers();
    let cases = [
        (good.with(Operand::O, good.get(Operand::Q)), Operand::O, Operand::Q),
        (good.with(Operand::K, good.get(Operand::O)), Operand::O, Operand::K),
        (good.with(Operand::V, good.get(Operand::Lse)), Operand::Lse, Operand::V),
    ];
    // Two outputs may share one, but not a place in it.
    let error = encode(&prepared, &good.with(Operand::Lse, good.get(Operand::O))).unwrap_err();
    assert_eq!(error, Error::BufferAliased { output: Operand::O, other: Operand::Lse });
    // Large enough for every operand, so that sharing is all that is wrong.
    for (case, output, other) in cases {
        let size = 16384;
        let usage = BufferUsages::STORAGE;
        let descriptor = wgpu::BufferDescriptor { label: None, size, usage, mapped_at_creation: false };
        let shared = full().device().create_buffer(&descriptor);
        let mut buffers = case;
        for operand in [output, other] {
            // The two halves: not even slices that do not meet.
            let half = if operand == output { shared.slice(..size / 2) } else { shared.slice(size / 2..) };
            buffers = buffers.with(operand, half);
        }
        match encode(&prepared, &buffers).unwrap_err() {
            Error::BufferAliased { output: found, other: found_other } => {
                assert_eq!([found, found_other], [output, other]);
            }
            error => panic!("{error}"),
        }
    }
}

#[test]
fn inputs_may_share_a_buffer() {
    let problem = AttentionProblem::new(AttentionShape::new(1, 2, 10, 8));
    let tensors = Tensors::new(full(), &problem, &inputs(&problem, 1));
    let good = tensors.buffers();
    let q = good.get(Operand::Q);
    encode(&prepared(&problem), &good.with(Operand::K, q).with(Operand::V, q)).unwrap();
}

#[test]
fn calls_longer_than_prepared() {
    let prepared = prepared(&problem());
    let tensors = Tensors::new(full(), &problem(), &inputs(&problem(), 1));
    let calls = [("seqlen_q", Call::new().with_seqlen_q(11)), ("seqlen_kv", Call::new().with_seqlen_kv(11))];
    for (name, call) in calls {
        let expected = Error::LengthExceedsPrepared { name, found: 11, prepared: 10 };
        let mut encoder = full().device().create_command_encoder(&Default::default());
        assert_eq!(prepared.encode_call(&mut encoder, &tensors.buffers(), &call).unwrap_err(), expected);
        assert_eq!(prepared.num_dispatches(&call).unwrap_err(), expected);
        assert_eq!(prepared.encode_dispatches(&mut encoder, &tensors.buffers(), &call, 0..1).unwrap_err(), expected);
    }
}

#[test]
fn dispatches_that_do_not_exist() {
    let prepared = prepared(&problem());
    let tensors = Tensors::new(full(), &problem(), &inputs(&problem(), 1));
    let backwards = std::ops::Range { start: 1, end: 0 };
    for range in [0..2, 1..2, 2..2, backwards] {
        let mut encoder = full().device().create_command_encoder(&Default::default());
        let error = prepared.encode_dispatches(&mut encoder, &tensors.buffers(), &Call::default(), range.clone());
        let expected = Error::NoSuchDispatch { start: range.start, end: range.end, count: 1 };
        assert_eq!(error.unwrap_err(), expected);
    }
}

#[test]
fn slices_that_are_too_short_or_of_another_type() {
    let (q, kv) = (vec![0f32; 640], vec![0f32; 320]);
    let forward = |problem: &AttentionProblem, q: &[f32], k: &[f32], v: &[f32]| {
        pollster::block_on(full().forward(problem, q, k, v)).map(|output| output.o.len())
    };
    assert_eq!(forward(&problem(), &q, &kv, &kv).unwrap(), 640);
    let short = |operand, needed, found| Error::SliceTooShort { operand, needed, found };
    assert_eq!(forward(&problem(), &q[1..], &kv, &kv).unwrap_err(), short(Operand::Q, 640, 639));
    assert_eq!(forward(&problem(), &q, &kv[1..], &kv).unwrap_err(), short(Operand::K, 320, 319));
    assert_eq!(forward(&problem(), &q, &kv, &[]).unwrap_err(), short(Operand::V, 320, 0));

    let expected = Error::ElementMismatch { expected: Element::F16, found: Element::F32 };
    assert_eq!(forward(&problem().with_element(Element::F16), &q, &kv, &kv).unwrap_err(), expected);
    let halves = vec![f16::ZERO; 640];
    let error = pollster::block_on(full().forward(&problem(), &halves, &halves, &halves)).err();
    assert_eq!(error, Some(Error::ElementMismatch { expected: Element::F32, found: Element::F16 }));
}

#[test]
fn messages_say_what_was_given_and_what_is_allowed() {
    let message = refusal(&AttentionProblem::new(SHAPE.with_num_heads_kv(3))).to_string();
    assert!(message.contains('4') && message.contains('3'), "{message}");
    let message = refusal(&AttentionProblem::new(AttentionShape { head_dim: 300, ..SHAPE })).to_string();
    assert!(message.contains("head_dim = 300") && message.contains("256"), "{message}");
    let message = encode_with(Operand::V, |slice| slice.slice(..4)).to_string();
    assert!(message.contains("for v") && message.contains("1280") && message.contains("4 were given"), "{message}");
}

#[test]
fn capabilities_are_only_ever_lowered() {
    let real = full().capabilities().clone();
    let same = limited(|capabilities| {
        capabilities.max_binding = u64::MAX;
        capabilities.max_buffer = u64::MAX;
        capabilities.max_workgroup_storage = u32::MAX;
        capabilities.max_invocations = u32::MAX;
        capabilities.max_workgroups_per_dimension = u32::MAX;
        capabilities.shader_f16 = true;
        capabilities.subgroups = true;
    });
    assert_eq!(*same.capabilities(), real);
}

#[test]
fn a_lost_device_is_an_error_and_no_panic() {
    let lost = pollster::block_on(FlashAttention::from_adapter(adapter())).unwrap();
    let (q, kv) = (vec![0f32; 640], vec![0f32; 320]);
    let forward = || pollster::block_on(lost.forward(&problem(), &q, &kv, &kv));
    forward().unwrap();
    lost.device().destroy();
    let error = forward().unwrap_err();
    assert!(matches!(error, Error::DeviceLost(_)), "{error}");
    let error = pollster::block_on(lost.prepare_forward(&problem())).map(|_| ()).unwrap_err();
    assert!(matches!(error, Error::DeviceLost(_)), "{error}");
}
