//! Functions in the user's own WGSL, from files.

use safetensors::tensor::Dtype;

use crate::entries::{Entries, file, mask};
use crate::workplace::{Workplace, text};

const CAUSAL: &str = "
fn mask_mod(batch: u32, head: u32, q_idx: u32, kv_idx: u32) -> bool {
  return kv_idx <= q_idx + 31u;
}
";
const SOFTCAP: &str = "
const CAP = 3.0;
fn share(score: f32) -> f32 { return tanh(score / CAP); }
fn score_mod(score: f32, batch: u32, head: u32, q_idx: u32, kv_idx: u32) -> f32 { return CAP * share(score); }
";
const SOFTCAP_GRAD: &str = "
fn score_mod_grad(grad: f32, score: f32, batch: u32, head: u32, q_idx: u32, kv_idx: u32) -> f32 {
  return grad * (1.0 - share(score) * share(score));
}
";

fn aux(dtype: Dtype, words: &[u32]) -> Entries {
    let bytes = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    Entries { name: "aux", dtype, shape: vec![words.len()], bytes }
}

#[test]
fn what_is_built_in_can_be_written() {
    let place = Workplace::new();
    let plain = place.write("plain", &file(&[]));
    let (causal, softcap) = (place.write("causal", CAUSAL.as_bytes()), place.write("cap", SOFTCAP.as_bytes()));
    let gradient = place.write("grad", SOFTCAP_GRAD.as_bytes());
    let options = ["--mask-mod", &causal, "--score-mod", &softcap, "--score-mod-grad", &gradient];
    let expected = place.run(&plain, &["--causal", "--softcap", "3"]);
    place.run(&plain, &options).agrees(&expected, 1e-5, "causal and softcap");

    // Keys of one document are seen by its rows.
    let document = |position: usize| position * 3 / 40;
    let ids: Vec<u32> = (0..40).map(|position| document(position) as u32).collect();
    let same = |n: usize| document(n / 40) == document(n % 40);
    let masked = place.write("masked", &file(&[mask(Dtype::BOOL, [1, 1, 9, 40], same)]));
    let documents = place.write(
        "documents",
        b"fn mask_mod(b: u32, h: u32, q_idx: u32, kv_idx: u32) -> bool { return aux[q_idx] == aux[kv_idx]; }",
    );
    let expected = place.run(&masked, &[]);
    for (dtype, size) in [(Dtype::I32, 4), (Dtype::I64, 8), (Dtype::U64, 8), (Dtype::U16, 2), (Dtype::I8, 1)] {
        let bytes = ids.iter().flat_map(|id| u64::from(*id).to_le_bytes()[..size].to_vec()).collect();
        let with_ids = place.write("ids", &file(&[Entries { dtype, bytes, ..aux(Dtype::U32, &ids) }]));
        place.run(&with_ids, &["--mask-mod", &documents]).agrees(&expected, 1e-5, "documents");
    }
}

/// Old drivers end a shader after so many turns of its loops; the user says how many are enough.
#[test]
fn loops_take_as_many_turns_as_are_given() {
    let place = Workplace::new();
    let plain = place.write("plain", &file(&[]));
    let head = "fn score_mod(score: f32, batch: u32, head: u32, q_idx: u32, kv_idx: u32) -> f32";
    let looped = format!(
        "\u{feff}{head} {{\n  var s = 0.0;\n  for (var i = 0; i < 5; i++) {{ s += score / 5.0; }}\n  return s;\n}}\n"
    );
    let gradient = "fn score_mod_grad(grad: f32, score: f32, batch: u32, head: u32, q_idx: u32, kv_idx: u32) -> f32 { return grad; }";
    let looped = place.write("looped", (looped + gradient).as_bytes());
    let expected = place.run(&plain, &[]);
    place.run(&plain, &["--score-mod", &looped, "--max-turns", "5"]).agrees(&expected, 1e-5, "five turns");
}

#[test]
fn a_function_that_is_not_asked_for_is_named() {
    let place = Workplace::new();
    let (input, output) = (place.write("in", &file(&[])), place.path("out"));
    let both = place.write("both.wgsl", [SOFTCAP, SOFTCAP_GRAD, CAUSAL].concat().as_bytes());
    for (option, unused) in [("--score-mod", "mask_mod"), ("--mask-mod", "score_mod")] {
        let told = place.flash(&["run", &input, &output, option, &both]);
        assert!(told.status.success(), "{}", text(&told.stderr));
        assert!(text(&told.stderr).contains(&format!("note: {unused} of")), "{}", text(&told.stderr));
    }
    let told = place.flash(&["run", &input, &output, "--score-mod", &both, "--mask-mod", &both]);
    assert!(!text(&told.stderr).contains("note:"), "{}", text(&told.stderr));
}

#[test]
fn faults_are_shown_where_they_are() {
    let place = Workplace::new();
    let (input, output) = (place.write("in", &file(&[])), place.path("out"));
    let score = place.write("score.wgsl", SOFTCAP.as_bytes());
    let faulty = place.write("grad.wgsl", SOFTCAP_GRAD.replace("grad * (", "gard * (").as_bytes());
    let refuses =
        |options: &[&str], reason: &str| place.refuses(&[&["run", &input, &output], options].concat(), reason);
    let expected =
        "grad.wgsl:3:10: no definition in scope for identifier: `gard`; unknown identifier: `return gard * (1.0";
    refuses(&["--score-mod", &score, "--score-mod-grad", &faulty], expected);
    refuses(&["--score-mod-grad", &faulty], "--score-mod <FILE>");
    refuses(&["--mask-mod", &place.path("nowhere")], "cannot read");
    refuses(&["--mask-mod", &score], "score.wgsl:1:1: there is no mask_mod; write fn mask_mod(");
    let causal = place.write("causal.wgsl", CAUSAL.as_bytes());
    refuses(&["--mask-mod", &causal, "--algorithm", "reference"], "the f64 oracle cannot run WGSL");
    let unread = place.write("unread", &file(&[aux(Dtype::U32, &[1, 2])]));
    place.refuses(
        &["run", &unread, &output, "--mask-mod", &causal],
        "aux: it is given, and no function in WGSL reads it",
    );
    let negative = place.write("negative", &file(&[aux(Dtype::I32, &[1, u32::MAX])]));
    place.refuses(&["run", &negative, &output, "--mask-mod", &causal], "'aux' holds -1; WGSL reads integers as u32");
    let large = Entries { dtype: Dtype::I64, shape: vec![1], ..aux(Dtype::U32, &[0, 1]) };
    let large = place.write("large", &file(&[large]));
    place.refuses(
        &["run", &large, &output, "--mask-mod", &causal],
        "'aux' holds 4294967296; WGSL reads integers as u32",
    );
    let wide = Entries { dtype: Dtype::F64, shape: vec![1], ..aux(Dtype::U32, &[1, 2]) };
    let wide = place.write("wide", &file(&[wide]));
    place.refuses(&["run", &wide, &output], "'aux' is stored as F64; F32 and integers of any type can be used");
    let reads = place.write("reads.wgsl", CAUSAL.replace("31u", "u32(aux[0])").as_bytes());
    refuses(&["--mask-mod", &reads], "mask_mod reads it; say how long it is");
    place.refuses(&["bench", "--mask-mod", &reads], "flash bench has no aux");
}

/// Before a device is opened: that of this name does not exist.
#[test]
fn gradients_need_that_of_score_mod() {
    let place = Workplace::new();
    let (input, output) = (place.write("in", &file(&[])), place.path("out"));
    let score = place.write("score.wgsl", SOFTCAP.as_bytes());
    let reason = "and --score-mod has no fn score_mod_grad: add it to the file, give it by --score-mod-grad, or";
    for (arguments, asks, otherwise) in [
        (&["run", &input, &output][..], "d_o", "leave d_o out"),
        (&["bench", "--pass", "backward"], "--pass", "time --pass forward"),
        (&["bench", "--pass", "both"], "--pass", "time --pass forward"),
    ] {
        let arguments = [arguments, &["--score-mod", &score, "--adapter", "nowhere"]].concat();
        place.refuses(&arguments, &format!("{asks} asks for gradients, {reason} {otherwise}"));
    }
}

#[test]
fn times_are_not_of_checked_answers() {
    let place = Workplace::new();
    let causal = place.write("causal", CAUSAL.as_bytes());
    let done = place.flash(&["bench", "--seqlen", "64", "--heads", "1", "--iterations", "1", "--mask-mod", &causal]);
    let shown = text(&done.stdout);
    assert!(done.status.success() && shown.contains("answers are not checked"), "{shown}{}", text(&done.stderr));
    assert!(shown.contains("mask_mod"), "{shown}");
}
