//! Which kernels, tiles and splits a problem gets on a device. No GPU.

use std::collections::HashSet;

use wgpu_flash_attention::plan::{
    Call, Capabilities, DeviceClass, Kernel, Origins, Tiles, TunedTiles, Tuning, Workload,
};
use wgpu_flash_attention::{Algorithm, AttentionProblem, AttentionShape, Element, Plan};

fn discrete() -> Capabilities {
    Capabilities {
        device_class: DeviceClass::Discrete,
        shader_f16: true,
        subgroups: true,
        subgroup_min_size: 32,
        subgroup_max_size: 32,
        max_workgroup_storage: 49_152,
        max_invocations: 1024,
        max_binding: u64::from(u32::MAX),
        max_buffer: 1 << 40,
        ..Capabilities::webgpu_defaults()
    }
}

fn decode(batch: u32) -> AttentionProblem {
    let shape = AttentionShape::new(batch, 32, 1, 128).num_heads_kv(8).seqlen_kv(32_768);
    AttentionProblem::new(shape).element(Element::F16)
}

fn kernels(plan: &Plan) -> Vec<Kernel> {
    plan.passes().iter().map(|pass| pass.kernel).collect()
}

#[test]
fn few_rows_are_split_until_the_device_is_busy() {
    for (batch, least, most) in [(1, 32, 128), (8, 4, 16), (64, 1, 2)] {
        let plan = Plan::new(&decode(batch), &discrete()).unwrap();
        assert!((least..=most).contains(&plan.num_splits()), "batch {batch}: {} splits", plan.num_splits());
        let split = plan.num_splits() > 1;
        let expected: &[Kernel] =
            if split { &[Kernel::FlashDecodeSplit, Kernel::Combine] } else { &[Kernel::FlashDecode] };
        assert_eq!(kernels(&plan), expected);
    }
    // A GPU that is full, one that is small, and a processor.
    let large = AttentionProblem::new(AttentionShape::new(2, 16, 4096, 64));
    assert_eq!(Plan::new(&large, &discrete()).unwrap().num_splits(), 1);
    let small = AttentionProblem::new(AttentionShape::new(1, 4, 512, 64));
    assert!(Plan::new(&small, &discrete()).unwrap().num_splits() > 1);
    let cpu = Capabilities { device_class: DeviceClass::Cpu, ..discrete() };
    assert_eq!(Plan::new(&small, &cpu).unwrap().num_splits(), 1);
    // Few keys are not worth a merge.
    let short = AttentionProblem::new(AttentionShape::new(1, 4, 512, 64).seqlen_kv(32));
    assert_eq!(Plan::new(&short, &discrete()).unwrap().num_splits(), 1);
    // Nor is a window that sees few of many.
    let window = AttentionProblem::new(AttentionShape::new(1, 4, 512, 64).seqlen_kv(65_536)).window(Some(8), Some(8));
    assert_eq!(Plan::new(&window, &discrete()).unwrap().num_splits(), 1);
}

/// Partial results take memory in proportion to the rows, and rows are few where keys are split.
#[test]
fn scratch_is_bounded() {
    for seqlen in [1, 7, 64, 512, 1000, 4096, 40_000] {
        for head_dim in [64, 256] {
            for batch in [1, 3, 16] {
                let shape = AttentionShape::new(batch, 8, seqlen, head_dim).num_heads_kv(2).seqlen_kv(100_000);
                let plan = Plan::new(&AttentionProblem::new(shape), &discrete()).unwrap();
                assert!(plan.scratch_bytes() <= 128 << 20, "{seqlen}: {} bytes", plan.scratch_bytes());
            }
        }
    }
}

#[test]
fn tuned_tiles_go_before_the_table() {
    let table = Plan::new(&decode(8), &discrete()).unwrap();
    let tiles = Tiles::decode(4, 128, 16, 16);
    assert_ne!(table.tiles(), tiles);
    let tuned = TunedTiles { workload: Workload::Decode, element: Element::F16, head_dim: 128, tiles };
    let plan_with = |tiles: Vec<TunedTiles>, workgroups| {
        Plan::tuned(&decode(8), &discrete(), &Tuning { tiles, workgroups }).unwrap()
    };
    assert_eq!(plan_with(vec![tuned], None).tiles(), tiles);
    assert!(plan_with(vec![tuned], None).reason().contains("tuned"));
    // Measured for wider heads, and for others; the nearest width counts.
    let wider = TunedTiles { head_dim: 256, tiles: Tiles::decode(4, 64, 16, 16), ..tuned };
    assert_eq!(plan_with(vec![wider], None).tiles(), wider.tiles);
    assert_eq!(plan_with(vec![wider, tuned], None).tiles(), tiles);
    for other in [
        TunedTiles { head_dim: 64, ..tuned },
        TunedTiles { element: Element::F32, ..tuned },
        TunedTiles { workload: Workload::Large, ..tuned },
        // No tiles at all, and tiles that fit no device.
        TunedTiles { tiles: Tiles::decode(4, 128, 3, 16), ..tuned },
        TunedTiles { tiles: Tiles::decode(4, 1024, 32, 256), ..tuned },
        TunedTiles { tiles: Tiles::cooperative(128, 32, 16, 32, 16), ..tuned },
    ] {
        assert_eq!(plan_with(vec![other], None), table, "{other:?}");
        assert_eq!(plan_with(vec![other, tuned], None).tiles(), tiles, "{other:?}");
    }
    assert_eq!(plan_with(Vec::new(), Some(64)).num_splits(), 1);
    assert_eq!(plan_with(Vec::new(), Some(640)).num_splits(), 10);
}

#[test]
fn the_planners_choice_is_the_first_candidate() {
    let defaults = Capabilities { max_binding: 1 << 30, max_buffer: 1 << 40, ..Capabilities::webgpu_defaults() };
    for capabilities in [discrete(), defaults] {
        for problem in [
            decode(8),
            AttentionProblem::new(AttentionShape::new(1, 4, 512, 64)),
            AttentionProblem::new(AttentionShape::new(2, 16, 4096, 256)),
        ] {
            let candidates = Plan::candidates(&problem, &capabilities);
            assert_eq!(candidates[0], Plan::new(&problem, &capabilities).unwrap().tiles());
            assert!(candidates.len() > 1, "{candidates:?}");
            for tiles in candidates {
                assert_eq!(Plan::with_tiles(&problem, &capabilities, tiles).unwrap().tiles(), tiles);
            }
        }
    }
}

#[test]
fn standard_attention_has_no_splits() {
    let standard = decode(8).algorithm(Algorithm::Standard);
    assert_eq!(Plan::new(&standard, &discrete()).unwrap().num_splits(), 1);
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
    let capabilities = Capabilities {
        device_class: DeviceClass::Cpu,
        subgroups: true,
        subgroup_min_size: 8,
        max_workgroup_storage: 32_768,
        ..Capabilities::webgpu_defaults()
    };
    let problem = AttentionProblem::new(AttentionShape::new(1, 2, 100, 64).num_heads_kv(1).seqlen_kv(1_000));
    let with = |problem: &AttentionProblem, tiles| turns(&Plan::with_tiles(problem, &capabilities, tiles).unwrap());
    // 63 tiles of keys, in each a loop over 4 quads of keys; two loops over tiles.
    let tiles = Tiles::new(64, 16, 8, 8);
    assert_eq!(with(&problem, tiles), [(Kernel::FlashForward, 63 * (1 + 5) + 2)]);
    // Dropout draws for 8 rows at each quad, 10 rounds in a loop.
    let dropped = problem.clone().dropout(0.1, 1);
    assert_eq!(with(&dropped, tiles), [(Kernel::FlashForward, 63 * (1 + 1 + 4 * (1 + 8 * 11)) + 2)]);
    // 32 tiles: the score of a tile in one chunk of 16 quads, of rows and keys; 4 quads of a row's 1,024 keys, twice, and a tree over 64;
    // per tile a row of P for each of the 4 rows, and its 8 quads.
    let standard = with(&problem.clone().algorithm(Algorithm::Standard), Tiles::new(64, 32, 4, 8));
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
    let backward = turns(&Plan::backward_with_tiles(&problem, &capabilities, tiles).unwrap());
    assert_eq!(
        backward[1..],
        [(Kernel::FlashBackwardDkdv, 2 * 7 * (1 + 17) + 2), (Kernel::FlashBackwardDq, 63 * (1 + 17) + 2),]
    );
}

/// Nothing that is planned passes a driver's limit; splits keep flash attention below it at any length.
#[test]
fn no_loop_takes_more_turns_than_the_driver_allows() {
    let most = 65_535;
    let (mut planned, mut refused) = (HashSet::new(), 0);
    for (class, subgroup) in [(DeviceClass::Cpu, 8), (DeviceClass::Cpu, 1), (DeviceClass::Discrete, 32)] {
        let capabilities = Capabilities {
            device_class: class,
            subgroups: subgroup > 1,
            subgroup_min_size: subgroup,
            max_loop_turns: Some(most),
            max_buffer: 1 << 40,
            max_binding: (2 << 30) - 4,
            ..Capabilities::webgpu_defaults()
        };
        for (rows, keys) in [(1, 8_192), (64, 8_192), (300, 70_000), (8, 1_000_000), (60_000, 40), (5_000, 5_000)] {
            for (head_dim, heads) in [(16, 1), (64, 8), (256, 2)] {
                let shape = AttentionShape::new(1, heads, rows, head_dim).num_heads_kv(1).seqlen_kv(keys);
                let problem = AttentionProblem::new(shape);
                for problem in [problem.clone(), problem.clone().causal(), problem.causal().dropout(0.1, 1)] {
                    let standard = problem.clone().algorithm(Algorithm::Standard);
                    let flash = Plan::new(&problem, &capabilities);
                    assert!(flash.is_ok(), "{:?} {problem:?}", flash.err());
                    let backward = |problem| Plan::backward(problem, &capabilities);
                    for plan in [flash, Plan::new(&standard, &capabilities), backward(&problem), backward(&standard)] {
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
    let on_matrices = Kernel::ALL.into_iter().filter(|kernel| kernel.name().contains("cooperative")).count();
    assert_eq!(planned.len() + on_matrices, Kernel::ALL.len(), "every kernel without matrices is planned");
    assert!(refused > 0);
}
