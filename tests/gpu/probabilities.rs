//! Probabilities of chosen heads and rows, from LSE.

use std::ops::Range;
use wgpu_flash_attention::reference::{self, Arithmetic};
use wgpu_flash_attention::{
    AttentionLayout, AttentionProblem, AttentionShape, Call, Capabilities, Element, ElementType, EntryLayout, Error,
    InvalidProblem, KeyMask, Operand, Plan, ProbabilitiesBuffers, ProbabilitiesProblem, ProbabilitiesSlices, ScoreMod,
};

use crate::support::{Guarded, Inputs, Library, Share, Variant, from_bytes, inputs, library, to_bytes};

fn shape() -> AttentionShape {
    AttentionShape::new(2, 4, 70, 16).with_num_heads_kv(2).with_seqlen_kv(45)
}

/// Runs calls on the caller's own buffers between guards, each with an output of its own.
fn run(library: &Library, chosen: &ProbabilitiesProblem, given: &Inputs, calls: &[Call]) -> Vec<Vec<f64>> {
    let problem = &chosen.attention;
    let prepared = pollster::block_on(library.prepare_probabilities(chosen)).expect("it can be prepared");
    let lse = reference::forward(given.case(problem), &given.q, &given.k, &given.v).lse;
    let upload = |element, values: &[f64]| Guarded::new(library, &to_bytes(element, values));
    let [q, k] = [&given.q, &given.k].map(|values| upload(problem.element, values));
    let lse = upload(Element::F32, &lse);
    // A sink is a part of LSE.
    let entries = given.entries(problem).into_iter().filter(|(operand, _)| *operand != Operand::Sink);
    let entries: Vec<_> = entries.map(|(operand, bytes)| (operand, Guarded::new(library, &bytes))).collect();
    let bytes = prepared.plan().required_bytes(Operand::Probabilities);
    let outputs: Vec<_> = calls.iter().map(|_| Guarded::poisoned(library, bytes)).collect();
    let mut encoder = library.device().create_command_encoder(&Default::default());
    for (call, output) in calls.iter().zip(&outputs) {
        let buffers = ProbabilitiesBuffers::new(q.slice(), k.slice(), lse.slice(), output.slice());
        let buffers = entries.iter().fold(buffers, |all, (operand, tensor)| all.with(*operand, tensor.slice()));
        prepared.encode_call(&mut encoder, &buffers, call).expect("it can be encoded");
    }
    library.queue().submit([encoder.finish()]);
    outputs.iter().map(|output| from_bytes(Element::F32, &output.read(library))).collect()
}

/// Each within its bound, and 0 exactly where the oracle's are.
fn check(library: &Library, problem: &AttentionProblem, heads: Range<u32>, rows: Range<u32>, seed: u64) -> Vec<f64> {
    let given = inputs(problem, seed);
    let chosen = ProbabilitiesProblem::new(problem.clone(), heads.clone(), rows.clone());
    let found = run(library, &chosen, &given, &[Call::new()]).pop().unwrap();
    let expected = reference::probabilities(given.case(problem), &given.q, &given.k, heads.clone(), rows.clone());
    let errors = reference::probabilities_errors(given.case(problem), &given.q, &given.k, heads, rows);
    let gaps = vec![false; expected.len()];
    let share = Share::largest(Element::F32, &found, (&expected, &errors), &gaps, &Arithmetic::F32);
    share.assert("probabilities", problem);
    for (found, expected) in found.iter().zip(&expected) {
        assert!(*expected != 0.0 || *found == 0.0, "{found} where nothing is seen: {problem:?}");
    }
    found
}

#[test]
fn every_element_range_and_mask() {
    let library = library(Variant::Full);
    for &element in Element::ALL {
        let dense = AttentionProblem::new(shape()).with_element(element);
        let masked = dense.clone().with_causal().with_window(Some(20), None).with_dropout(0.3, 5);
        let layouts = AttentionLayout::bhsd(&shape());
        for (heads, rows) in [(0..4, 0..70), (1..2, 69..70), (1..4, 3..68)] {
            check(library, &dense, heads.clone(), rows.clone(), 1);
            check(library, &masked, heads.clone(), rows.clone(), 2);
            check(library, &dense.clone().with_layout(layouts), heads, rows, 3);
        }
    }
}

#[test]
fn every_modifier() {
    let library = library(Variant::Full);
    let dense = AttentionProblem::new(shape());
    let bias = |counts| ScoreMod::Bias { layout: EntryLayout::contiguous(counts), element: Element::F32 };
    let bits = KeyMask::Boolean(EntryLayout::packed_bits([2, 1, 70, 45]));
    let alibi = ScoreMod::Alibi(vec![0.1, 0.2, 0.3, 0.4]);
    let problems = [
        dense.clone().with_score(ScoreMod::Softcap(2.0)).with_score(bias([1, 4, 70, 45])),
        dense.clone().with_score(alibi).with_causal().with_lengths(vec![70, 31], vec![12, 45]),
        dense.clone().with_key_mask(bits).with_score(bias([2, 1, 1, 45])),
        dense.with_sink().with_causal(),
    ];
    for (seed, problem) in (11..).zip(&problems) {
        check(library, problem, 0..4, 0..70, seed);
        check(library, problem, 2..3, 25..60, seed);
    }
}

/// A row sums to 1; with a sink to less; one that sees nothing, or only scores of −∞, is 0.
#[test]
fn rows_sum_to_what_is_left_of_1() {
    let library = library(Variant::Full);
    let causal = AttentionProblem::new(shape()).with_causal();
    let sums = |found: Vec<f64>| found.chunks(45).map(|row| row.iter().sum()).collect::<Vec<f64>>();
    for (row, sum) in sums(check(library, &causal, 0..4, 0..70, 21)).into_iter().enumerate() {
        let expected = if row % 70 < 25 { 0.0 } else { 1.0 };
        assert!((sum - expected).abs() < 1e-5, "row {row}: {sum}");
    }
    let with_sink = sums(check(library, &causal.clone().with_sink(), 0..4, 0..70, 22));
    assert!(with_sink.iter().enumerate().all(|(row, sum)| *sum < 0.99999 && (*sum == 0.0) == (row % 70 < 25)));

    let layout = EntryLayout::contiguous([1, 1, 70, 1]);
    let biased = causal.with_score(ScoreMod::Bias { layout, element: Element::F32 });
    let mut given = inputs(&biased, 23);
    given.bias[40] = f64::NEG_INFINITY;
    let chosen = ProbabilitiesProblem::new(biased, 0..1, 40..42);
    let found = sums(run(library, &chosen, &given, &[Call::new()]).remove(0));
    assert!(found[0] == 0.0 && (found[1] - 1.0).abs() < 1e-5, "{found:?}");
}

#[test]
fn other_devices_and_bounded_work() {
    let shape = AttentionShape::new(3, 3, 33, 7).with_seqlen_kv(35).with_head_dim_v(45);
    let problem = AttentionProblem::new(shape).with_element(Element::F16).with_causal();
    for variant in [Variant::NoShaderF16, Variant::Checked, Variant::WebGpuDefaults] {
        check(library(variant), &problem, 1..3, 5..33, 31);
    }
    let whole = check(library(Variant::Full), &problem, 1..3, 2..33, 32);
    let bounded = check(library(Variant::Full), &problem.with_bounded_work(1), 1..3, 2..33, 32);
    assert!(whole == bounded);
}

/// Rows and keys behind a shorter call are left alone.
#[test]
fn shorter_calls() {
    let problem = AttentionProblem::new(shape());
    let given = inputs(&problem, 41);
    let chosen = ProbabilitiesProblem::new(problem, 1..2, 5..40);
    let calls = [Call::new(), Call::new().with_seqlen_q(20).with_seqlen_kv(30), Call::new().with_seqlen_q(3)];
    let found = run(library(Variant::Full), &chosen, &given, &calls);
    for (n, (long, short)) in found[0].iter().zip(&found[1]).enumerate() {
        let (row, key) = (n / 45 % 35, n % 45);
        let is_own = row < 15 && key < 30;
        assert_eq!(short.is_nan(), !is_own, "row {row}, key {key}");
        assert!(!is_own || (long - short).abs() < 1e-6);
    }
    assert!(found[2].iter().all(|value| value.is_nan()));
}

#[test]
fn problems_of_nothing() {
    for (batch, keys) in [(0, 4), (1, 0)] {
        let shape = AttentionShape::new(batch, 2, 3, 4).with_seqlen_kv(keys);
        assert!(check(library(Variant::Full), &AttentionProblem::new(shape), 0..2, 0..3, 51).is_empty());
    }
}

#[test]
fn from_slices() {
    let attention = library(Variant::Full);
    let layout = EntryLayout::contiguous([1, 4, 70, 45]);
    let problem = AttentionProblem::new(shape()).with_score(ScoreMod::Bias { layout, element: Element::F32 });
    let given = inputs(&problem, 61);
    let f32s = |values: &[f64]| values.iter().map(|value| f32::from_f64(*value)).collect::<Vec<f32>>();
    let lse = f32s(&reference::forward(given.case(&problem), &given.q, &given.k, &given.v).lse);
    let [q, k, bias] = [&given.q, &given.k, &given.bias].map(|values| f32s(values));
    let chosen = ProbabilitiesProblem::new(problem.clone(), 3..4, 10..20);
    let slices = ProbabilitiesSlices::new(&q, &k, &lse).with_bias(&bias);
    let found = pollster::block_on(attention.probabilities(&chosen, &slices)).expect("it runs");
    let expected = run(attention, &chosen, &given, &[Call::new()]).remove(0);
    assert_eq!(found.iter().map(|p| f64::from(*p)).collect::<Vec<_>>(), expected);
    let missing = pollster::block_on(attention.probabilities(&chosen, &ProbabilitiesSlices::new(&q, &k, &lse)));
    assert!(matches!(missing, Err(Error::SliceTooShort { operand: Operand::Bias, found: 0, .. })));
}

#[test]
fn ranges_that_do_not_exist_are_refused() {
    let capabilities = Capabilities::webgpu_defaults();
    let problem = AttentionProblem::new(shape());
    #[expect(clippy::reversed_empty_ranges, reason = "that is what is refused")]
    let wrong = [
        (0..0, 0..70, "heads", 4),
        (3..2, 0..70, "heads", 4),
        (0..5, 0..70, "heads", 4),
        (0..4, 70..70, "rows", 70),
        (0..4, 0..u32::MAX, "rows", 70),
        (u32::MAX..u32::MAX, 0..1, "heads", 4),
    ];
    for (heads, rows, name, count) in wrong {
        let chosen = ProbabilitiesProblem::new(problem.clone(), heads.clone(), rows.clone());
        let Range { start, end } = if name == "heads" { heads } else { rows };
        let refusal = InvalidProblem::Chosen { name, start, end, count };
        assert_eq!(Plan::probabilities(&chosen, &capabilities).build().map(|_| ()), Err(refusal.into()));
    }
    let splits = ProbabilitiesProblem::new(problem, 0..1, 0..1);
    let error = Plan::probabilities(&splits, &capabilities).with_splits(2).build().unwrap_err();
    assert!(matches!(error, Error::InvalidPlan { what: "num_splits", .. }), "{error}");
}
