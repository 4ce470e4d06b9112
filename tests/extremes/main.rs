//! Fields are public and built freely, up to the last number that they hold: planning answers or refuses them, soon and
//! without a panic. Overflow checks are on in this profile.

use std::cell::Cell;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestRng, TestRunner};
use wgpu_flash_attention::unstable::{Dialect, Kernel, Origins, ShaderSource};
use wgpu_flash_attention::{
    Algorithm, Alignment, AppendProblem, AttentionLayout, AttentionProblem, AttentionShape, BlockKind, BlockMask,
    CacheElement, Call, Capabilities, DeviceClass, Dropout, Element, EntryLayout, Error, InvalidProblem, KeyMask,
    KvCache, Mask, MaskWgsl, MergeProblem, Operand, Plan, ProbabilitiesProblem, Rotary, ScoreMod, TensorLayout, Tiles,
    TunedTiles, Tuning, WgslOptions, Workload, reference,
};

mod hostile;

/// Modules of the program `flash`.
macro_rules! modules_of_the_program {
    ($($name:ident in $path:tt;)*) => {
        $(
            #[allow(dead_code, reason = "the tests ask a part of the program")]
            #[path = $path]
            mod $name;
        )*
    };
}
modules_of_the_program! {
    arguments in "../../examples/flash/arguments.rs";
    blocks in "../../examples/flash/blocks.rs";
    elements in "../../examples/flash/elements.rs";
    failure in "../../examples/flash/failure.rs";
    own_wgsl in "../../examples/flash/own_wgsl.rs";
    rewritten in "../../examples/flash/rewritten.rs";
    target in "../../examples/flash/target.rs";
    tensors in "../../examples/flash/tensors.rs";
    tuning_file in "../../examples/flash/tune/file.rs";
}

const ALGORITHMS: [Algorithm; 2] = [Algorithm::Flash, Algorithm::Standard];

fn dispatches(plan: &Plan) -> usize {
    plan.dispatches(&Call::default(), &Origins::default()).unwrap().len()
}

/// All shapes whose counts are each 0 or not.
fn zero_shapes() -> impl Iterator<Item = AttentionShape> {
    (0..32).map(|zeros: u32| {
        let count = |bit: u32, count: u32| if zeros >> bit & 1 == 1 { 0 } else { count };
        AttentionShape {
            batch: count(0, 2),
            num_heads: count(1, 4),
            num_heads_kv: count(2, 2),
            seqlen_q: count(3, 40),
            seqlen_kv: count(4, 70),
            head_dim: 8,
            head_dim_v: 5,
        }
    })
}

#[test]
fn counts_of_zero_are_planned() {
    let capabilities = Capabilities::webgpu_defaults();
    // 1 query to a KV head is a shape for decoding.
    let shapes =
        zero_shapes().chain(zero_shapes().map(|shape| AttentionShape { seqlen_q: shape.seqlen_q.min(1), ..shape }));
    for shape in shapes {
        for algorithm in ALGORITHMS {
            let problem = AttentionProblem::new(shape).with_algorithm(algorithm);
            let forward = Plan::forward(&problem, &capabilities).build();
            let backward = Plan::backward(&problem, &capabilities).build();
            if shape.num_heads > 0 && shape.num_heads_kv == 0 {
                let refusal = InvalidProblem::HeadsMismatch { num_heads: shape.num_heads, num_heads_kv: 0 };
                assert_eq!(forward.unwrap_err(), refusal.clone().into());
                assert_eq!(backward.unwrap_err(), refusal.into());
                assert!(Plan::candidates(&problem, &capabilities).is_empty());
                continue;
            }
            let (has_rows, has_keys) = (shape.lse_len() > 0, shape.batch * shape.num_heads_kv * shape.seqlen_kv > 0);
            assert_eq!(dispatches(&forward.unwrap()) > 0, has_rows, "{shape:?}");
            // dQ, or dK and dV of keys that no row sees.
            assert_eq!(dispatches(&backward.unwrap()) > 0, has_rows || has_keys, "{shape:?}");
            let split = Plan::forward(&problem, &capabilities).with_splits(3).build();
            assert_eq!(split.is_ok(), algorithm == Algorithm::Flash, "{shape:?}");
            assert!(split.map_or(0, |plan| dispatches(&plan)) == 0 || has_rows, "{shape:?}");
            for num_splits in [0, 1, 3] {
                let merge = Plan::merge(&MergeProblem::of(&problem, num_splits), &capabilities).build().unwrap();
                assert_eq!(dispatches(&merge) > 0, has_rows, "{shape:?}");
            }
        }
    }
}

#[test]
fn a_head_dim_of_zero_is_refused() {
    for shape in zero_shapes().filter(|shape| shape.num_heads == 0 || shape.num_heads_kv > 0) {
        let problem = AttentionProblem::new(AttentionShape { head_dim: 0, ..shape });
        let error = Plan::forward(&problem, &Capabilities::webgpu_defaults()).build().unwrap_err();
        assert!(matches!(error, Error::InvalidProblem(InvalidProblem::HeadDim { name: "head_dim", .. })), "{error}");
    }
}

#[test]
fn lengths_past_64_bits_saturate() {
    let huge = AttentionShape::new(1 << 22, 1 << 22, 1 << 22, 64);
    assert_eq!(huge.lse_len(), u64::MAX);
    assert_eq!(MergeProblem::of(&AttentionProblem::new(huge), 2).lse_stride_split, u64::MAX);
    let most = AttentionShape::new(u32::MAX, u32::MAX, u32::MAX, u32::MAX);
    assert_eq!(AttentionLayout::packed_qkv(&most).v.offset, u64::MAX);
    assert_eq!(AttentionProblem::new(most).forward_flops(), u64::MAX);
    assert_eq!(TensorLayout::bshd(u32::MAX, u32::MAX, u32::MAX).stride_row, (1 << 32) * ((1 << 32) - 2) + 1);
}

#[test]
fn the_number_of_a_head_wraps_in_the_dropout_mask() {
    let shape = AttentionShape::new(1 << 20, 1 << 20, 4, 8);
    let problem = AttentionProblem::new(shape).with_dropout(0.5, 3);
    for key in 0..64 {
        let far = reference::keeps(&problem, 1 << 12, 5, 1, key);
        assert_eq!(far, reference::keeps(&problem, 0, 5, 1, key));
    }
}

#[test]
fn more_dispatches_than_can_be_held_are_refused() {
    let unlimited = {
        let mut capabilities = Capabilities::webgpu_defaults();
        capabilities.max_buffer = u64::MAX;
        capabilities
    };
    let shape = AttentionShape::new(1, 1, 1 << 29, 64).with_seqlen_kv(64);
    let problem = AttentionProblem::new(shape).with_bounded_work(1);
    let found = match Plan::forward(&problem, &unlimited).build().unwrap_err() {
        Error::TooManyDispatches { found, max } => {
            assert!(found > max);
            found
        }
        other => panic!("{other}"),
    };
    let message = Plan::backward(&problem, &unlimited).build().unwrap_err().to_string();
    assert!(message.contains("bounded_work"), "{message}");
    let less = problem.with_bounded_work(1 << 40);
    let plan = Plan::forward(&less, &unlimited).build().unwrap();
    assert!((dispatches(&plan) as u64) < found / 1000);
}

#[test]
fn tiles_of_any_sides_have_numbers() {
    let sides = [0, 1, 2, 3, 4, 8, 32, 64, 1024, 1025, 1 << 16, u32::MAX];
    let mut runner = runner(4096);
    let side = || prop::sample::select(sides.to_vec());
    let tiles = (side(), side(), side(), side(), side(), side(), prop::option::of(side()));
    let dims = (side(), side(), prop::sample::select(Kernel::ALL.to_vec()));
    let model =
        Plan::forward(&AttentionProblem::new(AttentionShape::new(1, 1, 64, 64)), &Capabilities::webgpu_defaults())
            .build();
    let model = model.unwrap().passes()[0].specialization.clone();
    let outcome = runner.run(&(tiles, dims), |(tiles, (head_dim, head_dim_v, kernel))| {
        let (tile_q, tile_kv, thread_rows, lanes, key_lanes, broadcast, matrix_side) = tiles;
        let mut tiles = Tiles::new(tile_q, tile_kv, thread_rows, lanes);
        (tiles.key_lanes, tiles.broadcast, tiles.matrix_side) = (key_lanes, broadcast, matrix_side);
        let _ = (tiles.invocations(), tiles.quads(head_dim));
        let mut specialization = model.clone();
        (specialization.kernel, specialization.tiles) = (kernel, tiles);
        (specialization.head_dim, specialization.head_dim_v) = (head_dim, head_dim_v);
        let _ = (specialization.workgroup_bytes(), specialization.invocations(), tiles.to_string());
        if tile_q.max(tile_kv) <= 64 {
            let _ = ShaderSource::new(&specialization, Dialect::Naga);
        }
        Ok(())
    });
    outcome.unwrap_or_else(|error| panic!("{error}"));
}

/// The same cases on every run.
fn runner(cases: u32) -> TestRunner {
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha))
}

fn count() -> impl Strategy<Value = u32> {
    let sane = [0, 1, 2, 3, 4, 5, 31, 32, 33];
    let large = [255, 256, 257, 65_535, 65_536, 65_537, 1 << 22, 1 << 29, (1 << 29) + 1, 1 << 31, u32::MAX];
    prop_oneof![2 => prop::sample::select(sane.to_vec()), 1 => prop::sample::select(large.to_vec())]
}

/// Mostly what there is a kernel for.
fn width() -> impl Strategy<Value = u32> {
    prop_oneof![6 => prop::sample::select(vec![1, 3, 8, 31, 64, 255, 256]), 1 => count()]
}

fn stride() -> impl Strategy<Value = u64> {
    let extremes = vec![u64::from(u32::MAX) + 1, 1 << 40, u64::MAX / 4, u64::MAX / 2, u64::MAX - 1, u64::MAX];
    prop_oneof![4 => count().prop_map(u64::from), 1 => prop::sample::select(extremes)]
}

fn layout() -> impl Strategy<Value = TensorLayout> {
    (stride(), stride(), stride(), stride()).prop_map(|(offset, stride_batch, stride_row, stride_head)| TensorLayout {
        offset,
        stride_batch,
        stride_row,
        stride_head,
    })
}

fn shape() -> impl Strategy<Value = AttentionShape> {
    let heads = prop_oneof![
        1 => (count(), count()),
        // Heads that can be shared out.
        3 => (count(), 1..4u32).prop_map(|(kv, group)| (kv.saturating_mul(group), kv)),
    ];
    (count(), heads, count(), count(), width(), width()).prop_map(
        |(batch, (num_heads, num_heads_kv), seqlen_q, seqlen_kv, head_dim, head_dim_v)| AttentionShape {
            batch,
            num_heads,
            num_heads_kv,
            seqlen_q,
            seqlen_kv,
            head_dim,
            head_dim_v,
        },
    )
}

fn layouts(shape: AttentionShape) -> impl Strategy<Value = AttentionLayout> {
    prop_oneof![
        2 => Just(AttentionLayout::bshd(&shape)),
        2 => Just(AttentionLayout::bhsd(&shape)),
        1 => Just(AttentionLayout::packed_qkv(&shape)),
        1 => (layout(), layout(), layout(), layout()).prop_map(|(q, k, v, o)| AttentionLayout { q, k, v, o }),
        // Inputs that broadcast, so that counts need no memory.
        1 => Just(AttentionLayout {
            q: TensorLayout { offset: 0, stride_batch: 0, stride_row: 0, stride_head: 0 },
            k: TensorLayout { offset: 0, stride_batch: 0, stride_row: 0, stride_head: 0 },
            v: TensorLayout { offset: 0, stride_batch: 0, stride_row: 0, stride_head: 0 },
            o: TensorLayout::bshd(shape.seqlen_q, shape.num_heads, shape.head_dim_v),
        }),
    ]
}

/// Where the entries of a bias or a mask lie: as counts say that may be those of the problem, 1, or any, or anywhere.
fn entry_layout(shape: AttentionShape) -> impl Strategy<Value = EntryLayout> {
    let whole = [shape.batch, shape.num_heads, shape.seqlen_q, shape.seqlen_kv];
    let counts = whole.map(|count| prop_oneof![4 => Just(count), 4 => Just(1), 1 => self::count()]);
    let anywhere = (stride(), stride(), stride(), stride(), stride()).prop_map(
        |(offset, stride_batch, stride_head, stride_row, stride_key)| EntryLayout {
            offset,
            stride_batch,
            stride_head,
            stride_row,
            stride_key,
        },
    );
    prop_oneof![
        3 => counts.clone().prop_map(EntryLayout::contiguous),
        3 => counts.prop_map(EntryLayout::packed_bits),
        1 => anywhere,
    ]
}

/// Any pattern; block kinds that fit the shape or not.
fn block_mask(shape: AttentionShape) -> impl Strategy<Value = BlockMask> {
    let kinds = prop::collection::vec(
        prop::sample::select(vec![BlockKind::Absent, BlockKind::Partial, BlockKind::Full]),
        0..20,
    );
    let ids = prop::collection::vec(any::<u32>(), 0..40);
    prop_oneof![
        (count(), count()).prop_map(|(window, global)| BlockMask::longformer(window, global)),
        count().prop_map(BlockMask::strided),
        count().prop_map(BlockMask::prefix),
        (count(), ids).prop_map(|(batch, ids)| BlockMask::documents(batch, &ids)),
        any::<u64>().prop_map(move |seed| BlockMask::bigbird(&shape, seed)),
        Just(BlockMask::butterfly(&shape)),
        ([count(), count(), count(), count()], [count(), count()], kinds)
            .prop_map(|(counts, sides, kinds)| BlockMask::new(counts, sides, &kinds)),
    ]
}

/// A mask with a loop, which reads data of any length.
fn with_own_wgsl(problem: AttentionProblem, aux_len: Option<u32>) -> AttentionProblem {
    let text = "fn mask_mod(batch: u32, head: u32, q_idx: u32, kv_idx: u32) -> bool { loop { break; } return aux[kv_idx] > 0.0; }";
    let mask = MaskWgsl::with_options(text, WgslOptions::new().with_max_turns(u32::MAX)).expect("it is a mask");
    let problem = problem.with_key_mask(KeyMask::Wgsl(mask));
    aux_len.into_iter().fold(problem, AttentionProblem::with_aux)
}

/// With a bias, a boolean mask, a sink, or none of them.
fn with_entries(problem: AttentionProblem) -> impl Strategy<Value = AttentionProblem> {
    let entries = || prop::option::weighted(0.2, entry_layout(problem.shape).boxed());
    let element = prop::sample::select(Element::ALL.to_vec());
    let each = |most: u32| {
        let right = prop::collection::vec(0..=most.min(99), problem.shape.batch.min(9) as usize);
        prop_oneof![9 => right, 1 => prop::collection::vec(any::<u32>(), 0..4)]
    };
    let lengths = prop::option::weighted(0.2, (each(problem.shape.seqlen_q), each(problem.shape.seqlen_kv)));
    // Sums that are sound, nonsense, or come at the call.
    let sums = |most: u32| {
        let steps = prop::collection::vec(0..=most.min(99), problem.shape.batch.min(9) as usize);
        let sound = steps.prop_map(|steps| {
            let ends = steps.iter().scan(0, |end, step| {
                *end += step;
                Some(*end)
            });
            std::iter::once(0).chain(ends).collect::<Vec<u32>>()
        });
        prop_oneof![9 => sound, 1 => prop::collection::vec(any::<u32>(), 0..4)]
    };
    let sums = (sums(problem.shape.seqlen_q), sums(problem.shape.seqlen_kv));
    let packed = prop::option::weighted(0.3, (0..5u8, sums, (count(), count())));
    let blocks = prop::collection::vec(block_mask(problem.shape), 0..6);
    // Lists of vast problems take a second.
    let is_vast = u64::from(problem.shape.seqlen_q) * u64::from(problem.shape.seqlen_kv) > 1 << 34;
    let blocks = prop_oneof![if is_vast { 500 } else { 8 } => Just(Vec::new()), 2 => blocks];
    let flags = (prop::bool::weighted(0.2), prop::bool::weighted(0.5));
    let aux = prop::option::weighted(0.2, prop_oneof![Just(None), any::<u32>().prop_map(Some)]);
    (Just(problem.clone()), entries(), entries(), element, flags, (lengths, packed), blocks, aux).prop_map(
        |(mut problem, bias, mask, element, (has_sink, has_bias_gradient), (lengths, packed), blocks, aux)| {
            if let Some((how, (sums_q, sums_kv), (total_q, total_kv))) = packed {
                problem = match how {
                    0 => problem.with_cu_seqlens(sums_q, sums_kv),
                    1 => problem.with_cu_seqlens_q(sums_q),
                    2 => problem.with_cu_seqlens_at_call(total_q, total_kv),
                    3 => problem.with_cu_seqlens_q_at_call(total_q).with_seqlens_kv_at_call(),
                    _ => problem.with_seqlens_q_at_call(),
                };
            }
            if let Some(aux_len) = aux {
                problem = with_own_wgsl(problem, aux_len);
            }
            if let Some((seqlens_q, seqlens_kv)) = lengths {
                problem = problem.with_lengths(seqlens_q, seqlens_kv);
            }
            if has_sink {
                problem = problem.with_sink();
            }
            if let Some(layout) = bias {
                let _ = layout.required_len(&problem.shape);
                let _ = layout.of_gradient(&problem.shape).required_len(&problem.shape);
                problem = problem.with_score(ScoreMod::Bias { layout, element });
                problem = if has_bias_gradient { problem.with_bias_gradient() } else { problem };
            }
            if let Some(layout) = mask {
                let _ = layout.required_words(&problem.shape);
                problem = problem.with_key_mask(KeyMask::Boolean(layout));
            }
            for mask in blocks {
                problem = problem.with_key_mask(KeyMask::Blocks(mask));
            }
            problem
        },
    )
}

/// Boxed: as values, strategies of strategies fill a thread's stack.
fn problem() -> impl Strategy<Value = AttentionProblem> {
    plain_problem().boxed().prop_flat_map(|problem| with_entries(problem).boxed()).boxed()
}

fn plain_problem() -> impl Strategy<Value = AttentionProblem> {
    let mask = (any::<bool>(), prop::option::of(count()), prop::option::of(count())).prop_map(
        |(top_left, window_left, window_right)| {
            let alignment = if top_left { Alignment::TopLeft } else { Alignment::BottomRight };
            Mask { alignment, window_left, window_right }
        },
    );
    let chances = vec![0.0, 0.5, -0.0, -1.0, 1.0 - f64::EPSILON, 1.0, 2.0, f64::NAN, f64::INFINITY];
    let dropout = prop::option::weighted(
        0.3,
        (prop::sample::select(chances), any::<u64>(), count()).prop_map(|(dropout_p, philox_seed, philox_offset)| {
            Dropout::new(dropout_p, philox_seed).with_philox_offset(philox_offset)
        }),
    );
    let scales = vec![0.0, 1.0, -3.0, 1e38, 1e300, f64::MIN_POSITIVE, f64::NAN, f64::NEG_INFINITY];
    let scale = prop::option::weighted(0.3, prop::sample::select(scales));
    let bound = prop::option::weighted(0.4, prop_oneof![Just(1), stride()]);
    let elements = (prop::sample::select(Element::ALL.to_vec()), prop::option::weighted(0.2, Just(Element::F32)));
    let layouts =
        shape().prop_flat_map(|shape| (Just(shape), layouts(shape), prop::option::weighted(0.3, layouts(shape))));
    (layouts, mask, dropout, scale, bound, elements, any::<bool>()).prop_map(
        |((shape, layout, gradient_layout), mask, dropout, softmax_scale, bound, (element, in_f32), standard)| {
            let mut problem = AttentionProblem::new(shape).with_element(element).with_layout(layout);
            problem.mask = mask;
            problem.dropout = dropout;
            problem.softmax_scale = softmax_scale;
            problem.max_flops_per_dispatch = bound;
            problem.gradient_layout = gradient_layout;
            problem.gradient_element = in_f32;
            problem.algorithm = ALGORITHMS[usize::from(standard)];
            problem
        },
    )
}

fn capabilities() -> impl Strategy<Value = Capabilities> {
    let classes = prop::sample::select(vec![
        DeviceClass::Discrete,
        DeviceClass::Integrated,
        DeviceClass::Cpu,
        DeviceClass::Other,
    ]);
    let abilities = (any::<[bool; 2]>(), count(), prop::option::of(prop::sample::select(vec![0, 8, 16, 17, u32::MAX])));
    let usual = |usual: u64| prop_oneof![4 => Just(usual), 1 => stride()];
    let usual32 = |usual: u32| prop_oneof![4 => Just(usual), 1 => count()];
    let limits = (usual32(16_384), usual32(256), usual32(65_535), usual(128 << 20), usual(256 << 20), usual(256));
    let shader_limits = (usual32(8), prop::option::of(prop_oneof![3 => Just(65_535), 1 => count()]));
    (classes, abilities, limits, shader_limits).prop_map(|(device_class, abilities, limits, shader_limits)| {
        let ([shader_f16, subgroups], subgroup, matrix_side) = abilities;
        let (storage, invocations, workgroups, max_binding, max_buffer, binding_alignment) = limits;
        let mut capabilities = Capabilities::webgpu_defaults();
        capabilities.device_class = device_class;
        capabilities.shader_f16 = shader_f16;
        capabilities.subgroups = subgroups;
        capabilities.subgroup_min_size = subgroup;
        capabilities.subgroup_max_size = subgroup;
        capabilities.matrix_side = matrix_side;
        capabilities.max_workgroup_storage = storage;
        capabilities.max_invocations = invocations;
        capabilities.max_workgroups_per_dimension = workgroups;
        capabilities.max_storage_buffers = shader_limits.0;
        capabilities.max_loop_turns = shader_limits.1;
        capabilities.max_uniform = if shader_limits.0 == 0 { 0 } else { 65_536 };
        capabilities.max_binding = max_binding;
        capabilities.max_buffer = max_buffer;
        capabilities.binding_alignment = binding_alignment;
        capabilities
    })
}

/// Some that fit, and nonsense.
fn tiles() -> impl Strategy<Value = Tiles> {
    let sound = vec![
        Tiles::new(32, 4, 1, 1),
        Tiles::new(64, 32, 4, 8),
        Tiles::new(0, 0, 0, 0),
        Tiles::decode(4, 32, 8, 8),
        Tiles::broadcasting(128, 32, 4, 8),
        Tiles::cooperative(64, 32, 16, 32, 16),
    ];
    let nonsense = (count(), count(), count(), count(), count()).prop_map(|(a, b, c, d, e)| {
        let mut tiles = Tiles::new(a, b, c, d);
        (tiles.key_lanes, tiles.broadcast, tiles.matrix_side) = (e, a, (c > d).then_some(e));
        tiles
    });
    prop_oneof![prop::sample::select(sound), nonsense]
}

/// Asks a plan for everything that it tells, and for its dispatches, which it counts.
fn exhaust(plan: Plan, call: &Call, origin: u64) -> Result<usize, TestCaseError> {
    let _ = (plan.reason(), plan.rounds_p(), plan.num_splits(), plan.direction(), plan.tiles().to_string());
    let _ = (plan.scratch_bytes(), plan.extra_bytes(), plan.traffic_bytes());
    for &operand in Operand::ALL {
        let _ = (plan.required_bytes(operand), plan.required_len(operand));
    }
    for pass in plan.passes() {
        let _ = (pass.specialization.workgroup_bytes(), pass.specialization.invocations());
    }
    let mut most = 0;
    let everywhere = Operand::ALL.iter().fold(Origins::default(), |origins, &operand| origins.with(operand, origin));
    for (call, origins) in [(&Call::default(), Origins::default()), (call, everywhere)] {
        if let Ok(dispatches) = plan.dispatches(call, &origins) {
            prop_assert!(dispatches.iter().all(|dispatch| dispatch.grid[0] > 0 && dispatch.grid[1] > 0));
            most = most.max(dispatches.len());
        }
    }
    Ok(most)
}

#[test]
fn extremes_are_answered_or_refused() {
    let call = (prop::option::of(count()), prop::option::of(count()), prop::option::of(any::<u64>())).prop_map(
        |(seqlen_q, seqlen_kv, philox_seed)| {
            let mut call = Call::new();
            call.seqlen_q = seqlen_q;
            call.seqlen_kv = seqlen_kv;
            call.philox_seed = philox_seed;
            call.philox_offset = Some(u32::MAX);
            call
        },
    );
    let choices = (tiles(), tiles(), count(), count(), call, stride());
    let (planned, refused, slowest) = (Cell::new(0), Cell::new(0), Cell::new(Duration::ZERO));
    let outcome = runner(6000).run(&(problem(), capabilities(), choices), |(problem, capabilities, choices)| {
        let start = Instant::now();
        let (tiles, other_tiles, num_splits, workgroups, call, origin) = choices;
        let _ = (problem.visible_pairs(), problem.forward_flops(), problem.backward_flops(), problem.softmax_scale());
        let _ = problem.dropout.map(|dropout| (dropout.threshold(), dropout.keep_scale()));
        let _ = (problem.visible_keys(problem.shape.seqlen_q), problem.shape.lse_len(), Workload::of(&problem));
        let _ = reference::keeps(&problem, problem.shape.batch, problem.shape.num_heads, u32::MAX, u32::MAX);
        let merge = MergeProblem::of(&problem, num_splits);
        let strided = merge.clone().with_strides(origin, u64::from(num_splits)).with_parts_in_f32();
        let (heads, rows) = (problem.shape.num_heads, problem.shape.seqlen_q);
        let chosen = ProbabilitiesProblem::new(problem.clone(), heads / 2..heads, rows / 3..rows);
        let anywhere = ProbabilitiesProblem::new(problem.clone(), 0..num_splits, workgroups..num_splits);
        let tuned = TunedTiles::new(Workload::of(&problem), problem.element, 256, tiles);
        let tuning = Tuning::new(vec![tuned]).with_workgroups(workgroups);
        let mut plans = vec![
            Plan::forward(&problem, &capabilities).build(),
            Plan::forward(&problem, &capabilities).with_tuning(&tuning).build(),
            Plan::forward(&problem, &capabilities).with_tiles(&[tiles]).build(),
            Plan::forward(&problem, &capabilities).with_splits(num_splits).build(),
            Plan::forward(&problem, &capabilities).with_tiles(&[tiles]).with_splits(num_splits).build(),
            Plan::backward(&problem, &capabilities).build(),
            Plan::backward(&problem, &capabilities).with_tiles(&[tiles, other_tiles]).build(),
            Plan::merge(&merge, &capabilities).build(),
            Plan::merge(&strided, &capabilities).build(),
            Plan::probabilities(&chosen, &capabilities).build(),
            Plan::probabilities(&anywhere, &capabilities).with_tiles(&[tiles]).build(),
        ];
        let candidates = Plan::candidates(&problem, &capabilities);
        plans.extend(
            candidates.into_iter().map(|tiles| Plan::forward(&problem, &capabilities).with_tiles(&[tiles]).build()),
        );
        for plan in plans {
            match plan {
                Ok(plan) => {
                    planned.set(planned.get() + 1);
                    // The first plan of many dispatches is as good as all of them.
                    if exhaust(plan, &call, origin)? > 1000 {
                        break;
                    }
                }
                Err(_) => refused.set(refused.get() + 1),
            }
        }
        slowest.set(slowest.get().max(start.elapsed()));
        Ok(())
    });
    let (planned, refused) = (planned.get(), refused.get());
    outcome.unwrap_or_else(|error| panic!("{error}"));
    println!("{planned} plans, {refused} refusals; the slowest problem took {:?}", slowest.get());
    assert!(planned > 5000 && refused > 5000, "the draw reaches {planned} plans and {refused} refusals");
    assert!(slowest.get() < Duration::from_secs(20), "a problem took {:?}", slowest.get());
}

/// A cache in any numbers, side by side or in pages.
fn kv_cache(shape: AttentionShape) -> impl Strategy<Value = KvCache> {
    let element = prop::sample::select(CacheElement::ALL.to_vec());
    let pages = (count(), count(), prop::option::of(count()));
    (element, prop::option::of(pages), prop::option::of((layout(), layout()))).prop_map(
        move |(element, pages, layouts)| {
            let cache = match pages {
                None => KvCache::contiguous(&shape, element),
                Some((num_pages, page_size, None)) => KvCache::paged(&shape, element, num_pages, page_size),
                Some((num_pages, page_size, Some(max_pages))) => {
                    KvCache::paged(&shape, element, num_pages, page_size).with_max_pages(max_pages)
                }
            };
            layouts.map_or(cache, |(k, v)| cache.with_layouts(k, v))
        },
    )
}

/// Rotary embeddings of any width.
fn rotary() -> impl Strategy<Value = Rotary> {
    (any::<bool>(), count(), prop::option::of(count())).prop_map(|(halves, rotary_dim, positions)| {
        let positions_or_0 = positions.unwrap_or(0);
        let rotary = match halves {
            true => Rotary::halves(rotary_dim, positions_or_0),
            false => Rotary::interleaved(rotary_dim, positions_or_0),
        };
        if positions.is_some() { rotary } else { rotary.per_token() }
    })
}

#[test]
fn any_cache_is_planned_or_refused() {
    let strategy = shape().prop_flat_map(|shape| {
        let more = (prop::option::of(rotary()), prop::option::of(count()), any::<[bool; 4]>(), count());
        (Just(shape), kv_cache(shape), layouts(shape), more)
    });
    let planned = Cell::new(0);
    let outcome = runner(2000).run(
        &strategy,
        |(shape, cache, layout, (rotary, packed, [slots, apart, seqlens, at_call], rows))| {
            let capabilities = Capabilities::webgpu_defaults();
            let mut append = AppendProblem::new(shape, cache).with_layout(layout);
            if let Some(rotary) = rotary {
                append = append.with_rotary(rotary);
                append = if apart { append.with_rotated_q() } else { append.with_rotated_q_in_place() };
            }
            append = packed.into_iter().fold(append, AppendProblem::with_packed_tokens);
            append = if slots { append.with_slot_mapping() } else { append };
            append = if seqlens { append.with_new_cache_seqlens() } else { append };
            let mut problem = AttentionProblem::new(shape).with_layout(layout).with_cache(cache);
            problem = if at_call { problem.with_seqlens_kv_at_call() } else { problem };
            problem = packed.into_iter().fold(problem, AttentionProblem::with_cu_seqlens_q_at_call);
            for plan in [Plan::append(&append, &capabilities).build(), Plan::forward(&problem, &capabilities).build()] {
                let Ok(plan) = plan else { continue };
                let calls = [Call::new(), Call::new().with_seqlen_q(rows.min(shape.seqlen_q))];
                for call in calls {
                    let _ = plan.dispatches(&call, &Origins::default());
                }
                let _ = plan.traffic_bytes();
                planned.set(planned.get() + 1);
            }
            Ok(())
        },
    );
    outcome.unwrap();
    assert!(planned.get() > 200, "{} were planned", planned.get());
}
