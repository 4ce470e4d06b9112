//! The forward pass over shapes, element types, layouts and device abilities.

use half::{bf16, f16};
use wgpu_flash_attention::{
    AttentionLayout, AttentionProblem, AttentionShape, Element, ElementType, FlashAttention, ForwardOutput,
};

use crate::support::{Inputs, Random, Variant, adapter, check, inputs, library, limited, run, strided};

fn check_seeded(variant: Variant, problem: &AttentionProblem, seed: u64) {
    check(library(variant), problem, &inputs(problem, seed));
}

/// (head_dim, head_dim_v): what models use, what no model uses, and V of another width.
const WIDTHS: [(u32, u32); 18] = [
    (1, 1),
    (3, 8),
    (8, 3),
    (31, 31),
    (32, 32),
    (40, 40),
    (59, 64),
    (64, 1),
    (64, 64),
    (80, 80),
    (96, 32),
    (111, 111),
    (128, 128),
    (160, 59),
    (192, 128),
    (256, 256),
    (1, 256),
    (255, 2),
];

fn check_widths(element: Element, widths: impl Iterator<Item = (u32, u32)>) {
    for (n, (head_dim, head_dim_v)) in widths.enumerate() {
        let shape = AttentionShape::new(1, 2, 37 + n as u32, head_dim)
            .with_seqlen_kv(50 - n as u32)
            .with_head_dim_v(head_dim_v);
        check_seeded(Variant::Full, &AttentionProblem::new(shape).with_element(element), n as u64);
    }
}

#[test]
fn every_head_dim_in_f32() {
    check_widths(Element::F32, WIDTHS.into_iter());
}

// Every width in one of the two: a software driver compiles for two seconds per width and element.

#[test]
fn half_of_the_head_dims_in_f16() {
    check_widths(Element::F16, WIDTHS.into_iter().step_by(2));
}

#[test]
fn the_other_half_in_bf16() {
    check_widths(Element::Bf16, WIDTHS.into_iter().skip(1).step_by(2));
}

#[test]
fn every_remainder_modulo_the_tile_sides() {
    for variant in Variant::TILES {
        for remainder in 0..64 {
            // 64 query lengths modulo 64, and 32 key lengths modulo 32 in another order; 0 is a whole tile.
            let (seqlen_q, seqlen_kv) = (64 - remainder, 32 + (remainder * 13 + 1) % 32);
            let shape = AttentionShape::new(1, 1, seqlen_q, 32).with_seqlen_kv(seqlen_kv);
            check_seeded(variant, &AttentionProblem::new(shape), u64::from(remainder));
        }
    }
}

#[test]
fn short_and_long_lengths() {
    let lengths = [(1, 1), (1, 1024), (113, 203), (128, 217), (256, 512), (512, 256), (1023, 1024), (1024, 1023)];
    for (n, (seqlen_q, seqlen_kv)) in lengths.into_iter().enumerate() {
        let shape = AttentionShape::new(1, 1, seqlen_q, 32).with_seqlen_kv(seqlen_kv);
        check_seeded(Variant::Full, &AttentionProblem::new(shape), n as u64);
        check_seeded(Variant::Full, &AttentionProblem::new(shape).with_causal(), n as u64);
    }
}

#[test]
fn heads_and_batches() {
    for &element in Element::ALL {
        for (num_heads, num_heads_kv) in [(1, 1), (6, 6), (6, 2), (6, 1)] {
            for batch in [1, 3] {
                let shape =
                    AttentionShape::new(batch, num_heads, 35, 32).with_seqlen_kv(19).with_num_heads_kv(num_heads_kv);
                check_seeded(Variant::Full, &AttentionProblem::new(shape).with_element(element), u64::from(batch));
            }
        }
    }
}

fn layouts(shape: AttentionShape) -> [AttentionLayout; 5] {
    [
        AttentionLayout::bshd(&shape),
        AttentionLayout::bhsd(&shape),
        AttentionLayout::packed_qkv(&shape),
        strided(&shape, false),
        strided(&shape, true),
    ]
}

#[test]
fn every_layout() {
    for (variant, elements) in [(Variant::Full, Element::ALL), (Variant::NoShaderF16, &[Element::F16])] {
        for &element in elements {
            // 7 puts every second row of a contiguous tensor on an odd element.
            for head_dim in [7, 32] {
                let shape = AttentionShape::new(3, 4, 21, head_dim).with_num_heads_kv(2);
                for layout in layouts(shape) {
                    check_seeded(
                        variant,
                        &AttentionProblem::new(shape).with_element(element).with_layout(layout).with_causal(),
                        5,
                    );
                }
            }
        }
    }
}

#[test]
fn layouts_change_no_bit() {
    let shape = AttentionShape::new(2, 4, 21, 8).with_num_heads_kv(2);
    let plain = AttentionProblem::new(shape);
    let expected = run(library(Variant::Full), &plain, &inputs(&plain, 3));
    let bhsd = plain.clone().with_layout(AttentionLayout::bhsd(&shape));
    // From [batch, row, head, 8] to [batch, head, row, 8].
    let moved = |values: &[f64], rows: u32, heads: u32| -> Vec<f64> {
        let mut moved = vec![0.0; values.len()];
        for (n, chunk) in values.chunks(8).enumerate() {
            let (head, row, batch) = (n as u32 % heads, n as u32 / heads % rows, n as u32 / heads / rows);
            moved[(((batch * heads + head) * rows + row) * 8) as usize..][..8].copy_from_slice(chunk);
        }
        moved
    };
    let Inputs { q, k, v, .. } = inputs(&plain, 3);
    let placed = Inputs { q: moved(&q, 21, 4), k: moved(&k, 21, 2), v: moved(&v, 21, 2), ..Inputs::default() };
    let output = run(library(Variant::Full), &bhsd, &placed);
    assert_eq!(output.lse(), expected.lse());
    assert_eq!(output.o(), moved(&expected.o(), 21, 4));
}

#[test]
fn inputs_may_broadcast() {
    // One K and V for all batches and heads, through strides of 0.
    let shape = AttentionShape::new(2, 2, 9, 8);
    let mut layout = AttentionLayout::bshd(&shape);
    for tensor in [&mut layout.k, &mut layout.v] {
        (tensor.stride_batch, tensor.stride_row, tensor.stride_head) = (0, 8, 0);
    }
    check_seeded(Variant::Full, &AttentionProblem::new(shape).with_layout(layout), 1);
}

#[test]
fn every_device_ability() {
    for variant in Variant::ALL {
        // Element by element and in bf16 where that is another path; in whole quads everywhere.
        let every_path = matches!(variant, Variant::Full | Variant::WebGpuDefaults);
        for element in Element::ALL.iter().copied().filter(|element| every_path || *element != Element::Bf16) {
            for (head_dim, head_dim_v) in [(40, 24)].into_iter().chain(every_path.then_some((31, 20))) {
                let shape = AttentionShape::new(1, 4, 67, head_dim)
                    .with_seqlen_kv(45)
                    .with_num_heads_kv(2)
                    .with_head_dim_v(head_dim_v);
                let problem = AttentionProblem::new(shape).with_element(element);
                check_seeded(variant, &problem.with_window(Some(20), Some(3)).with_dropout(0.2, 77), 8);
            }
        }
    }
}

#[test]
fn wide_heads_fit_a_device_with_default_limits() {
    let shape = AttentionShape::new(1, 1, 40, 256);
    check_seeded(Variant::WebGpuDefaults, &AttentionProblem::new(shape).with_element(Element::F16).with_causal(), 8);
    let capabilities = library(Variant::WebGpuDefaults).capabilities();
    assert!(!capabilities.shader_f16 && !capabilities.subgroups);
    assert_eq!((capabilities.max_workgroup_storage, capabilities.max_invocations), (16384, 256));
}

#[test]
fn software_f16_equals_the_features_f16_closely() {
    // Same inputs, same f32 arithmetic: only the order of sums may differ, so the stored results differ by rounding.
    let problem = AttentionProblem::new(AttentionShape::new(1, 2, 40, 64)).with_element(Element::F16);
    let inputs = inputs(&problem, 4);
    let native = run(&limited(|capabilities| capabilities.matrix_side = None), &problem, &inputs).o();
    let packed = run(library(Variant::NoShaderF16), &problem, &inputs).o();
    for (native, packed) in native.iter().zip(&packed) {
        assert!((native - packed).abs() <= native.abs() / 1024.0 + 1e-7, "{native} and {packed}");
    }
}

#[test]
fn any_scale() {
    for scale in [0.0, 1.0, -0.7, 2.0, 1e-30] {
        let shape = AttentionShape::new(1, 2, 33, 32);
        check_seeded(Variant::Full, &AttentionProblem::new(shape).with_softmax_scale(scale).with_causal(), 2);
    }
}

#[test]
fn scores_far_from_zero() {
    // Scores near ±150 overflow every f32 exponential that is not taken relative to its row's largest.
    let problem = AttentionProblem::new(AttentionShape::new(1, 1, 20, 8).with_seqlen_kv(70)).with_softmax_scale(1.0);
    let mut inputs = inputs(&problem, 6);
    for (n, row) in inputs.q.chunks_mut(8).enumerate() {
        row[0] = if n % 2 == 0 { 150.0 } else { -150.0 };
    }
    inputs.k.chunks_mut(8).for_each(|row| row[0] = 1.0);
    // Whole numbers keep the products exact, so that only the softmax is tested.
    for tensor in [&mut inputs.q, &mut inputs.k] {
        tensor.iter_mut().for_each(|value| *value = value.round());
    }
    check(library(Variant::Full), &problem, &inputs);
}

#[test]
fn scores_that_rise_and_fall_along_the_keys() {
    // The online softmax corrects its sum whenever a later tile holds a larger score: at every tile, or never.
    for direction in [1.0, -1.0] {
        let problem =
            AttentionProblem::new(AttentionShape::new(1, 1, 5, 4).with_seqlen_kv(200)).with_softmax_scale(1.0);
        let mut inputs = inputs(&problem, 6);
        inputs.q.fill(1.0);
        inputs.k.fill(0.0);
        for (n, key) in inputs.k.chunks_mut(4).enumerate() {
            key[n % 4] = direction * 0.25 * n as f64;
        }
        check(library(Variant::Full), &problem, &inputs);
    }
}

/// The call that takes slices, against the same problem through buffers.
fn slices<T: ElementType + PartialEq>() {
    let problem = AttentionProblem::new(AttentionShape::new(2, 2, 13, 7).with_seqlen_kv(9).with_head_dim_v(5))
        .with_element(T::ELEMENT);
    let inputs = inputs(&problem, 9);
    let typed = |values: &[f64]| -> Vec<T> { values.iter().map(|value| T::from_f64(*value)).collect() };
    let library = library(Variant::Full);
    let [q, k, v] = [&inputs.q, &inputs.k, &inputs.v].map(|values| typed(values));
    let forward = library.forward(&problem, &q, &k, &v);
    let ForwardOutput { o, lse, .. } = pollster::block_on(forward).unwrap();
    let expected = run(library, &problem, &inputs);
    assert_eq!(o.iter().map(|value| value.to_f64()).collect::<Vec<_>>(), expected.o());
    assert_eq!(lse.iter().map(|value| f64::from(*value)).collect::<Vec<_>>(), expected.lse());
}

#[test]
fn slices_go_in_and_out() {
    slices::<f32>();
    slices::<f16>();
    slices::<bf16>();
}

#[test]
fn the_library_finds_a_device_by_itself() {
    let problem = AttentionProblem::new(AttentionShape::new(1, 1, 3, 8));
    let values = [0.5f32; 24];
    for attention in [
        pollster::block_on(FlashAttention::request()).unwrap(),
        pollster::block_on(FlashAttention::from_adapter(adapter())).unwrap(),
    ] {
        let output = pollster::block_on(attention.forward(&problem, &values, &values, &values)).unwrap();
        assert!(output.o.iter().all(|o| (o - 0.5).abs() < 1e-6));
    }
}

#[test]
fn the_generator_is_normal_and_rounds_to_the_element() {
    let mut random = Random(1);
    let drawn: Vec<f64> = (0..10_000).map(|_| random.normal()).collect();
    let mean = drawn.iter().sum::<f64>() / 1e4;
    let variance = drawn.iter().map(|value| value * value).sum::<f64>() / 1e4;
    assert!(mean.abs() < 0.05 && (variance - 1.0).abs() < 0.1, "mean {mean}, variance {variance}");
    assert_eq!(Element::Bf16.round(1.0 + 1.0 / 300.0), 1.0);
}
