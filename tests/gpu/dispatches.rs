//! Operations that change from call to call, and operations cut into several dispatches.

use wgpu_flash_attention::{
    Algorithm, AttentionLayout, AttentionProblem, AttentionShape, Call, Capabilities, Element, Error,
};

use crate::support::{
    Inputs, Library, Tensors, Variant, check_answer, inputs, library, limited, problem_of, run, run_calls,
    run_dispatch_by_dispatch,
};

/// Runs all calls of one prepared operation in one encoder, and holds each to its own answer.
fn check_calls(problem: &AttentionProblem, calls: &[Call]) {
    let given = inputs(problem, 1);
    let [flash, standard] = [Algorithm::Flash, Algorithm::Standard]
        .map(|algorithm| run_calls(library(Variant::Full), &problem.clone().with_algorithm(algorithm), &given, calls));
    for ((call, flash), standard) in calls.iter().zip(&flash).zip(&standard) {
        check_answer(&problem_of(problem, call), &given, flash, standard);
    }
}

#[test]
fn calls_in_one_encoder_keep_their_own_seeds() {
    let problem = AttentionProblem::new(AttentionShape::new(2, 2, 40, 16)).with_causal().with_dropout(0.4, 1);
    let seeded = |philox_seed, philox_offset| {
        let mut call = Call::new();
        call.philox_seed = philox_seed;
        call.philox_offset = philox_offset;
        call
    };
    check_calls(
        &problem,
        &[seeded(None, None), seeded(Some(2), None), seeded(Some(1 << 40), Some(7)), seeded(None, Some(8))],
    );
}

#[test]
fn calls_in_one_encoder_keep_their_own_lengths() {
    let calls = [(50, 70), (50, 1), (1, 70), (33, 0), (0, 20), (17, 64)]
        .map(|(seqlen_q, seqlen_kv)| Call::new().with_seqlen_q(seqlen_q).with_seqlen_kv(seqlen_kv));
    for &element in Element::ALL {
        let shape = AttentionShape::new(2, 2, 50, 16).with_seqlen_kv(70);
        let problem = AttentionProblem::new(shape).with_element(element);
        check_calls(&problem, &calls);
        check_calls(&problem.clone().with_causal().with_dropout(0.1, 3), &calls);
        check_calls(&problem.with_layout(AttentionLayout::bhsd(&shape)).with_window(Some(9), Some(4)), &calls);
    }
}

/// More calls than one buffer of uniforms holds, the first ones again at the end.
#[test]
fn hundreds_of_calls_in_one_encoder_keep_their_own_seeds() {
    let problem = AttentionProblem::new(AttentionShape::new(1, 1, 3, 4).with_seqlen_kv(40)).with_dropout(0.5, 0);
    let given = inputs(&problem, 1);
    let calls: Vec<Call> = (0..600).chain(0..5).map(|seed| Call::new().with_philox_seed(seed)).collect();
    let outputs = run_calls(library(Variant::Full), &problem, &given, &calls);
    for (seed, output) in outputs[..600].iter().enumerate().step_by(37) {
        let alone = problem.clone().with_dropout(0.5, seed as u64);
        assert!(run(library(Variant::Full), &alone, &given) == *output, "seed {seed}");
    }
    assert!(outputs[600..] == outputs[..5]);
    assert!(outputs[0] != outputs[1] && outputs[0] != outputs[256] && outputs[255] != outputs[256]);
}

/// Bind groups are used again for the same buffers, and for no others.
#[test]
fn calls_that_take_turns_keep_their_own_buffers() {
    let problem = AttentionProblem::new(AttentionShape::new(1, 2, 20, 8)).with_causal();
    let library = library(Variant::Full);
    let prepared = library.prepare(&problem).unwrap();
    let given: Vec<Inputs> = (0..3).map(|seed| inputs(&problem, seed)).collect();
    let expected: Vec<_> = given.iter().map(|inputs| run(library, &problem, inputs)).collect();
    for round in 0..4 {
        let tensors: Vec<_> = given.iter().map(|inputs| Tensors::new(library, &problem, inputs)).collect();
        for turn in [0, 0, 1, 0, 1, 1, 2] {
            let mut encoder = library.device().create_command_encoder(&Default::default());
            prepared.encode(&mut encoder, &tensors[turn].buffers()).unwrap();
            library.queue().submit([encoder.finish()]);
        }
        for (tensors, expected) in tensors.iter().zip(&expected) {
            assert!(tensors.finish(library, &problem, &Call::default()) == *expected, "round {round}");
        }
        if round == 2 {
            prepared.release_buffers();
        }
    }
}

/// Flash attention takes one pass, or two where its keys are split.
fn passes(problem: &AttentionProblem) -> usize {
    library(Variant::Full).prepare(problem).unwrap().plan().passes().len()
}

fn dispatches(library: &Library, problem: &AttentionProblem) -> usize {
    library.prepare(problem).unwrap().num_dispatches(&Call::default()).unwrap()
}

/// The same bits from a device whose limits force more work into rows of the grid or into more dispatches. Returns how
/// many dispatches that took.
fn same_bits(problem: &AttentionProblem, change: impl Fn(&mut Capabilities)) -> usize {
    let limited = limited(change);
    let inputs = inputs(problem, 1);
    let algorithm = problem.algorithm;
    let whole = run(library(Variant::Full), problem, &inputs);
    assert!(run(&limited, problem, &inputs) == whole, "{algorithm:?}: bits differ");
    assert!(run_dispatch_by_dispatch(&limited, problem, &inputs) == whole, "{algorithm:?}: one by one");
    dispatches(&limited, problem)
}

/// The most that a dimension of the grid may have for one query tile to fit a dispatch, but not two.
fn smallest_grid(problem: &AttentionProblem) -> u32 {
    let plan = library(Variant::Full).prepare(problem).unwrap().plan().clone();
    match problem.algorithm {
        Algorithm::Flash => (1..).find(|side| side * side >= plan.num_splits()).unwrap(),
        // A workgroup for each row of the query tile, or for each key tile, in two dimensions.
        _ => {
            let tiles = plan.tiles();
            let workgroups = tiles.tile_q.max(problem.shape.seqlen_kv.div_ceil(tiles.tile_kv));
            (1..).find(|side| side * side >= workgroups).unwrap()
        }
    }
}

/// 2 sequences of 4 heads over 2 KV heads; one head of Q is 6,400 bytes in f32.
fn problem() -> AttentionProblem {
    let shape = AttentionShape::new(2, 4, 100, 16).with_num_heads_kv(2);
    AttentionProblem::new(shape).with_layout(AttentionLayout::bhsd(&shape)).with_causal().with_dropout(0.2, 9)
}

#[test]
fn undivided_problems_take_one_dispatch_per_pass() {
    assert_eq!(dispatches(library(Variant::Full), &problem()), passes(&problem()));
    assert_eq!(dispatches(library(Variant::Full), &problem().with_algorithm(Algorithm::Standard)), 3);
}

#[test]
fn grids_fold_below_the_limit_of_a_dimension() {
    // One workgroup more than a row of the grid holds: the second row is nearly all idle.
    let plan = library(Variant::Full).prepare(&problem()).unwrap().plan().clone();
    let workgroups = plan.num_splits() * 2 * 4 * 100u32.div_ceil(plan.tiles().tile_q);
    let count = same_bits(&problem(), |capabilities| capabilities.max_workgroups_per_dimension = workgroups - 1);
    assert_eq!(count, passes(&problem()));
}

#[test]
fn grids_past_both_dimensions_are_split() {
    for algorithm in [Algorithm::Flash, Algorithm::Standard] {
        let problem = problem().with_algorithm(algorithm);
        let plan = library(Variant::Full).prepare(&problem).unwrap().plan().clone();
        let side = smallest_grid(&problem);
        let count = same_bits(&problem, |capabilities| capabilities.max_workgroups_per_dimension = side);
        // Query tiles that such a grid holds: more than one only where a few splits of one do not fill it.
        let together = if algorithm == Algorithm::Flash { side * side / plan.num_splits() } else { 1 };
        let tiles = 100u32.div_ceil(plan.tiles().tile_q);
        let least = passes(&problem) * 2 * 4 * tiles.div_ceil(together) as usize;
        assert!(count >= least && (together > 1 || count == least), "{algorithm:?}: {count}, not {least}");
    }
}

#[test]
fn bindings_past_the_limit_are_split() {
    for element in [Element::F32, Element::F16] {
        let flash = problem().with_element(element);
        let count = same_bits(&flash, |capabilities| capabilities.max_binding = 512 << 10);
        assert_eq!(count, passes(&flash));
        let count = same_bits(&flash, |capabilities| capabilities.max_binding = 16 << 10);
        assert!(count >= 2, "{count} dispatches");
        // The score matrix takes 320,000 bytes and more, and one query tile of it up to 64 · 128 · 4.
        let standard = flash.with_algorithm(Algorithm::Standard);
        let few = same_bits(&standard, |capabilities| capabilities.max_binding = 128 << 10);
        let many = same_bits(&standard, |capabilities| capabilities.max_binding = 33 << 10);
        assert!(few >= 3 * 3 && many >= 3 * 10, "{few} and {many} dispatches");
    }
}

#[test]
fn rows_that_share_words_survive_a_split() {
    // 7 halves to a row: the pieces of a split meet within 4-byte words.
    let shape = AttentionShape::new(2, 4, 75, 7).with_num_heads_kv(2);
    for element in [Element::F16, Element::Bf16] {
        for layout in [AttentionLayout::bshd(&shape), AttentionLayout::bhsd(&shape)] {
            for algorithm in [Algorithm::Flash, Algorithm::Standard] {
                let problem =
                    AttentionProblem::new(shape).with_element(element).with_layout(layout).with_algorithm(algorithm);
                let side = smallest_grid(&problem);
                same_bits(&problem, |capabilities| capabilities.max_workgroups_per_dimension = side);
            }
        }
    }
}

#[test]
fn work_is_bounded() {
    let whole = problem();
    let given = inputs(&whole, 1);
    for algorithm in [Algorithm::Flash, Algorithm::Standard] {
        let whole = whole.clone().with_algorithm(algorithm);
        let expected = run(library(Variant::Full), &whole, &given);
        let mut before = dispatches(library(Variant::Full), &whole);
        // Half of the work, and less than one query tile does.
        for max_flops in [whole.forward_flops() / 2, 1] {
            let bounded = whole.clone().with_bounded_work(max_flops);
            assert!(run(library(Variant::Full), &bounded, &given) == expected, "{algorithm:?}: bits differ");
            let now = dispatches(library(Variant::Full), &bounded);
            assert!(now > before, "{algorithm:?}, {max_flops} operations: {now} dispatches after {before}");
            before = now;
        }
        assert_eq!(
            dispatches(library(Variant::Full), &whole.clone().with_bounded_work(u64::MAX)),
            dispatches(library(Variant::Full), &whole)
        );
    }
}

#[test]
fn a_head_that_cannot_be_split_is_refused() {
    // In bshd one KV head spans all of a sequence: 25,600 bytes.
    let shape = AttentionShape::new(2, 4, 100, 16);
    let limited = limited(|capabilities| capabilities.max_binding = 16 << 10);
    for algorithm in [Algorithm::Flash, Algorithm::Standard] {
        let problem = AttentionProblem::new(shape).with_algorithm(algorithm);
        let error = limited.prepare(&problem).err().unwrap();
        assert!(matches!(error, Error::TooLarge { limit: "max_storage_buffer_binding_size", .. }), "{error}");
    }
}

#[test]
fn shorter_calls_may_be_split_differently() {
    let problem = problem().with_bounded_work(200_000);
    let inputs: Inputs = inputs(&problem, 1);
    let calls = [(100, 100), (20, 100), (3, 5)]
        .map(|(seqlen_q, seqlen_kv)| Call::new().with_seqlen_q(seqlen_q).with_seqlen_kv(seqlen_kv));
    let prepared = library(Variant::SmallTiles).prepare(&problem).unwrap();
    let counts = calls.map(|call| prepared.num_dispatches(&call).unwrap());
    assert!(counts[0] > counts[1] && counts[1] > counts[2], "{counts:?}");
    let flash = run_calls(library(Variant::SmallTiles), &problem, &inputs, &calls);
    let standard = problem.clone().with_algorithm(Algorithm::Standard);
    let standard = run_calls(library(Variant::SmallTiles), &standard, &inputs, &calls);
    for ((call, flash), standard) in calls.iter().zip(&flash).zip(&standard) {
        check_answer(&problem_of(&problem, call), &inputs, flash, standard);
    }
}

/// Uniforms are shared by all operations of a device, whatever thread they are encoded and submitted on.
#[test]
fn threads_keep_their_own_seeds() {
    let problem = AttentionProblem::new(AttentionShape::new(1, 1, 3, 4).with_seqlen_kv(40)).with_dropout(0.5, 0);
    let given = inputs(&problem, 1);
    let library = library(Variant::Full);
    let seeds = |thread: u64| (0..400).map(move |n| 10_000 + 1000 * thread + n);
    let call = |seed| Call::new().with_philox_seed(seed);
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (problem, given) = (&problem, &given);
            scope.spawn(move || {
                for seed in seeds(thread) {
                    let output = run_calls(library, problem, given, &[call(seed)]).pop().unwrap();
                    assert!(output.lse().iter().all(|lse| lse.is_finite()), "thread {thread}, seed {seed}");
                }
            });
        }
    });
}
