//! Packed sequences: one behind the other, without padding. Nothing may read or write the rows of a neighbour. In the inputs,
//! rows that no sequence has are NaN; in the outputs, they must stay as they were.

use wgpu_flash_attention::reference::{self, Arithmetic};
use wgpu_flash_attention::{
    Algorithm, AttentionLayout, AttentionProblem, AttentionShape, BlockMask, Call, Element, EntryLayout, Error,
    InvalidProblem, KeyMask, MaskWgsl, Operand, ProbabilitiesProblem, ProbabilitiesSlices, ScoreMod, TensorLayout,
    Tiles,
};

use crate::support::{
    Bytes, GradientInputs, Library, Random, Share, Variant, check, check_both, check_gradients, from_bytes,
    gradient_inputs, inputs, library, limited, run, run_backward, run_backward_dispatch_by_dispatch, run_bytes,
    run_dispatch_by_dispatch, strided, to_bytes, with_matrices, words,
};

/// Nothing, one row, many, no rows, no keys.
const CU_SEQLENS_Q: [u32; 6] = [0, 0, 1, 81, 81, 90];
const CU_SEQLENS_KV: [u32; 6] = [0, 5, 6, 99, 110, 110];

fn shape() -> AttentionShape {
    AttentionShape::new(5, 4, 80, 8).with_num_heads_kv(2).with_seqlen_kv(93)
}

fn packed(problem: AttentionProblem) -> AttentionProblem {
    problem.with_cu_seqlens(CU_SEQLENS_Q.to_vec(), CU_SEQLENS_KV.to_vec())
}

fn problem() -> AttentionProblem {
    packed(AttentionProblem::new(shape()))
}

#[test]
fn every_element_and_mask() {
    for (seed, &element) in (1..).zip(Element::ALL) {
        check_both(library(Variant::Full), &problem().with_element(element), seed);
        check_both(library(Variant::Full), &problem().with_element(element).with_causal(), 10 + seed);
    }
    let windowed = problem().with_causal_top_left().with_window(Some(20), None).with_dropout(0.3, 5);
    check_both(library(Variant::Full), &windowed, 21);
    let dropped = problem().with_window(Some(7), Some(9)).with_dropout(0.2, 6).with_sink();
    check_both(library(Variant::Full), &dropped, 22);
}

#[test]
fn biases_and_masks_count_within_a_sequence() {
    let bits = KeyMask::Boolean(EntryLayout::packed_bits([5, 4, 80, 93]));
    check_both(library(Variant::Full), &problem().with_key_mask(bits), 31);
    let alibi = ScoreMod::Alibi((1..=20).map(|n| n as f32 / 10.0).collect());
    check_both(
        library(Variant::Full),
        &problem().with_causal().with_score(ScoreMod::Softcap(3.0)).with_score(alibi),
        32,
    );
    for (counts, element) in [([5, 1, 80, 93], Element::F32), ([1, 4, 1, 93], Element::F16)] {
        let bias = ScoreMod::Bias { layout: EntryLayout::contiguous(counts), element };
        let biased = problem().with_element(element).with_causal().with_score(bias).with_bias_gradient();
        check_gradients(library(Variant::Full), &biased, &gradient_inputs(&biased, 33));
    }
}

#[test]
fn block_masks_and_own_functions() {
    for mask in [BlockMask::local(9), BlockMask::longformer(5, 3)] {
        check_both(library(Variant::Full), &problem().with_causal().with_key_mask(KeyMask::Blocks(mask)), 41);
    }
    let text =
        "fn mask_mod(b: u32, h: u32, q_idx: u32, kv_idx: u32) -> bool { return (q_idx + kv_idx + b) % 3u != h; }";
    let masked = problem().with_key_mask(KeyMask::Wgsl(MaskWgsl::new(text).expect("it is sound")));
    let mut given = inputs(&masked, 42);
    given.mask_mod = Some(std::sync::Arc::new(|[b, h, i, j]| (i + j + b) % 3 != h));
    check(library(Variant::Full), &masked, &given);
}

#[test]
fn other_tiles_and_devices() {
    for variant in [Variant::SmallTiles, Variant::NoSubgroups, Variant::Checked, Variant::WebGpuDefaults] {
        check_both(library(variant), &problem().with_causal(), 51);
    }
}

#[test]
fn odd_widths_layouts_and_packed_heads() {
    let odd = AttentionShape::new(5, 2, 80, 7).with_num_heads_kv(1).with_head_dim_v(5).with_seqlen_kv(93);
    for &element in Element::ALL {
        let layout = strided(&odd, element != Element::F32);
        check_both(
            library(Variant::Full),
            &packed(AttentionProblem::new(odd).with_element(element).with_layout(layout)),
            61,
        );
    }
    // [heads, total, dim], as nothing else needs.
    let of = |rows: u32, heads: u32| TensorLayout::bhsd(rows, heads, 8);
    let layout = AttentionLayout { q: of(90, 4), k: of(110, 2), v: of(110, 2), o: of(90, 4) };
    check_both(library(Variant::Full), &problem().with_layout(layout), 62);
}

/// Lengths, heads and windows drawn at random; few kinds of kernels, so that nothing is compiled anew.
#[test]
fn drawn_at_random() {
    let mut random = Random(0x5eed_0014);
    for draw in 0..40 {
        let batch = 1 + random.below(6) as u32;
        let mut lengths = |most: u64| -> Vec<u32> {
            let length = |_| if random.below(4) == 0 { random.below(2) as u32 } else { random.below(most) as u32 };
            (0..batch).map(length).collect()
        };
        let (of_q, of_kv) = (lengths(90), lengths(140));
        let sums =
            |lengths: &[u32]| -> Vec<u32> { (0..=lengths.len()).map(|count| lengths[..count].iter().sum()).collect() };
        let [most_q, most_kv] = [&of_q, &of_kv].map(|lengths| lengths.iter().copied().max().unwrap_or(0));
        let (heads_kv, group) = (1 + random.below(2) as u32, 1 + random.below(3) as u32);
        let shape = AttentionShape::new(batch, heads_kv * group, most_q + random.below(3) as u32, 16)
            .with_num_heads_kv(heads_kv)
            .with_seqlen_kv(most_kv + random.below(3) as u32);
        let mut problem = AttentionProblem::new(shape).with_cu_seqlens(sums(&of_q), sums(&of_kv));
        if draw % 2 == 0 {
            let left = (random.below(2) == 0).then(|| random.below(60) as u32);
            let top_left = random.below(3) == 0;
            problem = if top_left { problem.with_causal_top_left() } else { problem.with_causal() };
            problem = problem.with_window(left, None);
        }
        problem.max_flops_per_dispatch = (random.below(5) == 0).then(|| 1 + random.below(100_000));
        check_both(library(Variant::Full), &problem, draw);
    }
}

#[test]
fn on_matrices() {
    let Some(library) = with_matrices() else { return };
    for &element in Element::ALL {
        check_both(library, &problem().with_element(element), 71);
        check_both(library, &problem().with_element(element).with_causal().with_dropout(0.1, 3), 72);
    }
}

#[test]
fn decoding_and_splits() {
    let sums = [vec![0, 1, 1, 4], vec![0, 300, 307, 348]];
    let [cu_seqlens_q, cu_seqlens_kv] = sums;
    let shape = AttentionShape::new(3, 6, 3, 16).with_num_heads_kv(2).with_seqlen_kv(300);
    let problem = AttentionProblem::new(shape).with_causal().with_sink();
    let decode = problem.with_cu_seqlens(cu_seqlens_q, cu_seqlens_kv);
    for num_splits in [1, 4] {
        let library = library(Variant::Full).clone().splits(num_splits);
        check(&library, &decode, &inputs(&decode, 81));
        check(&library, &self::problem(), &inputs(&self::problem(), 82));
    }
}

#[test]
fn divided_into_dispatches() {
    let bounded = problem().with_causal().with_sink().with_bounded_work(1);
    check_both(library(Variant::Full), &bounded, 91);
    let (of_rows, given) = (inputs(&bounded, 92), gradient_inputs(&bounded, 92));
    let whole = problem().with_causal().with_sink();
    let by_dispatch = run_dispatch_by_dispatch(library(Variant::Full), &bounded, &of_rows);
    assert!(by_dispatch == run(library(Variant::Full), &whole, &of_rows));
    run_backward_dispatch_by_dispatch(library(Variant::Full), &bounded, &given);
    // Heads that lie apart can be bound by themselves, rows of packed sequences cannot.
    let of = |rows: u32, heads: u32| TensorLayout::bhsd(rows, heads, 8);
    let layout = AttentionLayout { q: of(90, 4), k: of(110, 2), v: of(110, 2), o: of(90, 4) };
    let narrow = limited(|capabilities| capabilities.max_binding = 8192);
    let apart = problem().with_layout(layout);
    let full = library(Variant::Full);
    let given = gradient_inputs(&apart, 93);
    assert!(run(&narrow, &apart, &given.inputs) == run(full, &apart, &given.inputs));
    assert!(run_backward(&narrow, &apart, &given) == run_backward(full, &apart, &given));
    let refused = narrow.plan_forward(&problem()).build().expect_err("interleaved heads are bound together");
    assert!(matches!(refused, Error::TooLarge { .. }), "{refused}");
}

#[test]
fn rows_that_a_sequence_does_not_use_are_left_alone() {
    let used = problem().with_causal().with_lengths(vec![0, 1, 70, 0, 3], vec![5, 0, 64, 11, 0]);
    check_both(library(Variant::Full), &used, 101);
    check_both(library(Variant::Full), &used.with_dropout(0.2, 3).with_bounded_work(1), 102);
}

#[test]
fn packed_rows_over_padded_keys() {
    let rows = AttentionProblem::new(shape()).with_causal().with_cu_seqlens_q(CU_SEQLENS_Q.to_vec());
    check_both(library(Variant::Full), &rows, 111);
    let used = rows.with_lengths(vec![0, 1, 70, 0, 9], vec![5, 0, 64, 11, 93]);
    check_both(library(Variant::Full), &used.clone().with_sink(), 112);
    let decode = AttentionShape::new(3, 6, 3, 16).with_num_heads_kv(2).with_seqlen_kv(300);
    let decode = AttentionProblem::new(decode).with_causal().with_cu_seqlens_q(vec![0, 1, 1, 4]);
    let decode = decode.with_lengths(vec![1, 0, 3], vec![299, 9, 41]);
    let library = library(Variant::Full).clone().splits(3);
    check(&library, &decode, &inputs(&decode, 113));
}

/// What a sequence gives does not depend on its neighbours: all bits are those of the sequence by itself.
#[test]
fn each_sequence_is_as_if_alone() {
    for (element, is_causal) in [(Element::F32, false), (Element::F32, true), (Element::F16, true)] {
        let with_mask = |problem: AttentionProblem| if is_causal { problem.with_causal() } else { problem };
        let together = with_mask(problem().with_element(element));
        let given = gradient_inputs(&together, 121);
        let library = library(Variant::Full).clone().tiles(Tiles::new(32, 16, 4, 4), Tiles::new(32, 32, 4, 8));
        let run = |problem: &AttentionProblem, given: &[(Operand, Vec<u8>)], is_backward: bool| -> Bytes {
            run_bytes(&library, problem, is_backward, &[(given.to_vec(), Call::new())]).pop().expect("one call")
        };
        let inputs = given.tensors(&together, true);
        let forward = run(&together, &given.tensors(&together, false), false);
        let backward = run(&together, &inputs, true);
        let (size, shape) = (element.size() as usize, shape());
        for n in 0..shape.batch as usize {
            let [rows, keys] = [CU_SEQLENS_Q, CU_SEQLENS_KV].map(|sums| sums[n] as usize..sums[n + 1] as usize);
            if rows.is_empty() || keys.is_empty() {
                continue;
            }
            let alone = AttentionShape { batch: 1, seqlen_q: rows.len() as u32, seqlen_kv: keys.len() as u32, ..shape };
            let alone = with_mask(AttentionProblem::new(alone).with_element(element));
            let part = |operand: Operand, bytes: &[u8]| -> Vec<u8> {
                let of_row = |heads: u32| heads as usize * 8 * size;
                match operand {
                    Operand::K | Operand::V | Operand::Dk | Operand::Dv => {
                        bytes[keys.start * of_row(2)..keys.end * of_row(2)].to_vec()
                    }
                    Operand::Lse | Operand::DLse => {
                        bytes.chunks(90 * 4).flat_map(|head| head[rows.start * 4..rows.end * 4].to_vec()).collect()
                    }
                    _ => bytes[rows.start * of_row(4)..rows.end * of_row(4)].to_vec(),
                }
            };
            let given: Vec<_> = inputs.iter().map(|(operand, bytes)| (*operand, part(*operand, bytes))).collect();
            let of_forward = |operand: &Operand| [Operand::Q, Operand::K, Operand::V].contains(operand);
            let given_forward: Vec<_> = given.iter().filter(|(operand, _)| of_forward(operand)).cloned().collect();
            for (operand, found) in run(&alone, &given_forward, false).iter().chain(&run(&alone, &given, true)) {
                let together = backward.get(operand).filter(|_| *operand != Operand::O && *operand != Operand::Lse);
                let together = together.unwrap_or_else(|| &forward[operand]);
                let is_given = given.iter().any(|(other, bytes)| other == operand && bytes == found);
                let same = is_given || *found == part(*operand, together);
                assert!(same, "{operand} of sequence {n}: {element:?}, causal: {is_causal}");
            }
        }
    }
}

/// Sums, then how many rows and keys a sequence uses.
type Given = ([[u32; 6]; 2], Option<[[u32; 5]; 2]>);

const SEQUENCES: [Given; 4] = [
    ([CU_SEQLENS_Q, CU_SEQLENS_KV], None),
    ([[0, 18, 36, 54, 72, 90], [0, 22, 44, 66, 88, 110]], None),
    ([[0, 0, 0, 10, 10, 90], [0, 1, 2, 3, 40, 41]], None),
    ([[0, 18, 36, 54, 72, 90], [0, 22, 44, 66, 88, 110]], Some([[18, 0, 1, 17, 5], [0, 22, 21, 1, 5]])),
];

fn tensors_of(given: &GradientInputs, known: &AttentionProblem, is_backward: bool) -> Vec<(Operand, Vec<u8>)> {
    given.tensors(known, is_backward)
}

/// One prepared operation for all sums, in one encoder, against one for each.
fn check_calls(library: &Library, problem: &AttentionProblem, is_backward: bool) {
    for has_lengths in [false, true] {
        let (mut answers, mut calls): (Vec<Bytes>, Vec<_>) = Default::default();
        for ([sums_q, sums_kv], seqlens) in SEQUENCES.iter().filter(|(_, seqlens)| seqlens.is_some() == has_lengths) {
            let known = problem.clone().with_cu_seqlens(sums_q.to_vec(), sums_kv.to_vec());
            let known = seqlens.map_or(known.clone(), |[q, kv]| known.with_lengths(q.to_vec(), kv.to_vec()));
            // The tensors are as long as those of the problem that is prepared.
            let mut given = tensors_of(&gradient_inputs(&known, 131), &known, is_backward);
            answers.extend(run_bytes(library, &known, is_backward, &[(given.clone(), Call::new())]));
            for (operand, bytes) in &mut given {
                if matches!(operand, Operand::K | Operand::V) {
                    bytes.resize(110 * 2 * 8 * problem.element.size() as usize, 0xff);
                }
            }
            given.extend([(Operand::CuSeqlensQ, words(sums_q)), (Operand::CuSeqlensKv, words(sums_kv))]);
            if let Some([q, kv]) = seqlens {
                given.extend([(Operand::SeqlensQ, words(q)), (Operand::SeqlensKv, words(kv))]);
            }
            calls.push((given, Call::new()));
        }
        let at_call = problem.clone().with_cu_seqlens_at_call(90, 110);
        let with_lengths = at_call.clone().with_seqlens_q_at_call().with_seqlens_kv_at_call();
        let found = run_bytes(library, if has_lengths { &with_lengths } else { &at_call }, is_backward, &calls);
        for (n, (found, expected)) in found.iter().zip(&answers).enumerate() {
            for (operand, bytes) in expected {
                assert!(found[operand][..bytes.len()] == *bytes, "{operand} of call {n}: {problem:?}");
                let is_untouched = found[operand][bytes.len()..].iter().all(|byte| *byte == 0xff);
                assert!(is_untouched, "{operand} of call {n} behind the last sequence: {problem:?}");
            }
        }
    }
}

#[test]
fn one_operation_serves_all_sums() {
    for algorithm in [Algorithm::Flash, Algorithm::Standard] {
        for problem in [
            AttentionProblem::new(shape()).with_causal().with_sink(),
            AttentionProblem::new(shape())
                .with_element(Element::F16)
                .with_window(Some(9), Some(2))
                .with_dropout(0.2, 7),
        ] {
            check_calls(library(Variant::Full), &problem.clone().with_algorithm(algorithm), false);
            check_calls(library(Variant::Full), &problem.with_algorithm(algorithm), true);
        }
    }
    let bounded = AttentionProblem::new(shape()).with_bounded_work(1);
    check_calls(library(Variant::Checked), &bounded, false);
    check_calls(&library(Variant::Full).clone().splits(3), &AttentionProblem::new(shape()), false);
}

#[test]
fn one_operation_serves_all_sums_on_matrices() {
    let Some(library) = with_matrices() else { return };
    let problem = AttentionProblem::new(shape()).with_element(Element::F16).with_causal();
    check_calls(library, &problem, false);
    check_calls(library, &problem, true);
}

/// Sums that fall, pass the tensors or the largest lengths, or are negative: numbers may be wrong, but what is outside stays.
/// Guards around every tensor are checked by `run_bytes`, and every access by wgpu's checks in one of the two.
#[test]
fn impossible_sums_read_and_write_nothing_outside() {
    let hostile: [[u32; 6]; 7] = [
        [0, 90, 0, 90, 0, 90],
        [90, 80, 70, 60, 50, 0],
        [0, u32::MAX, 0x8000_0000, 0x7fff_ffff, 1 << 30, u32::MAX],
        [u32::MAX; 6],
        [0x7fff_ffff; 6],
        [u32::MAX - 5, 200, u32::MAX - 3, 89, 91, 0x7fff_ff00],
        [89, 1000, 89, 90, 90, 1 << 31],
    ];
    let lengths: [u32; 5] = [u32::MAX, 1 << 31, 0x7fff_ffff, 81, 1000];
    for (algorithm, variant) in
        [(Algorithm::Flash, Variant::Full), (Algorithm::Flash, Variant::Checked), (Algorithm::Standard, Variant::Full)]
    {
        for has_lengths in [false, true] {
            let problem = AttentionProblem::new(shape()).with_causal().with_sink().with_algorithm(algorithm);
            let given = gradient_inputs(&packed(problem.clone()), 141);
            let at_call = problem.clone().with_cu_seqlens_at_call(90, 110);
            let with_lengths = at_call.clone().with_seqlens_q_at_call().with_seqlens_kv_at_call();
            let at_call = if has_lengths { with_lengths } else { at_call };
            for is_backward in [false, true] {
                let mut calls = Vec::new();
                for (n, sums) in hostile.iter().enumerate() {
                    let mut tensors = given.tensors(&packed(problem.clone()), is_backward);
                    let other = &hostile[(n + 1) % hostile.len()];
                    tensors.extend([(Operand::CuSeqlensQ, words(sums)), (Operand::CuSeqlensKv, words(other))]);
                    if has_lengths {
                        tensors.extend([(Operand::SeqlensQ, words(&lengths)), (Operand::SeqlensKv, words(&lengths))]);
                    }
                    calls.push((tensors, Call::new()));
                }
                run_bytes(library(variant), &at_call, is_backward, &calls);
            }
        }
    }
}

#[test]
fn probabilities_are_padded() {
    let problem = problem().with_causal();
    let given = inputs(&problem, 151);
    let (heads, rows) = (1..3, 0..75);
    let chosen = ProbabilitiesProblem::new(problem.clone(), heads.clone(), rows.clone());
    let in_f32 = |values: &[f64]| -> Vec<f32> { values.iter().map(|value| *value as f32).collect() };
    let [q, k] = [&given.q, &given.k].map(|values| in_f32(values));
    let lse = in_f32(&reference::forward(given.case(&problem), &given.q, &given.k, &given.v).lse);
    let slices = ProbabilitiesSlices::new(&q, &k, &lse);
    let found = library(Variant::Full).probabilities(&chosen, &slices);
    let found: Vec<f64> = pollster::block_on(found).expect("they are computed").into_iter().map(f64::from).collect();
    let expected = reference::probabilities(given.case(&problem), &given.q, &given.k, heads.clone(), rows.clone());
    let errors = reference::probabilities_errors(given.case(&problem), &given.q, &given.k, heads, rows);
    let gaps = vec![false; expected.len()];
    Share::largest(Element::F32, &found, (&expected, &errors), &gaps, &Arithmetic::F32).assert("P", &problem);
    assert_eq!(found.len(), 5 * 2 * 75 * 93);
}

#[test]
fn counts_of_zero() {
    let (some_q, some_kv) = (CU_SEQLENS_Q.to_vec(), CU_SEQLENS_KV.to_vec());
    for sums in [[vec![0; 6], some_kv], [some_q, vec![0; 6]], [vec![0; 6], vec![0; 6]]] {
        let [cu_seqlens_q, cu_seqlens_kv] = sums;
        let problem = AttentionProblem::new(shape()).with_causal().with_sink();
        check_both(library(Variant::Full), &problem.with_cu_seqlens(cu_seqlens_q, cu_seqlens_kv), 171);
    }
    let none = AttentionProblem::new(AttentionShape { batch: 0, ..shape() }).with_cu_seqlens(vec![0], vec![0]);
    check_both(library(Variant::Full), &none, 172);
}

/// A call for shorter rows and keys leaves what lies behind them, of each sequence.
#[test]
fn shorter_calls_clamp_lengths() {
    let problem = problem().with_causal();
    let given = gradient_inputs(&problem, 181);
    let call = Call::new().with_seqlen_q(50).with_seqlen_kv(60);
    let found = run_bytes(library(Variant::Full), &problem, false, &[(given.tensors(&problem, false), call)]);
    let shorter = problem.with_lengths(vec![0, 1, 50, 0, 9], vec![5, 1, 60, 11, 0]);
    let tensors = given.tensors(&shorter, false);
    let expected = run_bytes(library(Variant::Full), &shorter, false, &[(tensors, Call::new())]);
    assert!([Operand::O, Operand::Lse].iter().all(|operand| found[0][operand] == expected[0][operand]));
}

/// Rows that no sequence uses have O = 0, LSE = −∞ and gradients of 0 in the slice form.
#[test]
fn slices() {
    let used = problem().with_lengths(vec![0, 1, 70, 0, 3], vec![5, 1, 64, 11, 0]);
    let given = gradient_inputs(&used, 161);
    let in_f32 = |values: &[f64]| -> Vec<f32> { values.iter().map(|value| *value as f32).collect() };
    let [q, k, v] = [&given.inputs.q, &given.inputs.k, &given.inputs.v].map(|values| in_f32(values));
    let output = pollster::block_on(library(Variant::Full).forward(&used, &q, &k, &v)).expect("it is computed");
    let expected = run_bytes(library(Variant::Full), &used, false, &[(given.tensors(&used, false), Call::new())]);
    let of = |operand: Operand, unused: f64| -> Vec<f32> {
        let values = from_bytes(Element::F32, &expected[0][&operand]);
        values.iter().map(|value| if value.is_nan() { unused as f32 } else { *value as f32 }).collect()
    };
    assert_eq!(output.o, of(Operand::O, 0.0));
    assert_eq!(output.lse, of(Operand::Lse, f64::NEG_INFINITY));
    assert_eq!(output.lse.len(), 4 * 90);
    assert!(output.lse[..1].iter().all(|lse| lse.is_finite()) && output.lse[71..81].iter().all(|lse| *lse < -1e30));
    assert_eq!(to_bytes(Element::F32, &[0.0]), [0; 4]);
}

#[test]
fn sums_that_cannot_be_are_refused() {
    let dense = || AttentionProblem::new(AttentionShape::new(2, 1, 5, 8).with_seqlen_kv(7));
    let refused = |problem: AttentionProblem, name: &'static str, reason: &str| {
        let error = library(Variant::Full).plan_forward(&problem).build().expect_err("they cannot be");
        let reason = reason.to_owned();
        assert_eq!(error, Error::InvalidProblem(InvalidProblem::Lengths { name, reason }));
    };
    let sums = |q: [u32; 3], kv: [u32; 3]| dense().with_cu_seqlens(q.to_vec(), kv.to_vec());
    refused(sums([1, 2, 3], [0, 7, 14]), "cu_seqlens_q", "they start at 1; the first sum is 0");
    refused(sums([0, 5, 4], [0, 7, 14]), "cu_seqlens_q", "they fall from 5 to 4 at sequence 1");
    refused(sums([0, 5, 10], [0, 8, 14]), "cu_seqlens_kv", "sequence 0 has 8 rows; the problem has seqlen_kv = 7");
    refused(
        dense().with_cu_seqlens(vec![0, 5], vec![0, 7, 14]),
        "cu_seqlens_q",
        "2 sums are given for 2 sequences, which have 3",
    );
    refused(
        sums([0, 2, 4], [0, 7, 14]).with_lengths(vec![2, 3], vec![7, 7]),
        "seqlens_q",
        "that of sequence 1 is 3; it has room for 2",
    );
    refused(
        sums([0, 2, 4], [0, 7, 14]).with_seqlens_kv_at_call(),
        "seqlens_kv",
        "cu_seqlens_kv and they must both be parts of the problem, or both come at the call",
    );
    let error = pollster::block_on(library(Variant::Full).forward(
        &dense().with_cu_seqlens_at_call(10, 14),
        &[0.0f32; 80],
        &[0.0; 112],
        &[0.0; 112],
    ));
    assert!(matches!(error, Err(Error::InvalidProblem(InvalidProblem::Lengths { name: "cu_seqlens_q", .. }))));
}
