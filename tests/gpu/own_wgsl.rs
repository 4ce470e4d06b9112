//! Functions in the caller's own WGSL, in every kernel: score_mod, its gradient, and mask_mod.

use std::sync::Arc;

use wgpu_flash_attention::reference::{self, Score};
use wgpu_flash_attention::{
    Algorithm, AttentionProblem, AttentionShape, AuxType, BackwardSlices, Capabilities, Element, EntryLayout, Error,
    ForwardSlices, InvalidProblem, KeyMask, MaskWgsl, Operand, Plan, ScoreMod, ScoreWgsl, WgslOptions,
};

use crate::support::{
    GradientInputs, Library, Variant, check, check_answer, check_gradients, gradient_inputs, inputs, library, run,
    strided, with_matrices,
};

/// A curve through 0 whose bend is data: S + aux · S² / 10, by relative position.
const CURVED: &str = "
const REACH = 8;

fn entry(q_idx: u32, kv_idx: u32) -> f32 { return aux[clamp(i32(q_idx) - i32(kv_idx), -REACH, REACH) + REACH]; }

fn score_mod(score: f32, batch: u32, head: u32, q_idx: u32, kv_idx: u32) -> f32 {
  let bend = entry(q_idx, kv_idx) * f32(1u + head) / f32(1u + batch);
  return fma(0.1 * bend * score, score, score);
}

fn score_mod_grad(grad: f32, score: f32, batch: u32, head: u32, q_idx: u32, kv_idx: u32) -> f32 {
  let bend = entry(q_idx, kv_idx) * f32(1u + head) / f32(1u + batch);
  return grad * fma(0.2 * bend, score, 1.0);
}
";

/// A loop, a struct and a helper: the three keys before each multiple of 5, the row's own, and two of every seven.
const MASK: &str = "
struct Pair { first: u32, second: u32 }

fn pair_of(kv_idx: u32) -> Pair { return Pair(kv_idx % 5u, kv_idx % 7u); }

fn mask_mod(batch: u32, head: u32, q_idx: u32, kv_idx: u32) -> bool {
  let pair = pair_of(kv_idx);
  for (var step = 1u; step <= 3u; step++) {
    if pair.first == 5u - step { return true; }
  }
  return kv_idx == q_idx || pair.second <= head % 2u + batch;
}
";

fn curved(aux: &[f32], score: f64, [batch, head, row, key]: [u32; 4]) -> Score {
    let entry = aux[((i64::from(row) - i64::from(key)).clamp(-8, 8) + 8) as usize];
    let bend = f64::from(entry) * f64::from(1 + head) / f64::from(1 + batch);
    let curve = 0.1 * bend * score * score;
    let steep = 0.2 * bend * score;
    Score {
        value: score + curve,
        slope: 1.0 + steep,
        bend: 0.2 * bend,
        rounding: 5.0 * curve.abs() + score.abs(),
        slope_rounding: 5.0 * steep.abs() + 1.0,
    }
}

fn mask([batch, head, row, key]: [u32; 4]) -> bool {
    key % 5 >= 2 || key == row || key % 7 <= head % 2 + batch
}

fn with_curve(problem: AttentionProblem) -> AttentionProblem {
    problem.with_score(ScoreMod::Wgsl(ScoreWgsl::new(CURVED).unwrap())).with_aux(17)
}

fn with_mask(problem: AttentionProblem) -> AttentionProblem {
    problem.with_key_mask(KeyMask::Wgsl(MaskWgsl::with_options(MASK, WgslOptions::new().with_max_turns(4)).unwrap()))
}

/// Inputs with the data and the closures of `CURVED` and `MASK`.
fn given(problem: &AttentionProblem, seed: u64) -> GradientInputs {
    let mut given = gradient_inputs(problem, seed);
    given.inputs.aux = (0..17).map(|n| ((n * 7 + 3) % 17) as f32 / 17.0 - 0.4).collect();
    let aux = given.inputs.aux.clone();
    given.inputs.score_mod = Some(Arc::new(move |score, cell| curved(&aux, score, cell)));
    given.inputs.mask_mod = Some(Arc::new(mask));
    given
}

/// Forward and backward, flash and standard, within their bounds.
fn check_both(library: &Library, problem: &AttentionProblem, seed: u64) {
    let given = given(problem, seed);
    check(library, problem, &given.inputs);
    check_gradients(library, problem, &given);
}

fn shape() -> AttentionShape {
    AttentionShape::new(2, 4, 37, 16).with_num_heads_kv(2).with_seqlen_kv(45)
}

#[test]
fn scores_and_masks_of_every_element() {
    for &element in Element::ALL {
        let problem = AttentionProblem::new(shape()).with_element(element);
        check_both(library(Variant::Full), &with_curve(problem.clone()), 1);
        check_both(library(Variant::Full), &with_mask(problem), 2);
    }
}

/// With causal, a window, dropout, a bias, gaps between rows, and bounded work.
#[test]
fn beside_all_else() {
    let library = library(Variant::Full);
    let problem = AttentionProblem::new(shape());
    let windowed = problem.clone().with_causal().with_window(Some(20), None).with_dropout(0.3, 5);
    check_both(library, &with_mask(with_curve(windowed.clone())), 11);
    let layout = EntryLayout::contiguous([1, 4, 37, 45]);
    let biased = problem.clone().with_score(ScoreMod::Softcap(5.0));
    let biased = with_curve(biased).with_score(ScoreMod::Bias { layout, element: Element::F32 });
    let most = library.capabilities().max_storage_buffers;
    if most > 9 {
        check_both(library, &biased, 12);
    }
    let apart = problem.clone().with_layout(strided(&problem.shape, true));
    check_both(library, &with_mask(with_curve(apart)), 13);
    check_both(library, &with_mask(with_curve(problem.with_bounded_work(1))), 14);
    let uneven = AttentionProblem::new(shape()).with_lengths(vec![37, 20], vec![45, 31]).with_causal().with_sink();
    if most > 9 {
        check_both(library, &with_mask(uneven), 15);
    }
}

#[test]
fn other_devices() {
    let problem = with_mask(with_curve(AttentionProblem::new(shape()).with_causal()));
    for variant in [Variant::SmallTiles, Variant::NoSubgroups, Variant::Checked, Variant::WebGpuDefaults] {
        check_both(library(variant), &problem, 21);
    }
    if let Some(library) = with_matrices() {
        for &element in Element::ALL {
            let problem = AttentionProblem::new(AttentionShape { head_dim: 8, head_dim_v: 8, ..shape() });
            check_both(library, &with_mask(with_curve(problem.with_element(element).with_causal())), 22);
        }
    }
}

#[test]
fn decoding_and_splits() {
    for (seqlen_q, num_splits) in [(1, 1), (3, 4), (40, 3)] {
        let shape = AttentionShape::new(2, 6, seqlen_q, 16).with_num_heads_kv(2).with_seqlen_kv(300);
        let library = library(Variant::Full).clone().splits(num_splits);
        let problem = with_mask(with_curve(AttentionProblem::new(shape)));
        check(&library, &problem, &given(&problem, 31).inputs);
    }
}

/// Softcap, ALiBi and causal, written once more, are held to the bounds of those that are built in.
#[test]
fn what_is_built_in() {
    let library = library(Variant::Full);
    let plain = AttentionProblem::new(AttentionShape::new(2, 4, 37, 16).with_num_heads_kv(2));
    let score = |body: &str| {
        let text =
            format!("fn score_mod(score: f32, b: u32, h: u32, q_idx: u32, kv_idx: u32) -> f32 {{ return {body}; }}");
        plain.clone().with_score(ScoreMod::Wgsl(ScoreWgsl::new(&text).unwrap()))
    };
    let mask =
        MaskWgsl::new("fn mask_mod(b: u32, h: u32, q_idx: u32, kv_idx: u32) -> bool { return kv_idx <= q_idx; }");
    for (built_in, own) in [
        (plain.clone().with_score(ScoreMod::Softcap(3.0)), score("3.0 * tanh(score / 3.0)")),
        (
            plain.clone().with_score(ScoreMod::Alibi(vec![0.5, 0.25, 0.125, 0.0625])),
            score("score - exp2(-f32(h + 1)) * abs(f32(q_idx) - f32(kv_idx))"),
        ),
        (plain.clone().with_causal(), plain.clone().with_key_mask(KeyMask::Wgsl(mask.unwrap()))),
    ] {
        let inputs = inputs(&built_in, 41);
        let [flash, standard] =
            [Algorithm::Flash, Algorithm::Standard].map(|of| run(library, &own.clone().with_algorithm(of), &inputs));
        check_answer(&built_in, &inputs, &flash, &standard);
    }
}

/// −∞ hides as a bias of −∞ does, NaN stays in its row, and what is hidden reaches nothing.
#[test]
fn infinities_and_nan() {
    let text = "
        fn score_mod(score: f32, batch: u32, head: u32, q_idx: u32, kv_idx: u32) -> f32 {
          if q_idx == 3u || kv_idx % 3u == 1u { return aux[0]; }
          if q_idx == 5u && kv_idx == 2u { return aux[1]; }
          return select(score, -2.5e38, kv_idx % 3u == 2u);
        }
        fn score_mod_grad(grad: f32, score: f32, batch: u32, head: u32, q_idx: u32, kv_idx: u32) -> f32 {
          return select(0.0, grad, kv_idx % 3u == 0u);
        }";
    let problem = AttentionProblem::new(shape()).with_score(ScoreMod::Wgsl(ScoreWgsl::new(text).unwrap())).with_aux(2);
    let mut given = gradient_inputs(&problem, 51);
    given.inputs.aux = vec![f32::NEG_INFINITY, 0.0];
    given.inputs.score_mod = Some(Arc::new(|score, [_, _, row, key]| {
        let of = |value: f64, slope: f64| Score { value, slope, bend: 0.0, rounding: 0.0, slope_rounding: 0.0 };
        match (row, key) {
            (3, _) => of(f64::NEG_INFINITY, 0.0),
            (5, 2) => of(0.0, 0.0),
            (_, key) if key % 3 == 0 => of(score, 1.0),
            _ => of(f64::NEG_INFINITY, 0.0),
        }
    }));
    let output = check(library(Variant::Full), &problem, &given.inputs);
    assert!(output.lse().contains(&f64::NEG_INFINITY), "row 3 is empty");
    check_gradients(library(Variant::Full), &problem, &given);

    given.inputs.aux[1] = f32::NAN;
    for algorithm in [Algorithm::Flash, Algorithm::Standard] {
        let output = run(library(Variant::Full), &problem.clone().with_algorithm(algorithm), &given.inputs);
        for (flat, lse) in output.lse().iter().enumerate() {
            assert_eq!(lse.is_nan(), flat % 37 == 5, "{algorithm:?}: row {flat}: {lse}");
        }
    }
}

/// A loop without end is ended: its scores are NaN, its keys are hidden, and the device goes on.
#[test]
fn loops_without_end() {
    let score = "
        fn spin(start: u32) -> u32 {
          var turn = start;
          loop { turn = turn * 3u + 1u; if turn == 0u { break; } }
          return turn;
        }
        fn score_mod(score: f32, batch: u32, head: u32, q_idx: u32, kv_idx: u32) -> f32 {
          if q_idx != 2u { return score; }
          for (var i = 0; ; i++) { while true { if spin(kv_idx) == 5u { return 1.0; } } }
          return score;
        }";
    let mask = "
        fn mask_mod(batch: u32, head: u32, q_idx: u32, kv_idx: u32) -> bool {
          while kv_idx == 7u { }
          return true;
        }";
    let plain = AttentionProblem::new(AttentionShape::new(1, 1, 8, 8).with_seqlen_kv(20));
    let few = WgslOptions::new().with_max_turns(20);
    let spinning = plain.clone().with_score(ScoreMod::Wgsl(ScoreWgsl::with_options(score, few).unwrap()));
    let output = run(library(Variant::Full), &spinning, &inputs(&plain, 61));
    for (row, lse) in output.lse().iter().enumerate() {
        assert_eq!(lse.is_nan(), row == 2, "row {row}: {lse}");
    }
    let hiding = plain.clone().with_key_mask(KeyMask::Wgsl(MaskWgsl::with_options(mask, few).unwrap()));
    let mut given = inputs(&plain, 62);
    given.mask_mod = Some(Arc::new(|[_, _, _, key]| key != 7));
    check(library(Variant::Full), &hiding, &given);
    check(library(Variant::Full), &plain, &inputs(&plain, 63));
}

/// A divisor of 0 gives what WGSL says: the dividend, and the rest 0.
#[test]
fn divisors_of_zero() {
    let text = "
        fn mask_mod(batch: u32, head: u32, q_idx: u32, kv_idx: u32) -> bool {
          let zero = u32(aux[0]);
          let least = i32(-2147483647 - i32(aux[1]));
          return kv_idx / zero == kv_idx && kv_idx % zero == 0u && least / -i32(aux[1]) == least;
        }";
    let plain = AttentionProblem::new(AttentionShape::new(1, 1, 8, 8).with_seqlen_kv(20));
    let masked = plain.clone().with_key_mask(KeyMask::Wgsl(MaskWgsl::new(text).unwrap())).with_aux(2);
    let mut given = inputs(&masked, 64);
    given.aux = vec![0.0, 1.0];
    given.mask_mod = Some(Arc::new(|_| true));
    check(library(Variant::Full), &masked, &given);
}

/// An index past the end of aux reads its last entry, and nothing of what lies behind it in the buffer. One past the end of a
/// variable reads some entry of it.
#[test]
fn indices_out_of_bounds() {
    let text = "
        fn score_mod(score: f32, batch: u32, head: u32, q_idx: u32, kv_idx: u32) -> f32 {
          let far = array<u32, 4>(3u, 4u, 4294967295u, 1u << 30u);
          return score + aux[far[kv_idx % 4u + q_idx]] + aux[-1 - i32(kv_idx)] + f32(arrayLength(&aux));
        }";
    let problem = AttentionProblem::new(shape()).with_score(ScoreMod::Wgsl(ScoreWgsl::new(text).unwrap())).with_aux(3);
    let mut given = inputs(&problem, 71);
    given.aux = vec![f32::NAN, f32::NAN, 0.25];
    given.score_mod = Some(Arc::new(|score, _| {
        let value = score + 3.5;
        Score { value, slope: 1.0, bend: 0.0, rounding: 3.0 * (score.abs() + 3.5), slope_rounding: 0.0 }
    }));
    check(library(Variant::Full), &problem, &given);
}

/// The slice form, with u32 and with f32, and what it says of data that does not fit.
#[test]
fn from_slices() {
    let documents = MaskWgsl::with_options(
        "fn mask_mod(batch: u32, head: u32, q_idx: u32, kv_idx: u32) -> bool { return aux[q_idx] == aux[kv_idx]; }",
        WgslOptions::new().with_aux(AuxType::U32),
    );
    let problem = AttentionProblem::new(AttentionShape::new(1, 2, 6, 4));
    let masked = problem.clone().with_key_mask(KeyMask::Wgsl(documents.unwrap())).with_aux(6);
    let attention = library(Variant::Full);
    let given = gradient_inputs(&masked, 81);
    let f32s = |values: &[f64]| values.iter().map(|value| *value as f32).collect::<Vec<f32>>();
    let [q, k, v, d_o] = [&given.inputs.q, &given.inputs.k, &given.inputs.v, &given.d_o].map(|values| f32s(values));
    let ids = [7u32, 7, 7, 1, 1, u32::MAX];
    let slices = ForwardSlices::new(&q, &k, &v);
    let found = pollster::block_on(attention.forward_with(&masked, &slices.with_aux_u32(&ids))).unwrap();
    let same = |[_, _, row, key]: [u32; 4]| ids[row as usize] == ids[key as usize];
    let case = reference::Case::new(&masked, &[], &[]).with_mask_mod(&same);
    let expected = reference::forward(case, &given.inputs.q, &given.inputs.k, &given.inputs.v);
    let near = |found: &[f32], expected: &[f64]| {
        found.len() == expected.len() && found.iter().zip(expected).all(|(f, e)| (f64::from(*f) - e).abs() < 1e-4)
    };
    assert!(near(&found.o, &expected.o) && near(&found.lse, &expected.lse));
    let backward = BackwardSlices::new(&q, &k, &v, &found.o, &found.lse, &d_o).with_aux_u32(&ids);
    let gradients = pollster::block_on(attention.backward(&masked, &backward)).unwrap();
    let expected = reference::backward(case, &given.inputs.q, &given.inputs.k, &given.inputs.v, &given.d_o, None);
    assert!(
        near(&gradients.dq, &expected.dq) && near(&gradients.dk, &expected.dk) && near(&gradients.dv, &expected.dv)
    );

    let error = |problem: &AttentionProblem, slices: &ForwardSlices<'_, f32>| {
        pollster::block_on(attention.forward_with(problem, slices)).unwrap_err()
    };
    let short = |found| Error::SliceTooShort { operand: Operand::Aux, needed: 6, found };
    assert_eq!(error(&masked, &slices), short(0));
    assert_eq!(error(&masked, &slices.with_aux_u32(&ids[1..])), short(5));
    let mismatch = Error::AuxMismatch { expected: AuxType::U32, found: AuxType::F32 };
    assert_eq!(error(&masked, &slices.with_aux(&[0.0; 6])), mismatch);
    assert_eq!(error(&problem, &slices.with_aux(&[0.0; 6])), Error::BufferUnexpected { operand: Operand::Aux });
}

/// Problems whose parts do not fit each other.
#[test]
fn impossible_ones_are_refused() {
    let capabilities = library(Variant::Full).capabilities();
    let plain = AttentionProblem::new(shape());
    let score = |text: &str| ScoreMod::Wgsl(ScoreWgsl::new(text).unwrap());
    let no_gradient = "fn score_mod(score: f32, b: u32, h: u32, q_idx: u32, kv_idx: u32) -> f32 { return score; }";
    let own = plain.clone().with_score(score(no_gradient));
    assert!(Plan::forward(&own, capabilities).build().is_ok());
    let invalid = |plan: Result<Plan, Error>| match plan.map(|_| ()).unwrap_err() {
        Error::InvalidProblem(fault) => fault,
        other => panic!("{other}"),
    };
    let fault = invalid(Plan::backward(&own, capabilities).build());
    assert!(matches!(fault, InvalidProblem::ScoreMod { name: "score_mod_grad", .. }), "{fault}");
    let words = MaskWgsl::with_options(
        "fn mask_mod(batch: u32, head: u32, q_idx: u32, kv_idx: u32) -> bool { return aux[q_idx] == 1u; }",
        WgslOptions::new().with_aux(AuxType::U32),
    );
    let curve = plain.clone().with_score(score(CURVED));
    for (problem, reason) in [
        (curve.clone(), "score_mod reads it; say how long it is by AttentionProblem::with_aux"),
        (curve.clone().with_aux(0), "it has 0 entries; it must have one"),
        (own.with_aux(4), "it is given, and no function in WGSL reads it; leave it out"),
        (
            curve.clone().with_aux(17).with_key_mask(KeyMask::Wgsl(words.unwrap())),
            "score_mod reads f32, mask_mod reads u32; both must read one type",
        ),
    ] {
        let expected = InvalidProblem::Aux { reason: reason.into() };
        assert_eq!(invalid(Plan::forward(&problem, capabilities).build()), expected);
        assert_eq!(invalid(Plan::backward(&problem, capabilities).build()), expected);
    }
    // Eight buffers: dK and dV with aux, and not one more.
    let web = Capabilities::webgpu_defaults();
    let with_aux = curve.with_aux(17);
    assert!(Plan::backward(&with_aux, &web).build().is_ok());
    let capped = with_aux.with_score(ScoreMod::Softcap(3.0));
    let refused = Plan::backward(&capped, &web).build().map(|_| ());
    assert!(matches!(refused, Err(Error::Unsupported { feature: "this many storage buffers", .. })), "{refused:?}");
    let mut limited = capabilities.clone();
    limited.max_loop_turns = Some(65_535);
    let endless =
        MaskWgsl::new("fn mask_mod(b: u32, h: u32, q_idx: u32, kv_idx: u32) -> bool { loop {} return true; }").unwrap();
    let refused = Plan::forward(&plain.with_key_mask(KeyMask::Wgsl(endless)), &limited).build().map(|_| ());
    assert!(
        matches!(&refused, Err(Error::Unsupported { reason, .. }) if reason.contains("with_max_turns")),
        "{refused:?}"
    );
}
