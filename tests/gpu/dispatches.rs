//! Operations that change from call to call, and operations cut into several dispatches.

use wgpu_flash_attention::plan::{Call, Capabilities};
use wgpu_flash_attention::{
    Algorithm, AttentionLayout, AttentionProblem, AttentionShape, Element, Error, FlashAttention,
};

use crate::support::{
    Inputs, Variant, attention, check_answer, inputs, limited, problem_of, run, run_calls, run_dispatch_by_dispatch,
};

/// Runs all calls of one prepared operation in one encoder, and holds each to its own answer.
fn check_calls(problem: &AttentionProblem, calls: &[Call]) {
    let given = inputs(problem, 1);
    let [flash, standard] = [Algorithm::Flash, Algorithm::Standard]
        .map(|algorithm| run_calls(attention(Variant::Full), &problem.clone().algorithm(algorithm), &given, calls));
    for ((call, flash), standard) in calls.iter().zip(&flash).zip(&standard) {
        check_answer(&problem_of(problem, call), &given, flash, standard);
    }
}

#[test]
fn calls_in_one_encoder_keep_their_own_seeds() {
    let problem = AttentionProblem::new(AttentionShape::new(2, 2, 40, 16)).causal().dropout(0.4, 1);
    let seeded = |philox_seed, philox_offset| Call { philox_seed, philox_offset, ..Call::default() };
    check_calls(
        &problem,
        &[seeded(None, None), seeded(Some(2), None), seeded(Some(1 << 40), Some(7)), seeded(None, Some(8))],
    );
}

#[test]
fn calls_in_one_encoder_keep_their_own_lengths() {
    let calls = [(50, 70), (50, 1), (1, 70), (33, 0), (0, 20), (17, 64)].map(|(seqlen_q, seqlen_kv)| Call {
        seqlen_q: Some(seqlen_q),
        seqlen_kv: Some(seqlen_kv),
        ..Call::default()
    });
    for element in Element::ALL {
        let shape = AttentionShape::new(2, 2, 50, 16).seqlen_kv(70);
        let problem = AttentionProblem::new(shape).element(element);
        check_calls(&problem, &calls);
        check_calls(&problem.clone().causal().dropout(0.1, 3), &calls);
        check_calls(&problem.layout(AttentionLayout::bhsd(&shape)).window(Some(9), Some(4)), &calls);
    }
}

fn dispatches(attention: &FlashAttention, problem: &AttentionProblem) -> usize {
    let prepared = pollster::block_on(attention.prepare_forward(problem)).unwrap();
    prepared.num_dispatches(&Call::default()).unwrap()
}

/// The same bits from a device whose limits force more work into rows of the grid or into more dispatches. Returns how
/// many dispatches each algorithm took.
fn same_bits(problem: &AttentionProblem, change: impl Fn(Algorithm, &mut Capabilities)) -> [usize; 2] {
    let inputs = inputs(problem, 1);
    [Algorithm::Flash, Algorithm::Standard].map(|algorithm| {
        let limited = limited(|capabilities| change(algorithm, capabilities));
        let problem = problem.clone().algorithm(algorithm);
        let whole = run(attention(Variant::Full), &problem, &inputs);
        let parts = run(&limited, &problem, &inputs);
        assert!(whole == parts, "{algorithm:?}: bits differ");
        assert!(run_dispatch_by_dispatch(&limited, &problem, &inputs) == whole, "{algorithm:?}: one by one");
        dispatches(&limited, &problem)
    })
}

/// Nine workgroups to a dispatch; standard attention needs one for each of the 32 rows of a query tile.
fn tiny_grids(algorithm: Algorithm, capabilities: &mut Capabilities) {
    capabilities.max_workgroups_per_dimension = if algorithm == Algorithm::Flash { 3 } else { 6 };
}

/// 2 sequences of 4 heads over 2 KV heads; one head of Q is 6,400 bytes in f32.
fn problem() -> AttentionProblem {
    let shape = AttentionShape::new(2, 4, 100, 16).num_heads_kv(2);
    AttentionProblem::new(shape).layout(AttentionLayout::bhsd(&shape)).causal().dropout(0.2, 9)
}

#[test]
fn undivided_problems_take_one_dispatch_per_pass() {
    assert_eq!(dispatches(attention(Variant::Full), &problem()), 1);
    assert_eq!(dispatches(attention(Variant::Full), &problem().algorithm(Algorithm::Standard)), 3);
}

#[test]
fn grids_fold_below_the_limit_of_a_dimension() {
    // 32 query tiles: a dimension of 30 needs a second row of the grid, and leaves 28 workgroups without work.
    let [flash, _] = same_bits(&problem(), |_, capabilities| capabilities.max_workgroups_per_dimension = 30);
    assert_eq!(flash, 1);
}

#[test]
fn grids_past_both_dimensions_are_split() {
    let [flash, standard] = same_bits(&problem(), tiny_grids);
    assert!(flash >= 4, "{flash} dispatches");
    assert!(standard >= 3 * 32, "{standard} dispatches");
}

#[test]
fn bindings_past_the_limit_are_split() {
    for element in [Element::F32, Element::F16] {
        let problem = problem().element(element);
        // The score matrix takes 358,400 bytes and more.
        let [flash, standard] = same_bits(&problem, |_, capabilities| capabilities.max_binding = 64 << 10);
        assert_eq!(flash, 1);
        assert!(standard >= 3 * 6, "{standard} dispatches");
        let [flash, standard] = same_bits(&problem, |_, capabilities| capabilities.max_binding = 16 << 10);
        assert!(flash >= 2, "{flash} dispatches");
        assert!(standard >= 3 * 24, "{standard} dispatches");
    }
}

#[test]
fn rows_that_share_words_survive_a_split() {
    // 7 halves to a row: the pieces of a split meet within 4-byte words.
    let shape = AttentionShape::new(2, 4, 75, 7).num_heads_kv(2);
    for element in [Element::F16, Element::Bf16] {
        for layout in [AttentionLayout::bshd(&shape), AttentionLayout::bhsd(&shape)] {
            let problem = AttentionProblem::new(shape).element(element).layout(layout);
            same_bits(&problem, tiny_grids);
        }
    }
}

#[test]
fn work_is_bounded() {
    let whole = problem();
    let given = inputs(&whole, 1);
    for algorithm in [Algorithm::Flash, Algorithm::Standard] {
        let whole = whole.clone().algorithm(algorithm);
        let expected = run(attention(Variant::Full), &whole, &given);
        let mut before = dispatches(attention(Variant::Full), &whole);
        // Half of the work, and less than one query tile does.
        for max_flops in [whole.forward_flops() / 2, 1] {
            let bounded = whole.clone().bounded_work(max_flops);
            assert!(run(attention(Variant::Full), &bounded, &given) == expected, "{algorithm:?}: bits differ");
            let now = dispatches(attention(Variant::Full), &bounded);
            assert!(now > before, "{algorithm:?}, {max_flops} operations: {now} dispatches after {before}");
            before = now;
        }
        assert_eq!(
            dispatches(attention(Variant::Full), &whole.clone().bounded_work(u64::MAX)),
            dispatches(attention(Variant::Full), &whole)
        );
    }
}

#[test]
fn a_head_that_cannot_be_split_is_refused() {
    // In bshd one KV head spans all of a sequence: 25,600 bytes.
    let shape = AttentionShape::new(2, 4, 100, 16);
    let limited = limited(|capabilities| capabilities.max_binding = 16 << 10);
    for algorithm in [Algorithm::Flash, Algorithm::Standard] {
        let problem = AttentionProblem::new(shape).algorithm(algorithm);
        let error = pollster::block_on(limited.prepare_forward(&problem)).err().unwrap();
        assert!(matches!(error, Error::TooLarge { limit: "max_storage_buffer_binding_size", .. }), "{error}");
    }
}

#[test]
fn shorter_calls_may_be_split_differently() {
    let problem = problem().bounded_work(200_000);
    let inputs: Inputs = inputs(&problem, 1);
    let calls = [(100, 100), (20, 100), (3, 5)].map(|(seqlen_q, seqlen_kv)| Call {
        seqlen_q: Some(seqlen_q),
        seqlen_kv: Some(seqlen_kv),
        ..Call::default()
    });
    let prepared = pollster::block_on(attention(Variant::Full).prepare_forward(&problem)).unwrap();
    let counts = calls.map(|call| prepared.num_dispatches(&call).unwrap());
    assert!(counts[0] > counts[1] && counts[1] > counts[2], "{counts:?}");
    let flash = run_calls(attention(Variant::Full), &problem, &inputs, &calls);
    let standard = problem.clone().algorithm(Algorithm::Standard);
    let standard = run_calls(attention(Variant::Full), &standard, &inputs, &calls);
    for ((call, flash), standard) in calls.iter().zip(&flash).zip(&standard) {
        check_answer(&problem_of(&problem, call), &inputs, flash, standard);
    }
}
