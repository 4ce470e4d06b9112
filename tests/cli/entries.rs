//! Bias and mask in the input file.

use safetensors::tensor::{Dtype, TensorView};

use crate::workplace::{Answer, Workplace};

const Q: [usize; 4] = [2, 4, 9, 8];
const KV: [usize; 4] = [2, 2, 40, 8];

pub struct Entries {
    pub name: &'static str,
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    pub bytes: Vec<u8>,
}

fn f32_bytes(values: impl Iterator<Item = f32>) -> Vec<u8> {
    values.flat_map(f32::to_le_bytes).collect()
}

/// A bias of this shape, from the numbers of its entries.
fn bias(shape: [usize; 4], value: impl Fn(usize) -> f32) -> Entries {
    let bytes = f32_bytes((0..shape.iter().product()).map(value));
    Entries { name: "bias", dtype: Dtype::F32, shape: shape.to_vec(), bytes }
}

pub fn mask(dtype: Dtype, shape: [usize; 4], sees: impl Fn(usize) -> bool) -> Entries {
    let bytes = (0..shape.iter().product()).map(|n| u8::from(sees(n)) * if dtype == Dtype::U8 { 200 } else { 1 });
    Entries { name: "mask", dtype, shape: shape.to_vec(), bytes: bytes.collect() }
}

/// The logits of a sink.
fn sink(logits: &[f32]) -> Entries {
    let bytes = f32_bytes(logits.iter().copied());
    Entries { name: "sink", dtype: Dtype::F32, shape: vec![logits.len()], bytes }
}

/// The lengths of sequences.
fn lengths(name: &'static str, dtype: Dtype, lengths: &[i64]) -> Entries {
    let size = dtype.bitsize() / 8;
    let bytes = lengths.iter().flat_map(|length| length.to_le_bytes()[..size].to_vec()).collect();
    Entries { name, dtype, shape: vec![lengths.len()], bytes }
}

/// A file with q, k, v and d_o in f32 and these.
pub fn file(entries: &[Entries]) -> Vec<u8> {
    let values = |shape: [usize; 4], seed: f32| {
        f32_bytes((0..shape.iter().product::<usize>()).map(move |n| (n as f32 * seed).sin() * 2.0))
    };
    let tensors = [("q", Q, 0.7), ("k", KV, 1.3), ("v", KV, 0.9), ("d_o", Q, 1.7)];
    let data = tensors.map(|(_, shape, seed)| values(shape, seed));
    let whole = tensors.iter().zip(&data).map(|((name, shape, _), bytes)| {
        (*name, TensorView::new(Dtype::F32, shape.to_vec(), bytes).expect("the bytes fit the shape"))
    });
    let entries = entries.iter().map(|entries| {
        (entries.name, TensorView::new(entries.dtype, entries.shape.clone(), &entries.bytes).expect("they fit"))
    });
    safetensors::serialize(whole.chain(entries), None).expect("a safetensors file")
}

pub fn answers(place: &Workplace, entries: &[Entries], options: &[&str]) -> [Answer; 3] {
    let input = place.write("in", &file(entries));
    ["reference", "flash", "standard"].map(|of| place.run(&input, &[&["--algorithm", of], options].concat()))
}

#[test]
fn flash_standard_and_reference_agree() {
    let place = Workplace::new();
    let (all, of_keys) = ([2, 4, 9, 40], [2, 1, 1, 40]);
    let wave = |n: usize| (n as f32 * 0.37).cos();
    let cases = [
        vec![bias(all, wave)],
        vec![bias([1, 4, 1, 40], wave), mask(Dtype::BOOL, of_keys, |n| n % 40 < 30)],
        vec![mask(Dtype::U8, all, |n| n % 3 != 0)],
        vec![mask(Dtype::BOOL, [2, 4, 9, 1], |n| n % 4 != 1)],
        vec![sink(&[0.5, -1.0, 3.0, 0.0])],
        vec![sink(&[0.5, -1.0, 3.0, 0.0]), bias(of_keys, wave)],
        vec![lengths("seqlens_kv", Dtype::U8, &[40, 13])],
        vec![lengths("seqlens_q", Dtype::I64, &[3, 9]), lengths("seqlens_kv", Dtype::I32, &[0, 30])],
    ];
    let options = [
        &["--causal", "--dropout", "0.2", "--seed", "3"][..],
        &[],
        &["--window", "20,inf"],
        &["--softcap", "3"],
        &[],
        &["--causal"],
        &["--causal"],
        &["--causal"],
    ];
    for (n, (entries, options)) in cases.iter().zip(options).enumerate() {
        let [reference, flash, standard] = answers(&place, entries, options);
        let expected = 3 + entries.iter().filter(|entries| ["sink", "bias"].contains(&entries.name)).count();
        assert_eq!(reference.gradients.len(), expected, "case {n}");
        flash.agrees(&reference, 1e-5, &format!("flash, case {n}"));
        standard.agrees(&reference, 1e-5, &format!("standard, case {n}"));
    }
}

/// More tensors than a kernel may bind on small devices, and what changes no row beside them.
#[test]
fn the_oracle_knows_no_limits_of_devices() {
    let place = Workplace::new();
    let all = [2, 4, 9, 40];
    let entries = [sink(&[-99.0; 4]), bias(all, |_| 0.0), mask(Dtype::BOOL, all, |_| true)];
    let reference = |entries: &[Entries], options: &[&str]| {
        let input = place.write("in", &file(entries));
        place.run(&input, &[&["--algorithm", "reference", "--alibi"], options].concat())
    };
    let found = reference(&entries, &["--window", "20,20", "--block-mask", "local:20"]);
    let expected = reference(&[], &["--window", "20,20"]);
    Answer { gradients: found.gradients[..3].to_vec(), ..found }.agrees(&expected, 1e-5, "the oracle");
}

/// What an option says can be said by entries too.
#[test]
fn entries_mean_what_they_say() {
    let place = Workplace::new();
    let all = [1, 1, 9, 40];
    let plain = answers(&place, &[], &[]);
    let agree = |entries: Vec<Entries>, expected: &[Answer; 3], what: &str| {
        for (found, expected) in answers(&place, &entries, &[]).iter().zip(expected) {
            // A bias has a gradient, an option has none.
            let gradients = found.gradients[..3].to_vec();
            Answer { gradients, ..found.clone() }.agrees(expected, 1e-5, what);
        }
    };
    agree(vec![bias(all, |_| 0.0), mask(Dtype::BOOL, all, |_| true)], &plain, "nothing added, nothing hidden");
    // A type that neither q has nor f32 is, is widened.
    let in_f16 = Entries { dtype: Dtype::F16, bytes: vec![0; 720], ..bias(all, |_| 0.0) };
    agree(vec![in_f16], &plain, "nothing added, in f16");
    agree(vec![bias([1, 1, 9, 1], |n| n as f32)], &answers_shifted(&plain), "the same for all keys of a row");
    // Bottom-right: row i sees the keys up to i + 31.
    let below = |n: usize| n % 40 <= n / 40 + 31;
    let causal = answers(&place, &[], &["--causal"]);
    agree(vec![mask(Dtype::U8, all, below)], &causal, "a causal mask");
    // Models are trained with either of them.
    for hidden in [f32::NEG_INFINITY, f32::MIN] {
        agree(vec![bias(all, |n| if below(n) { 0.0 } else { hidden })], &causal, "a causal bias");
    }
    let slopes =
        |n: usize| -0.5f32.powi(2 * (n as i32 / 360 + 1)) * ((n / 40 % 9) as f32 + 31.0 - (n % 40) as f32).abs();
    agree(vec![bias([1, 4, 9, 40], slopes)], &answers(&place, &[], &["--alibi"]), "ALiBi");
}

#[test]
fn probabilities_of_one_head() {
    let place = Workplace::new();
    let entries = [bias([1, 4, 9, 40], |n| (n as f32 * 0.37).cos()), sink(&[0.5, -1.0, 3.0, 0.0])];
    let options = ["--causal", "--dropout", "0.2", "--probabilities", "2:3..9"];
    let all = answers(&place, &entries, &options);
    let of = |answer: &Answer| answer.probabilities.clone().expect("they are asked for");
    let (shape, expected) = of(&all[0]);
    assert_eq!((&shape[..], expected.len()), (&[2, 1, 6, 40][..], 480));
    for found in &all[1..] {
        let (of_found, found) = of(found);
        assert_eq!(of_found, shape);
        assert!(found.iter().zip(&expected).all(|(found, expected)| (found - expected).abs() < 1e-6));
    }
    // Row 3 sees the keys up to 34; the sink takes a part.
    assert!(expected[..35].iter().all(|p| *p > 0.0) && expected[35..40].iter().all(|p| *p == 0.0));
    assert!(expected.chunks(40).all(|row| row.iter().sum::<f64>() < 0.999));
    assert_eq!(answers(&place, &entries, &[])[1].probabilities, None);

    let (input, output) = (place.write("in", &file(&[])), place.path("out"));
    let refuses = |chosen: &str, reason: &str| {
        for algorithm in ["flash", "reference"] {
            let options = ["run", &input, &output, "--algorithm", algorithm, "--probabilities", chosen];
            place.refuses(&options, reason);
        }
    };
    refuses("4:0..1", "heads 4..5 are chosen; the problem has heads 0..4");
    refuses("4294967295:0..1", "heads 4294967295..4294967295 are chosen");
    refuses("0:5..10", "rows 5..10 are chosen; the problem has rows 0..9");
    refuses("0:3..3", "rows 3..3 are chosen");
    refuses("0:3", "'0:3' is no head and range of rows");
}

/// It has the shape and the type of the bias in the file, whatever attention is computed in.
#[test]
fn the_gradient_of_a_bias_is_like_the_bias() {
    let place = Workplace::new();
    let wave = |n: usize| (n as f32 * 0.37).cos();
    for (shape, options) in [([1, 4, 9, 40], &["--softcap", "3"][..]), ([2, 1, 1, 40], &["--element", "f16"])] {
        let in_f16 = |n: usize| half::f16::from_f32(wave(n)).to_le_bytes();
        let bytes = (0..shape.iter().product()).flat_map(in_f16).collect();
        let halves = Entries { name: "bias", dtype: Dtype::F16, shape: shape.to_vec(), bytes };
        let [reference, flash, standard] = answers(&place, &[halves], options);
        let (found, of_reference) = (&flash.gradients[3], &reference.gradients[3]);
        assert_eq!((&found.0, found.1.len()), (&shape.to_vec(), shape.iter().product()));
        assert!(of_reference.1.iter().any(|value| *value != 0.0));
        flash.agrees(&reference, 2e-3, "flash");
        standard.agrees(&reference, 2e-3, "standard");
    }
}

/// The answers with the row's number added to each LSE.
fn answers_shifted(answers: &[Answer; 3]) -> [Answer; 3] {
    let shifted = |answer: &Answer| {
        let lse = answer.lse.iter().enumerate().map(|(n, lse)| lse + (n % 9) as f64).collect();
        Answer { lse, ..answer.clone() }
    };
    answers.each_ref().map(shifted)
}

#[test]
fn lengths_are_integers_of_any_type() {
    let place = Workplace::new();
    let run = |dtype| {
        let both = [lengths("seqlens_q", dtype, &[3, 9]), lengths("seqlens_kv", dtype, &[0, 30])];
        place.run(&place.write("lengths", &file(&both)), &["--algorithm", "reference"])
    };
    let expected = run(Dtype::I32);
    for dtype in [Dtype::I8, Dtype::U8, Dtype::I16, Dtype::U16, Dtype::U32, Dtype::I64, Dtype::U64] {
        run(dtype).agrees(&expected, 1e-9, "lengths");
    }
}

#[test]
fn what_fits_no_problem_is_refused() {
    let place = Workplace::new();
    let output = place.path("out");
    let refuses = |entries: Entries, options: &[&str], reason: &str| {
        let input = place.write("in", &file(&[entries]));
        place.refuses(&[&["run", &input, &output], options].concat(), reason);
    };
    let whole = "it must be [batch, heads, seqlen_q, seqlen_kv] = [2, 4, 9, 40], or 1 in a place";
    refuses(bias([2, 2, 9, 40], |_| 0.0), &[], &format!("'bias' has the shape [2, 2, 9, 40]; {whole}"));
    let flat = Entries { shape: vec![9, 40], ..bias([1, 1, 9, 40], |_| 0.0) };
    refuses(flat, &[], &format!("'bias' has the shape [9, 40]; {whole}"));
    refuses(
        lengths("seqlens_kv", Dtype::I16, &[-3, 5]),
        &[],
        "'seqlens_kv' holds -3; only 0 to 4294967295 can be used",
    );
    refuses(
        lengths("seqlens_kv", Dtype::U32, &[41, 5]),
        &[],
        "seqlens_kv: that of sequence 0 is 41; the tensors have seqlen_kv = 40",
    );
    refuses(lengths("seqlens_q", Dtype::U32, &[5]), &[], "'seqlens_q' has the shape [1]; it must be [batch] = [2]");
    refuses(sink(&[0.0; 2]), &[], "sink is f32 of the shape [2]; it must be f32 with one for each head of q, [4]");
    refuses(mask(Dtype::BOOL, [2, 4, 9, 39], |_| true), &[], "'mask' has the shape [2, 4, 9, 39]");
    let in_f32 = Entries { name: "mask", ..bias([1, 1, 9, 40], |_| 0.0) };
    refuses(in_f32, &[], "'mask' is stored as F32; BOOL and U8 can be used");
}
