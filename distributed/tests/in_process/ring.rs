//! The ring and the zigzag.

use crate::support::{Inputs, Results, bias_of, on_one_device, on_ranks, rms, within};
use wgpu_flash_attention::reference;
use wgpu_flash_attention::{
    AttentionProblem, AttentionShape, Element, EntryLayout, KeyMask, MaskWgsl, ScoreMod, ScoreWgsl, alibi_slopes,
};
use wgpu_flash_attention_distributed::Scheme;

/// Four heads over two, an odd length.
fn problem(seqlen: u32) -> AttentionProblem {
    AttentionProblem::new(AttentionShape::new(1, 4, seqlen, 16).with_num_heads_kv(2))
}

/// Within the bounds of each number; and of all numbers together, the error of one device at most so many times.
fn check(scheme: Scheme, ranks: usize, problem: &AttentionProblem, seed: u64, backward: bool) -> Results {
    let given = Inputs::new(problem, seed);
    let found = on_ranks(scheme, ranks, problem, &given, backward);
    let one = on_one_device(problem, &given, backward);
    let (case, [q, k, v]) = (given.case(problem), [&given.q[..], &given.k, &given.v]);
    let expected = reference::forward(case, q, k, v);
    let errors = reference::forward_errors(case, q, k, v);
    within("O", problem.element, &found.o, &expected.o, &errors.o, problem);
    within("LSE", Element::F32, &found.lse, &expected.lse, &errors.lse, problem);
    let most = if problem.element == Element::F32 { 2.0 } else { 1.2 };
    let (ranks, alone) = (rms(&found.o, &expected.o), rms(&one.o, &expected.o));
    assert!(ranks <= most * alone, "O: ranks err by {ranks:e}, one device by {alone:e}\n{problem:?}");
    if let (Some(of_ranks), Some(of_one)) = (&found.gradients, &one.gradients) {
        // Each for the O that its forward pass gave: rounding moves D.
        let for_o = |o: &[f64]| reference::backward_for(case, [q, k, v, o], &given.d_o, None);
        let (of_found, of_other) = (for_o(&found.o), for_o(&one.o));
        let expected = [[&of_found.dq, &of_other.dq], [&of_found.dk, &of_other.dk], [&of_found.dv, &of_other.dv]];
        for (tensor, ([found, other], name)) in expected.into_iter().zip(["dQ", "dK", "dV"]).enumerate() {
            let (ranks, alone) = (rms(&of_ranks[tensor], found), rms(&of_one[tensor], other));
            assert!(ranks <= 3.0 * alone, "{name}: ranks err by {ranks:e}, one device by {alone:e}\n{problem:?}");
        }
        if let Some((_, element)) = bias_of(problem).filter(|_| problem.has_bias_gradient()) {
            let [ranks, alone] = [rms(&found.d_bias, &of_found.dbias), rms(&one.d_bias, &of_other.dbias)];
            assert!(ranks <= 3.0 * alone, "dBias: ranks err by {ranks:e}, one device by {alone:e}\n{problem:?}");
            let errors = reference::backward_errors(case, [q, k, v, &found.o], &given.d_o, None);
            within("dBias", element, &found.d_bias, &of_found.dbias, &errors.dbias, problem);
        }
        if problem.has_sink() {
            // Few numbers, each a sum that cancels: one device may be right by chance.
            let errors = reference::backward_errors(case, [q, k, v, &found.o], &given.d_o, None);
            within("dSink", Element::F32, &found.d_sink, &of_found.dsink, &errors.dsink, problem);
        }
    }
    found
}

#[test]
fn ranks_give_what_one_device_gives() {
    for ranks in 1..=4 {
        for &element in Element::ALL {
            let problem = problem(101).with_element(element);
            check(Scheme::Ring, ranks, &problem, 1, false);
            check(Scheme::Zigzag, ranks, &problem.with_causal(), 2, false);
        }
    }
}

#[test]
fn positions_are_those_of_the_whole() {
    let modified = problem(101).with_score(ScoreMod::Softcap(20.0)).with_score(ScoreMod::Alibi(alibi_slopes(4)));
    for (scheme, problem) in [
        (Scheme::Ring, problem(101).with_window(Some(30), Some(7))),
        (Scheme::Ring, problem(101).with_causal().with_dropout(0.3, 5)),
        (Scheme::Zigzag, problem(101).with_causal().with_dropout(0.3, 0xfeed_0000_0001)),
        (Scheme::Zigzag, modified.with_causal().with_window(Some(40), None)),
        (Scheme::Zigzag, AttentionProblem::new(AttentionShape::new(2, 2, 30, 13).with_seqlen_kv(77)).with_causal()),
        (Scheme::Ring, AttentionProblem::new(AttentionShape::new(2, 2, 77, 16).with_seqlen_kv(30)).with_causal()),
    ] {
        check(scheme, 3, &problem, 3, false);
    }
}

/// Own WGSL that does what a modifier and a mask of the library do.
#[test]
fn own_wgsl_goes_by_positions_of_the_whole() {
    let score = "fn score_mod(score: f32, batch: u32, head: u32, q_idx: u32, kv_idx: u32) -> f32 { return 20.0 * tanh(score / 20.0); }";
    let mask = "fn mask_mod(batch: u32, head: u32, q_idx: u32, kv_idx: u32) -> bool { return kv_idx <= q_idx; }";
    let masked = problem(101).with_key_mask(KeyMask::Wgsl(MaskWgsl::new(mask).unwrap()));
    let modified = masked.clone().with_score(ScoreMod::Wgsl(ScoreWgsl::new(score).unwrap()));
    let causal = problem(101).with_causal();
    for (own, same, backward) in
        [(masked, causal.clone(), true), (modified, causal.with_score(ScoreMod::Softcap(20.0)), false)]
    {
        let given = Inputs::new(&own, 12);
        let found = on_ranks(Scheme::Zigzag, 3, &own, &given, backward);
        let one = on_one_device(&own, &given, backward);
        let expected = reference::forward(&same, &given.q, &given.k, &given.v);
        let errors = [&found.o, &one.o].map(|o| rms(o, &expected.o));
        assert!(errors[0] <= 2.0 * errors[1], "O: {errors:?}");
        if let (Some(found), Some(one)) = (&found.gradients, &one.gradients) {
            let inputs = [&given.q[..], &given.k, &given.v, &expected.o];
            let expected = reference::backward_for(&same, inputs, &given.d_o, None);
            for (tensor, expected) in [&expected.dq, &expected.dk, &expected.dv].into_iter().enumerate() {
                assert!(rms(&found[tensor], expected) <= 3.0 * rms(&one[tensor], expected), "gradient {tensor}");
            }
        }
    }
}

/// A logit for each head joins the sum of each row once, not once in each step.
#[test]
fn sinks_are_counted_once() {
    for ranks in 1..=4 {
        check(Scheme::Ring, ranks, &problem(101).with_sink(), 21, ranks == 3);
        check(Scheme::Zigzag, ranks, &problem(101).with_sink().with_causal().with_dropout(0.2, 9), 22, true);
    }
    for element in [Element::F16, Element::Bf16] {
        let problem = problem(101).with_sink().with_element(element);
        check(Scheme::Zigzag, 3, &problem.clone().with_causal(), 23, true);
        check(Scheme::Ring, 2, &problem.with_window(Some(20), Some(9)), 24, true);
    }
    // Rows that see no key, and ranks without rows or keys: LSE is the sink.
    for (seqlen_q, seqlen_kv) in [(40, 10), (9, 0), (2, 3)] {
        let shape = AttentionShape::new(2, 2, seqlen_q, 16).with_seqlen_kv(seqlen_kv);
        check(Scheme::Zigzag, 3, &AttentionProblem::new(shape).with_causal().with_sink(), 25, true);
    }
}

/// A problem with a bias of so many entries and a mask of so many.
fn with_entries(
    problem: AttentionProblem,
    bias: Option<([u32; 4], Element)>,
    mask: Option<[u32; 4]>,
) -> AttentionProblem {
    let bias = bias.map(|(counts, element)| ScoreMod::Bias { layout: EntryLayout::contiguous(counts), element });
    let mask = mask.map(|counts| KeyMask::Boolean(EntryLayout::packed_bits(counts)));
    let problem = bias.into_iter().fold(problem, AttentionProblem::with_score);
    mask.into_iter().fold(problem, AttentionProblem::with_key_mask)
}

#[test]
fn entries_are_those_of_rows_and_keys() {
    for (scheme, problem) in [(Scheme::Ring, problem(101)), (Scheme::Zigzag, problem(101).with_causal())] {
        let whole = [1, 4, 101, 101];
        for (ranks, bias, mask) in [
            (2, Some((whole, Element::F32)), None),
            (3, Some(([1, 1, 101, 101], Element::F32)), Some([1, 1, 1, 101])),
            (4, Some(([1, 4, 1, 101], Element::F32)), Some([1, 4, 101, 1])),
            (3, None, Some(whole)),
        ] {
            check(scheme, ranks, &with_entries(problem.clone(), bias, mask), 31, true);
        }
        let halves = problem.with_element(Element::F16).with_sink();
        check(scheme, 3, &with_entries(halves, Some((whole, Element::F16)), Some(whole)), 32, true);
    }
}

/// Each entry of a bias is added to one score, or to that of each sequence: a rank has its whole gradient.
#[test]
fn gradients_of_a_bias_stay_with_its_rows() {
    for (scheme, element, counts) in
        [(Scheme::Ring, Element::F32, [2, 4, 53, 45]), (Scheme::Zigzag, Element::F32, [1, 1, 53, 45])]
    {
        let shape = AttentionShape::new(2, 4, 53, 16).with_num_heads_kv(2).with_seqlen_kv(45);
        let problem = AttentionProblem::new(shape).with_causal().with_bias_gradient();
        check(scheme, 3, &with_entries(problem.clone(), Some((counts, element)), None), 41, true);
        check(
            scheme,
            2,
            &with_entries(problem.with_element(Element::F16), Some((counts, Element::F16)), None),
            42,
            true,
        );
    }
}

/// Fewer rows than ranks, and none; rows that see nothing.
#[test]
fn ranks_may_have_nothing() {
    for (seqlen_q, seqlen_kv) in [(1, 1), (5, 3), (6, 0), (9, 2)] {
        let shape = AttentionShape::new(1, 2, seqlen_q, 16).with_seqlen_kv(seqlen_kv);
        for scheme in [Scheme::Ring, Scheme::Zigzag] {
            check(scheme, 4, &AttentionProblem::new(shape).with_causal(), 4, false);
        }
    }
    let none = AttentionProblem::new(AttentionShape::new(1, 2, 0, 16).with_seqlen_kv(9));
    let found = on_ranks(Scheme::Ring, 2, &none, &Inputs::new(&none, 1), true);
    assert!(found.o.is_empty() && found.gradients.is_some_and(|gradients| gradients[1].iter().all(|dk| *dk == 0.0)));
}

#[test]
fn gradients_are_those_of_one_device() {
    for ranks in 1..=4 {
        check(Scheme::Ring, ranks, &problem(101), 5, true);
        check(Scheme::Zigzag, ranks, &problem(101).with_causal().with_dropout(0.2, 9), 6, true);
    }
    for element in [Element::F16, Element::Bf16] {
        check(Scheme::Zigzag, 2, &problem(101).with_element(element).with_causal(), 7, true);
        check(Scheme::Ring, 3, &problem(101).with_element(element).with_window(Some(20), Some(9)), 8, true);
    }
}

/// Sequences whose rows do not fill whole words.
#[test]
fn sequences_begin_at_whole_words() {
    let shape = AttentionShape::new(3, 1, 27, 13);
    let problem = AttentionProblem::new(shape).with_element(Element::F16).with_causal();
    check(Scheme::Zigzag, 2, &problem, 10, true);
    check(Scheme::Ring, 3, &problem, 11, true);
}

#[test]
fn repeats_are_bit_identical() {
    let problem = problem(101).with_causal().with_dropout(0.2, 9);
    let given = Inputs::new(&problem, 9);
    let first = on_ranks(Scheme::Zigzag, 3, &problem, &given, true);
    for _ in 0..20 {
        assert!(on_ranks(Scheme::Zigzag, 3, &problem, &given, true) == first);
    }
}
