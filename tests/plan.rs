//! Which kernels, tiles and splits a problem gets on a device. No GPU.

use std::collections::HashSet;

use wgpu_flash_attention::unstable::{Kernel, Origins, Params};
use wgpu_flash_attention::{
    Algorithm, AppendProblem, AttentionProblem, AttentionShape, BlockMask, CacheElement, Call, Capabilities,
    DeviceClass, Element, EntryLayout, Error, KeyMask, KvCache, MaskWgsl, MergeProblem, Plan, ProbabilitiesProblem,
    Rotary, ScoreMod, Tiles, TunedTiles, Tuning, WgslOptions, Workload,
};

fn discrete() -> Capabilities {
    let mut capabilities = Capabilities::webgpu_defaults();
    capabilities.device_class = DeviceClass::Discrete;
    capabilities.shader_f16 = true;
    capabilities.subgroups = true;
    capabilities.subgroup_min_size = 32;
    capabilities.subgroup_max_size = 32;
    capabilities.max_workgroup_storage = 49_152;
    capabilities.max_invocations = 1024;
    capabilities.max_binding = u64::from(u32::MAX);
    capabilities.max_buffer = 1 << 40;
    capabilities
}

fn decode(batch: u32) -> AttentionProblem {
    let shape = AttentionShape::new(batch, 32, 1, 128).with_num_heads_kv(8).with_seqlen_kv(32_768);
    AttentionProblem::new(shape).with_element(Element::F16)
}

fn kernels(plan: &Plan) -> Vec<Kernel> {
    plan.passes().iter().map(|pass| pass.kernel).collect()
}

/// Two workgroups for each of the 132 cores of a large GPU, and none that mixes heads without need.
#[test]
fn few_rows_of_heads_that_share_keys_share_matrices() {
    use Kernel::{Combine, FlashForwardCooperative, FlashForwardCooperativePackedSplit};
    let mut capabilities = discrete();
    capabilities.matrix_side = Some(16);
    let problem = |rows, heads_kv| {
        let shape = AttentionShape::new(4, 32, rows, 128).with_num_heads_kv(heads_kv).with_seqlen_kv(8192);
        AttentionProblem::new(shape).with_element(Element::F16)
    };
    let planned = |problem: &AttentionProblem| {
        let plan = Plan::forward(problem, &capabilities).build().unwrap();
        (kernels(&plan), plan.num_splits())
    };
    assert_eq!(planned(&problem(16, 8)), (vec![FlashForwardCooperativePackedSplit, Combine], 8));
    assert_eq!(planned(&problem(64, 8)).0, [FlashForwardCooperative]);
}

#[test]
fn few_rows_are_split_until_the_device_is_busy() {
    for (batch, least, most) in [(1, 32, 128), (8, 4, 16), (64, 1, 2)] {
        let plan = Plan::forward(&decode(batch), &discrete()).build().unwrap();
        assert!((least..=most).contains(&plan.num_splits()), "batch {batch}: {} splits", plan.num_splits());
        let split = plan.num_splits() > 1;
        let expected: &[Kernel] =
            if split { &[Kernel::FlashDecodeSplit, Kernel::Combine] } else { &[Kernel::FlashDecode] };
        assert_eq!(kernels(&plan), expected);
    }
    // A GPU that is full, one that is small, and a processor.
    let large = AttentionProblem::new(AttentionShape::new(2, 16, 4096, 64));
    assert_eq!(Plan::forward(&large, &discrete()).build().unwrap().num_splits(), 1);
    let small = AttentionProblem::new(AttentionShape::new(1, 4, 512, 64));
    assert!(Plan::forward(&small, &discrete()).build().unwrap().num_splits() > 1);
    let cpu = {
        let mut capabilities = discrete();
        capabilities.device_class = DeviceClass::Cpu;
        capabilities
    };
    assert_eq!(Plan::forward(&small, &cpu).build().unwrap().num_splits(), 1);
    // Few keys are not worth a merge.
    let short = AttentionProblem::new(AttentionShape::new(1, 4, 512, 64).with_seqlen_kv(32));
    assert_eq!(Plan::forward(&short, &discrete()).build().unwrap().num_splits(), 1);
    // Nor is a window that sees few of many.
    let window =
        AttentionProblem::new(AttentionShape::new(1, 4, 512, 64).with_seqlen_kv(65_536)).with_window(Some(8), Some(8));
    assert_eq!(Plan::forward(&window, &discrete()).build().unwrap().num_splits(), 1);
}

/// Partial results take memory in proportion to the rows, and rows are few where keys are split.
#[test]
fn splits_of_block_masks_follow_their_lists() {
    let splits = |seqlen: u32, mask: BlockMask| {
        let problem = AttentionProblem::new(AttentionShape::new(1, 1, seqlen, 64)).with_key_mask(KeyMask::Blocks(mask));
        Plan::forward(&problem, &discrete()).build().unwrap().num_splits()
    };
    // A sum over all keys would be too long; one over a window and some global keys is not.
    let dense = |seqlen: u32| BlockMask::prefix(seqlen);
    assert!(splits(1 << 17, dense(1 << 17)) > 1);
    assert_eq!(splits(1 << 17, BlockMask::local(256)), 1);
    // Few rows are split as far as there are tiles to visit.
    assert!(splits(1024, dense(1024)) > splits(1024, BlockMask::local(64)));
}

#[test]
fn tiles_do_not_span_rows_of_blocks() {
    let mut matrices = discrete();
    matrices.matrix_side = Some(16);
    for capabilities in [discrete(), matrices] {
        for element in [Element::F32, Element::F16, Element::Bf16] {
            let shape = AttentionShape::new(1, 16, 4096, 64);
            let plain = AttentionProblem::new(shape).with_element(element);
            let blocks = plain.clone().with_key_mask(KeyMask::Blocks(BlockMask::bigbird(&shape, 0)));
            let tile_q =
                |problem: &AttentionProblem| Plan::forward(problem, &capabilities).build().unwrap().tiles().tile_q;
            assert!(tile_q(&plain) >= 128, "{element:?}");
            assert_eq!(tile_q(&blocks), 64, "{element:?}");
        }
    }
}

#[test]
fn scratch_is_bounded() {
    for seqlen in [1, 7, 64, 512, 1000, 4096, 40_000] {
        for head_dim in [64, 256] {
            for batch in [1, 3, 16] {
                let shape =
                    AttentionShape::new(batch, 8, seqlen, head_dim).with_num_heads_kv(2).with_seqlen_kv(100_000);
                let plan = Plan::forward(&AttentionProblem::new(shape), &discrete()).build().unwrap();
                assert!(plan.scratch_bytes() <= 128 << 20, "{seqlen}: {} bytes", plan.scratch_bytes());
            }
        }
    }
}

#[test]
fn tuned_tiles_go_before_the_table() {
    let table = Plan::forward(&decode(8), &discrete()).build().unwrap();
    let tiles = Tiles::decode(4, 128, 16, 16);
    assert_ne!(table.tiles(), tiles);
    let tuned = TunedTiles::new(Workload::Decode, Element::F16, 128, tiles);
    let plan_with = |tiles: Vec<TunedTiles>, workgroups| {
        Plan::forward(&decode(8), &discrete())
            .with_tuning(&{
                let mut tuning = Tuning::new(tiles);
                tuning.workgroups = workgroups;
                tuning
            })
            .build()
            .unwrap()
    };
    assert_eq!(plan_with(vec![tuned], None).tiles(), tiles);
    assert!(plan_with(vec![tuned], None).reason().contains("tuned"));
    // Measured for wider heads, and for others; the nearest width counts.
    let wider = {
        let mut tuned = tuned;
        tuned.head_dim = 256;
        tuned.tiles = Tiles::decode(4, 64, 16, 16);
        tuned
    };
    assert_eq!(plan_with(vec![wider], None).tiles(), wider.tiles);
    assert_eq!(plan_with(vec![wider, tuned], None).tiles(), tiles);
    for other in [
        {
            let mut tuned = tuned;
            tuned.head_dim = 64;
            tuned
        },
        {
            let mut tuned = tuned;
            tuned.element = Element::F32;
            tuned
        },
        {
            let mut tuned = tuned;
            tuned.workload = Workload::Large;
            tuned
        },
        // No tiles at all, and tiles that fit no device.
        {
            let mut tuned = tuned;
            tuned.tiles = Tiles::decode(4, 128, 3, 16);
            tuned
        },
        {
            let mut tuned = tuned;
            tuned.tiles = Tiles::decode(4, 1024, 32, 256);
            tuned
        },
        {
            let mut tuned = tuned;
            tuned.tiles = Tiles::cooperative(128, 32, 16, 32, 16);
            tuned
        },
    ] {
        assert_eq!(plan_with(vec![other], None), table, "{other:?}");
        assert_eq!(plan_with(vec![other, tuned], None).tiles(), tiles, "{other:?}");
    }
    assert_eq!(plan_with(Vec::new(), Some(64)).num_splits(), 1);
    assert_eq!(plan_with(Vec::new(), Some(640)).num_splits(), 10);
}

#[test]
fn the_planners_choice_is_the_first_candidate() {
    let defaults = {
        let mut capabilities = Capabilities::webgpu_defaults();
        capabilities.max_binding = 1 << 30;
        capabilities.max_buffer = 1 << 40;
        capabilities
    };
    for capabilities in [discrete(), defaults] {
        for problem in [
            decode(8),
            AttentionProblem::new(AttentionShape::new(1, 4, 512, 64)),
            AttentionProblem::new(AttentionShape::new(2, 16, 4096, 256)),
        ] {
            let candidates = Plan::candidates(&problem, &capabilities);
            assert_eq!(candidates[0], Plan::forward(&problem, &capabilities).build().unwrap().tiles());
            assert!(candidates.len() > 1, "{candidates:?}");
            for tiles in candidates {
                assert_eq!(Plan::forward(&problem, &capabilities).with_tiles(&[tiles]).build().unwrap().tiles(), tiles);
            }
        }
    }
}

/// What no device could run is the plan's mistake; what this one cannot, the device's.
#[test]
fn impossible_choices_are_told_from_a_small_device() {
    let flash = AttentionProblem::new(AttentionShape::new(1, 4, 512, 64));
    let standard = flash.clone().with_algorithm(Algorithm::Standard);
    let merge = MergeProblem::of(&flash, 2);
    let capabilities = discrete();
    let forward = |problem| Plan::forward(problem, &capabilities);
    let backward = |problem| Plan::backward(problem, &capabilities);
    let none = Tiles::new(30, 16, 4, 4);
    let (rows, other) = (Tiles::new(32, 16, 2, 4), Tiles::new(16, 64, 2, 4));
    for (builder, wrong) in [
        (forward(&flash).with_splits(0), "num_splits"),
        (forward(&standard).with_splits(2), "num_splits"),
        (backward(&flash).with_splits(2), "num_splits"),
        (Plan::merge(&merge, &capabilities).with_splits(2), "num_splits"),
        (Plan::merge(&merge, &capabilities).with_tiles(&[rows]), "tiles"),
        (forward(&flash).with_tiles(&[none]), "tiles"),
        (forward(&flash).with_tiles(&[none]).with_splits(2), "tiles"),
        (forward(&flash).with_tiles(&[rows, rows]), "tiles"),
        (forward(&standard).with_tiles(&[Tiles::decode(4, 32, 8, 8)]), "tiles"),
        (backward(&flash).with_tiles(&[other, none]), "tiles"),
        (backward(&flash).with_tiles(&[other, rows, rows]), "tiles"),
        (backward(&standard).with_tiles(&[rows, rows]), "tiles"),
    ] {
        let error = builder.clone().build().unwrap_err();
        assert!(matches!(error, Error::InvalidPlan { what, .. } if what == wrong), "{builder:?}: {error}");
    }
    // 256 invocations, and matrices.
    let small = {
        let mut capabilities = discrete();
        capabilities.max_invocations = 128;
        capabilities
    };
    for tiles in [Tiles::new(64, 16, 1, 4), Tiles::cooperative(64, 32, 16, 32, 16)] {
        let error = Plan::forward(&flash, &small).with_tiles(&[tiles]).build().unwrap_err();
        assert!(matches!(error, Error::Unsupported { feature: "these tiles", .. }), "{error}");
    }
    assert!(forward(&flash).with_splits(1).build().is_ok());
    assert!(backward(&standard).with_splits(1).build().is_ok());
}

/// Tuned tiles are those of the forward kernels.
/// A device without dynamic uniforms, or with smaller ones, is refused by name, whatever is planned.
#[test]
fn small_uniforms_are_refused_by_name() {
    let problem = AttentionProblem::new(AttentionShape::new(1, 2, 64, 32));
    let mut small = Capabilities::webgpu_defaults();
    for bytes in [0, 16, size_of::<Params>() as u64 - 1] {
        small.max_uniform = bytes;
        for plan in [Plan::forward(&problem, &small).build(), Plan::backward(&problem, &small).build()] {
            let refused = plan.map(|_| ());
            assert!(matches!(refused, Err(Error::Unsupported { feature: "uniforms this large", .. })), "{refused:?}");
        }
    }
    small.max_uniform = size_of::<Params>() as u64;
    assert!(Plan::forward(&problem, &small).build().is_ok());
}

#[test]
fn tuning_leaves_gradients_alone() {
    let problem = AttentionProblem::new(AttentionShape::new(1, 4, 512, 64));
    let tiles = Tiles::new(64, 16, 4, 4);
    let tuned = TunedTiles::new(Workload::of(&problem), Element::F32, 64, tiles);
    let tuning = Tuning::new(vec![tuned]);
    let capabilities = discrete();
    let plan = || Plan::backward(&problem, &capabilities);
    assert_eq!(plan().with_tuning(&tuning).build(), plan().build());
}

#[test]
fn one_choice_of_tiles_is_for_both_gradient_kernels() {
    let problem = AttentionProblem::new(AttentionShape::new(1, 4, 512, 64));
    let tiles = Tiles::new(32, 32, 2, 4);
    let plan = |tiles: &[Tiles]| Plan::backward(&problem, &discrete()).with_tiles(tiles).build().unwrap();
    assert_eq!(plan(&[tiles]), plan(&[tiles, tiles]));
    assert_ne!(plan(&[tiles]), plan(&[]));
}

#[test]
fn standard_attention_has_no_splits() {
    let standard = decode(8).with_algorithm(Algorithm::Standard);
    assert_eq!(Plan::forward(&standard, &discrete()).build().unwrap().num_splits(), 1);
}

/// Turns of each pass of a plan on its longest dispatch.
fn turns(plan: &Plan) -> Vec<(Kernel, u64)> {
    let dispatches = plan.dispatches(&Call::default(), &Origins::default()).unwrap();
    let of = |pass: usize| dispatches.iter().filter(|d| d.pass == pass).map(|d| d.turns).max().unwrap();
    plan.passes().iter().enumerate().map(|(index, pass)| (pass.kernel, of(index))).collect()
}

/// A loop of n turns counts n + 1: it is left in one more.
#[test]
fn the_turns_of_loops_are_those_of_the_text() {
    let capabilities = {
        let mut capabilities = Capabilities::webgpu_defaults();
        capabilities.device_class = DeviceClass::Cpu;
        capabilities.subgroups = true;
        capabilities.subgroup_min_size = 8;
        capabilities.max_workgroup_storage = 32_768;
        capabilities
    };
    let problem = AttentionProblem::new(AttentionShape::new(1, 2, 100, 64).with_num_heads_kv(1).with_seqlen_kv(1_000));
    let with = |problem: &AttentionProblem, tiles| {
        turns(&Plan::forward(problem, &capabilities).with_tiles(&[tiles]).build().unwrap())
    };
    // 63 tiles of keys, in each a loop over 4 quads of keys; two loops over tiles.
    let tiles = Tiles::new(64, 16, 8, 8);
    assert_eq!(with(&problem, tiles), [(Kernel::FlashForward, 63 * (1 + 5) + 2)]);
    // Dropout draws for 8 rows at each quad, 10 rounds in a loop.
    let dropped = problem.clone().with_dropout(0.1, 1);
    assert_eq!(with(&dropped, tiles), [(Kernel::FlashForward, 63 * (1 + 1 + 4 * (1 + 8 * 11)) + 2)]);
    // 32 tiles: the score of a tile in one chunk of 16 quads, of rows and keys; 4 quads of a row's 1,024 keys, twice, and a tree over 64;
    // per tile a row of P for each of the 4 rows, and its 8 quads.
    let standard = with(&problem.clone().with_algorithm(Algorithm::Standard), Tiles::new(64, 32, 4, 8));
    let products = (1 + (64 * 16 / 128 + 1) + (16 + 1)) + 1;
    assert_eq!(
        standard,
        [
            (Kernel::StandardScores, products),
            (Kernel::StandardSoftmax, 2 * (4 + 1) + (6 + 1)),
            (Kernel::StandardOutput, 32 * (1 + (4 + 1) + (8 + 1)) + 1),
        ]
    );
    // Gradients: 7 tiles of 16 rows of each of the two heads; 63 tiles of 16 keys.
    let tiles = [Tiles::new(16, 64, 2, 4), Tiles::new(64, 16, 2, 4)];
    let backward = turns(&Plan::backward(&problem, &capabilities).with_tiles(&tiles).build().unwrap());
    assert_eq!(
        backward[1..],
        [(Kernel::FlashBackwardDkdv, 2 * 7 * (1 + 17) + 2), (Kernel::FlashBackwardDq, 63 * (1 + 17) + 2),]
    );
}

/// With one bias of all heads and rows, whose gradient sums over them.
fn biased(problem: &AttentionProblem, element: Element) -> AttentionProblem {
    let layout = EntryLayout::contiguous([1, 1, 1, problem.shape.seqlen_kv]);
    problem.clone().with_score(ScoreMod::Bias { layout, element }).with_bias_gradient()
}

/// Nothing that is planned passes a driver's limit; splits keep flash attention below it at any length.
#[test]
fn no_loop_takes_more_turns_than_the_driver_allows() {
    let most = 65_535;
    let (mut planned, mut refused) = (HashSet::new(), 0);
    for (class, subgroup) in [(DeviceClass::Cpu, 8), (DeviceClass::Cpu, 1), (DeviceClass::Discrete, 32)] {
        let capabilities = {
            let mut capabilities = Capabilities::webgpu_defaults();
            capabilities.device_class = class;
            capabilities.subgroups = subgroup > 1;
            capabilities.subgroup_min_size = subgroup;
            capabilities.max_loop_turns = Some(most);
            capabilities.max_buffer = 1 << 40;
            capabilities.max_binding = (2 << 30) - 4;
            capabilities
        };
        for (rows, keys) in [(1, 8_192), (64, 8_192), (300, 70_000), (8, 1_000_000), (60_000, 40), (5_000, 5_000)] {
            for (head_dim, heads) in [(16, 1), (64, 8), (256, 2)] {
                let shape = AttentionShape::new(1, heads, rows, head_dim).with_num_heads_kv(1).with_seqlen_kv(keys);
                let problem = AttentionProblem::new(shape);
                for problem in
                    [problem.clone(), problem.clone().with_causal(), problem.with_causal().with_dropout(0.1, 1)]
                {
                    let standard = problem.clone().with_algorithm(Algorithm::Standard);
                    let chosen = ProbabilitiesProblem::new(problem.clone(), 0..1, 0..rows);
                    let append = AppendProblem::new(shape, KvCache::contiguous(&shape, CacheElement::Int8))
                        .with_rotary(Rotary::halves(16, 9))
                        .with_new_cache_seqlens();
                    let flash = Plan::forward(&problem, &capabilities).build();
                    assert!(flash.is_ok(), "{:?} {problem:?}", flash.err());
                    let backward = |problem| Plan::backward(problem, &capabilities).build();
                    for plan in [
                        flash,
                        Plan::forward(&standard, &capabilities).build(),
                        backward(&problem.clone().with_sink()),
                        backward(&biased(&problem, Element::F32)),
                        backward(&biased(&problem.clone().with_element(Element::F16), Element::F16)),
                        backward(&standard),
                        Plan::probabilities(&chosen, &capabilities).build(),
                        Plan::append(&append.clone().with_rotated_q(), &capabilities).build(),
                        Plan::append(&append.clone().with_rotated_q_in_place(), &capabilities).build(),
                        over_pages(&problem, &capabilities),
                        Plan::merge(&MergeProblem::of(&problem, 5).into_running(), &capabilities).build(),
                        Plan::forward(&problem.clone().with_seqlens_kv_at_call(), &capabilities).build(),
                    ] {
                        let Ok(plan) = plan else {
                            refused += 1;
                            continue;
                        };
                        for (kernel, turns) in turns(&plan) {
                            assert!(turns <= most.into(), "{kernel:?} takes {turns} turns: {problem:?}");
                            planned.insert(kernel);
                        }
                    }
                }
            }
        }
    }
    let on_matrices = Kernel::ALL.iter().copied().filter(|kernel| kernel.name().contains("cooperative")).count();
    assert_eq!(planned.len() + on_matrices, Kernel::ALL.len(), "every kernel without matrices is planned");
    assert!(refused > 0);
}

/// Over a cache of another type, in pages.
fn over_pages(problem: &AttentionProblem, capabilities: &Capabilities) -> Result<Plan, Error> {
    let cache = KvCache::paged(&problem.shape, CacheElement::F16, 9, 16);
    Plan::forward(&problem.clone().with_cache(cache).with_seqlens_kv_at_call(), capabilities).build()
}

/// Loops of the caller's own functions count, at least once for each score of a workgroup's row of tiles. Without a loop they
/// count nothing.
#[test]
fn loops_of_own_functions_count() {
    let mut capabilities = Capabilities::webgpu_defaults();
    capabilities.max_loop_turns = Some(65_535);
    let plain = AttentionProblem::new(AttentionShape::new(1, 1, 64, 16).with_seqlen_kv(8_192));
    let masked = |body: &str, max_turns: u32| {
        let text = format!("fn mask_mod(b: u32, h: u32, q_idx: u32, kv_idx: u32) -> bool {{ {body} return true; }}");
        let mask = MaskWgsl::with_options(&text, WgslOptions::new().with_max_turns(max_turns)).unwrap();
        plain.clone().with_key_mask(KeyMask::Wgsl(mask))
    };
    let plan = |problem: &AttentionProblem| Plan::forward(problem, &capabilities).with_splits(256).build().unwrap();
    let of = |problem: &AttentionProblem| turns(&plan(problem)).into_iter().map(|(_, turns)| turns).max().unwrap();
    assert_eq!(of(&masked("", 4096)), of(&plain));
    let (few, more) = (of(&masked("loop { break; }", 4)), of(&masked("loop { break; }", 8)));
    let tiles = plan(&plain).tiles();
    let scores_of_an_invocation =
        u64::from(tiles.tile_q * tiles.tile_kv / plan(&plain).passes()[0].specialization.invocations());
    assert!(few >= of(&plain) + 4 * scores_of_an_invocation, "{few} of {}", of(&plain));
    assert!(more > few);
    let by_itself = |problem: &AttentionProblem| Plan::forward(problem, &capabilities).build().unwrap().num_splits();
    assert!(by_itself(&masked("loop { break; }", 100)) > by_itself(&plain));
}
