//! What the commands compute and print.

use std::path::Path;
use std::process::Stdio;

use safetensors::tensor::{Dtype, TensorView};
use serde_json::Value;

use crate::workplace::{OLD, SHAPE, Workplace, file, qkv, text};

#[test]
fn help_and_version_are_answers() {
    let place = Workplace::new();
    for arguments in [&["--help"][..], &["--version"], &["run", "--help"], &["bench", "-h"]] {
        let done = place.flash(arguments);
        assert!(done.status.success(), "{arguments:?}");
        assert!(!done.stdout.is_empty() && done.stderr.is_empty(), "{arguments:?}");
    }
}

#[test]
fn a_closed_pipe_is_no_error() {
    let place = Workplace::new();
    for arguments in [&["info"][..], &["--help"]] {
        let mut child =
            place.command(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the program starts");
        drop(child.stdout.take());
        let done = child.wait_with_output().expect("the program ends");
        assert_eq!((done.status.code(), text(&done.stderr)), (Some(0), String::new()), "{arguments:?}");
    }
}

#[test]
fn flash_standard_and_reference_agree() {
    let place = Workplace::new();
    let shapes = ([2, 4, 19, 24], [2, 2, 30, 24], [2, 2, 30, 12]);
    for (dtype, tolerance) in [(Dtype::F32, 1e-5), (Dtype::F16, 4.0 / 2048.0), (Dtype::BF16, 4.0 / 256.0)] {
        let input = place.write("in", &qkv(dtype, shapes.0, shapes.1, shapes.2));
        let options = [
            &["--window", "inf,3", "--dropout", "0.3", "--seed", "18446744073709551615"][..],
            &["--causal", "top-left", "--scale", "-0.3"],
            &[],
            &["--causal"],
            &["--causal=top-left", "--window", "4,inf"],
        ];
        // The masks are the same for every element, and each first use costs a compilation.
        for options in &options[..if dtype == Dtype::F32 { 5 } else { 2 }] {
            let of = |algorithm| place.run(&input, &[&["--algorithm", algorithm], *options].concat());
            let reference = of("reference");
            assert_eq!((reference.dtype, &reference.o_shape[..]), (dtype, &[2, 4, 19, 12][..]));
            assert_eq!(reference.lse_shape, [2, 4, 19]);
            of("flash").agrees(&reference, tolerance, &format!("flash {dtype:?} {options:?}"));
            of("standard").agrees(&reference, tolerance, &format!("standard {dtype:?} {options:?}"));
        }
    }
}

#[test]
fn gradients_of_flash_standard_and_reference_agree() {
    let place = Workplace::new();
    let (q, k, v, o) = ([2, 4, 19, 24], [2, 2, 30, 24], [2, 2, 30, 12], [2, 4, 19, 12]);
    for (dtype, tolerance) in [(Dtype::F32, 1e-5), (Dtype::F16, 4.0 / 2048.0), (Dtype::BF16, 4.0 / 256.0)] {
        let tensors = [("q", dtype, q), ("k", dtype, k), ("v", dtype, v), ("d_o", dtype, o)];
        let input = place.write("in", &file(&tensors));
        for options in [&["--causal", "--dropout", "0.3", "--seed", "9"][..], &["--window", "3,9", "--f32-gradients"]] {
            let of = |algorithm| place.run(&input, &[&["--algorithm", algorithm], options].concat());
            let reference = of("reference");
            let shapes: Vec<_> = reference.gradients.iter().map(|(shape, _)| shape.clone()).collect();
            assert_eq!(shapes, [q.to_vec(), k.to_vec(), v.to_vec()]);
            let in_f32 = options.contains(&"--f32-gradients");
            assert_eq!(reference.gradient_dtype, Some(if in_f32 { Dtype::F32 } else { dtype }));
            of("flash").agrees(&reference, tolerance, &format!("flash {dtype:?} {options:?}"));
            of("standard").agrees(&reference, tolerance, &format!("standard {dtype:?} {options:?}"));
        }
    }
    // With the heads of a row side by side, and in another element.
    let tensors = ["q", "k", "v", "d_o"].map(|name| (name, Dtype::F32, [1, 7, 2, 8]));
    let input = place.write("in", &file(&tensors));
    let options = ["--layout", "bshd", "--element", "bf16", "--algorithm"];
    let of = |algorithm| place.run(&input, &[&options[..], &[algorithm]].concat());
    of("flash").agrees(&of("reference"), 4.0 / 256.0, "bshd");
    assert!(place.run(&place.write("in", &file(&tensors[..3])), &[]).gradients.is_empty());
}

#[test]
fn a_gradient_of_lse_counts() {
    let place = Workplace::new();
    let data: Vec<u8> = (0..2 * 5 * 8).flat_map(|n| ((n as f32 * 0.7).sin()).to_le_bytes()).collect();
    let d_lse: Vec<u8> = (0..2 * 5).flat_map(|n| (n as f32 * 0.3 - 1.0).to_le_bytes()).collect();
    let view = |shape: Vec<usize>, data| TensorView::new(Dtype::F32, shape, data).expect("fits");
    let tensors = ["q", "k", "v", "d_o"].map(|name| (name, view(SHAPE.to_vec(), &data)));
    let without = place.write("without", &safetensors::serialize(tensors.clone(), None).expect("a file"));
    let with = tensors.into_iter().chain([("d_lse", view(vec![1, 2, 5], &d_lse))]);
    let with = place.write("with", &safetensors::serialize(with, None).expect("a file"));
    let reference = place.run(&with, &["--algorithm", "reference"]);
    place.run(&with, &[]).agrees(&reference, 1e-5, "with d_lse");
    let without = place.run(&without, &[]);
    assert_ne!(without.gradients[0], reference.gradients[0]);
    assert_eq!(without.gradients[2], place.run(&with, &[]).gradients[2]);
}

#[test]
fn options_mean_what_they_say() {
    let place = Workplace::new();
    let input = place.write("in", &qkv(Dtype::F32, [1, 2, 9, 8], [1, 2, 12, 8], [1, 2, 12, 8]));
    let plain = place.run(&input, &[]);
    let causal = place.run(&input, &["--causal", "bottom-right"]);
    assert_ne!(plain.o, causal.o);
    // An unlimited window is none; one that ends at the diagonal is the causal mask.
    assert_eq!(place.run(&input, &["--window", "inf,inf"]).o, plain.o);
    assert_eq!(place.run(&input, &["--window", "inf,0"]).o, causal.o);
    assert_eq!(place.run(&input, &["--window", "inf,inf", "--causal"]).o, causal.o);
    assert_ne!(place.run(&input, &["--causal", "top-left"]).o, causal.o);
    assert_eq!(place.run(&input, &["--scale", "0.35355339059327373"]).o, plain.o);
    let (dropped, other) = (["--dropout", "0.5", "--seed", "1"], ["--dropout", "0.5", "--seed", "2"]);
    assert_eq!(place.run(&input, &dropped).o, place.run(&input, &dropped).o);
    assert_ne!(place.run(&input, &dropped).o, place.run(&input, &other).o);
    assert_eq!(place.run(&input, &dropped).lse, plain.lse);

    // A bare --causal takes no file name for its value.
    let (before, after) = (place.path("before"), place.path("after"));
    for arguments in [["run", "--causal", &input, &before], ["run", &input, &after, "--causal"]] {
        assert!(place.flash(&arguments).status.success(), "{arguments:?}");
    }
    assert_eq!(std::fs::read(before).expect("written"), std::fs::read(after).expect("written"));
}

#[test]
fn elements_and_layouts_are_converted() {
    let place = Workplace::new();
    let input = place.write("in", &qkv(Dtype::F32, [1, 3, 7, 5], [1, 1, 7, 5], [1, 1, 7, 5]));
    let plain = place.run(&input, &[]);
    let half = place.run(&input, &["--element", "f16"]);
    assert_eq!(half.dtype, Dtype::F16);
    let largest = plain.o.iter().fold(0.0, |largest: f64, value| largest.max(value.abs()));
    for (found, expected) in half.o.iter().zip(&plain.o) {
        assert!((found - expected).abs() <= 1e-2 * largest, "{found} for {expected}");
    }
    // With one row for each head, both layouts hold the same bytes.
    let input = place.write("in", &qkv(Dtype::BF16, [2, 3, 1, 5], [2, 3, 1, 5], [2, 3, 1, 5]));
    let swapped = place.write("swapped", &qkv(Dtype::BF16, [2, 1, 3, 5], [2, 1, 3, 5], [2, 1, 3, 5]));
    let (bhsd, bshd) = (place.run(&input, &[]), place.run(&swapped, &["--layout", "bshd"]));
    assert_eq!((bhsd.o_shape, bshd.o_shape), (vec![2, 3, 1, 5], vec![2, 1, 3, 5]));
    assert_eq!((bhsd.o, bhsd.lse, bhsd.lse_shape), (bshd.o, bshd.lse, bshd.lse_shape));
}

#[test]
fn empty_tensors_are_computed() {
    let place = Workplace::new();
    for algorithm in ["flash", "standard", "reference"] {
        let input = place.write("in", &qkv(Dtype::F32, [1, 2, 0, 8], [1, 2, 3, 8], [1, 2, 3, 8]));
        let no_rows = place.run(&input, &["--algorithm", algorithm]);
        assert_eq!((no_rows.o_shape, no_rows.lse_shape), (vec![1, 2, 0, 8], vec![1, 2, 0]));
        let input = place.write("in", &qkv(Dtype::F16, [1, 2, 3, 8], [1, 2, 0, 8], [1, 2, 0, 7]));
        let no_keys = place.run(&input, &["--algorithm", algorithm]);
        assert_eq!((no_keys.o, no_keys.lse), (vec![0.0; 42], vec![f64::NEG_INFINITY; 6]));
    }
}

#[test]
fn an_old_result_is_replaced_and_nothing_else_left() {
    let place = Workplace::new();
    let input = place.write("in", &qkv(Dtype::F32, SHAPE, SHAPE, SHAPE));
    place.write("result", OLD);
    place.run(&input, &["--algorithm", "reference"]);
    assert_eq!(place.files(), ["in", "result"]);
    // IN may be OUT.
    let before = std::fs::read(&input).expect("IN");
    assert!(place.flash(&["run", &input, &input, "--algorithm", "reference"]).status.success());
    assert_ne!(std::fs::read(&input).expect("OUT"), before);
}

#[test]
fn json_can_be_read() {
    let place = Workplace::new();
    let input = place.write("in", &qkv(Dtype::F16, [1, 4, 9, 8], [1, 2, 11, 8], [1, 2, 11, 6]));
    for algorithm in ["flash", "standard", "reference"] {
        let stdout = place.run(&input, &["--json", "--causal", "--algorithm", algorithm]).stdout;
        let json: Value = serde_json::from_str(&stdout).expect("one JSON object");
        assert_eq!((&json["algorithm"], &json["element"]), (&algorithm.into(), &"f16".into()));
        assert_eq!((&json["heads"], &json["heads_kv"]), (&4.into(), &2.into()));
        assert_eq!((&json["seqlen_q"], &json["seqlen_kv"]), (&9.into(), &11.into()));
        assert_eq!((&json["head_dim"], &json["head_dim_v"]), (&8.into(), &6.into()));
        assert_eq!(json["causal"], "bottom-right");
        assert!(json["ms_median"].as_f64().expect("a number") > 0.0);
        assert_eq!(json["adapter"].is_null(), algorithm == "reference");
    }
}

#[test]
fn bench_checks_times_and_draws() {
    let place = Workplace::new();
    let figures = place.path("figures/of/today");
    let shape = ["--seqlen", "33,64", "--seqlen-kv", "40", "--head-dim", "8", "--batch", "1", "--heads", "2"];
    let more = ["--heads-kv", "1", "--causal", "--element", "f16", "--iterations", "1", "--json", "--out", &figures];
    let done = place.flash(&[&["bench"], &shape[..], &more[..]].concat());
    assert_eq!((done.status.code(), text(&done.stderr)), (Some(0), String::new()));
    let records: Vec<Value> =
        text(&done.stdout).lines().map(|line| serde_json::from_str(line).expect("a JSON object")).collect();
    assert_eq!(records.len(), 4);
    for record in &records {
        for number in ["batch", "heads", "heads_kv", "seqlen_q", "seqlen_kv", "head_dim", "extra_bytes"] {
            assert!(record[number].is_u64(), "{number} in {record}");
        }
        for number in ["ms_median", "ms_min", "ms_first_call", "tflops", "max_error", "flops_per_byte"] {
            assert!(record[number].is_f64(), "{number} in {record}");
        }
        assert_eq!(record["causal"], true);
        for name in ["algorithm", "element", "adapter", "kernel", "tiles"] {
            assert!(record[name].is_string(), "{name} in {record}");
        }
        assert!(record["error"].is_null(), "{record}");
    }
    let read = |name: &str| std::fs::read_to_string(Path::new(&figures).join(name)).expect("a file of the bench");
    let saved: Vec<Value> = serde_json::from_str(&read("bench.json")).expect("a JSON array");
    assert_eq!(saved, records);
    assert_eq!(read("bench.csv").lines().count(), 5);
    for name in ["time.svg", "memory.svg", "roofline.svg"] {
        let figure = read(name);
        assert!(figure.starts_with("<svg") && figure.contains("standard") && figure.contains("f16"), "{name}");
    }
    assert!(read("roofline.svg").contains("of the ridge"));
}

#[test]
fn bench_times_the_backward_pass() {
    let place = Workplace::new();
    let shape = ["--seqlen", "40", "--head-dim", "8", "--batch", "1", "--heads", "4", "--heads-kv", "2", "--causal"];
    let more = ["--pass", "both", "--iterations", "1", "--json", "--tiles", "8x32x4x8/32x8x4x8,16x16x2x1"];
    let done = place.flash(&[&["bench"], &shape[..], &more[..]].concat());
    assert_eq!((done.status.code(), text(&done.stderr)), (Some(0), String::new()), "{}", text(&done.stdout));
    let records: Vec<Value> =
        text(&done.stdout).lines().map(|line| serde_json::from_str(line).expect("a JSON object")).collect();
    let tiles: Vec<_> = records.iter().map(|record| (record["pass"].as_str(), record["tiles"].as_str())).collect();
    let (small, both) = ("16x16, 2 rows by 1 lanes", "8x32, 4 rows by 8 lanes / 32x8, 4 rows by 8 lanes");
    assert_eq!(tiles[0], (Some("forward"), Some("8x32, 4 rows by 8 lanes")));
    assert_eq!(tiles[3], (Some("backward"), Some(both)));
    assert_eq!(tiles[4], (Some("backward"), Some(small)));
    assert_eq!(records.len(), 6);
    for record in &records {
        assert!(record["error"].is_null() && record["tflops"].is_f64() && record["max_error"].is_f64(), "{record}");
    }
}

/// Its samples are rows of the whole problem: ALiBi depends on head and position.
#[test]
fn bench_knows_score_modifiers() {
    let place = Workplace::new();
    let shape = ["--seqlen", "40", "--head-dim", "8", "--batch", "1", "--heads", "4", "--heads-kv", "2"];
    let more = ["--pass", "both", "--iterations", "1", "--json", "--alibi", "--softcap", "2", "--causal"];
    let done = place.flash(&[&["bench"], &shape[..], &more[..]].concat());
    assert_eq!((done.status.code(), text(&done.stderr)), (Some(0), String::new()), "{}", text(&done.stdout));
    assert_eq!(text(&done.stdout).lines().count(), 4);
    for line in text(&done.stdout).lines() {
        let record: Value = serde_json::from_str(line).expect("a JSON object");
        assert!(record["error"].is_null() && record["tflops"].is_f64(), "{record}");
    }
}

#[test]
fn bench_goes_on_past_what_the_device_refuses() {
    let place = Workplace::new();
    let shape = ["--seqlen", "536870912,16", "--head-dim", "256", "--batch", "4", "--heads", "64", "--iterations", "1"];
    let done = place.flash(&[&["bench", "--json", "--algorithm", "standard"], &shape[..]].concat());
    assert_eq!((done.status.code(), text(&done.stderr)), (Some(0), String::new()));
    let records: Vec<Value> =
        text(&done.stdout).lines().map(|line| serde_json::from_str(line).expect("a JSON object")).collect();
    assert!(records[0]["error"].is_string() && records[0]["ms_median"].is_null(), "{}", records[0]);
    assert!(records[1]["error"].is_null() && records[1]["ms_median"].is_f64(), "{}", records[1]);
}

#[test]
fn the_demo_is_within_its_bound() {
    let place = Workplace::new();
    let done = place.flash(&["demo"]);
    let stdout = text(&done.stdout);
    assert_eq!((done.status.code(), text(&done.stderr)), (Some(0), String::new()), "{stdout}");
    for word in ["flash_forward", "standard", "causal", "bound 1.0e-5: ok"] {
        assert!(stdout.contains(word), "no '{word}' in: {stdout}");
    }
}

#[test]
fn tuned_tiles_are_used() {
    let place = Workplace::new();
    let path = place.path("tuning.json");
    let path = path.as_str();
    let done = place.flash(&["tune", "--element", "f32", "--head-dim", "8", "--workload", "small", "--out", path]);
    assert!(done.status.success(), "{}", text(&done.stderr));
    let mut file: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let entry = &file["tiles"][0];
    assert_eq!((entry["workload"].as_str(), entry["element"].as_str()), (Some("small"), Some("f32")));
    assert!(entry["ms"].as_f64().unwrap() <= entry["ms_of_table"].as_f64().unwrap());

    // Whatever was the fastest, these are no table's.
    file["tiles"][0]["tiles"] = "20x8x4x2".into();
    std::fs::write(path, file.to_string()).unwrap();
    let bench = ["--tuning", path, "bench", "--json", "--seqlen", "64", "--head-dim", "8", "--iterations", "1"];
    let done = place.flash(&[&bench[..], &["--algorithm", "flash", "--heads", "2"]].concat());
    assert!(done.status.success() && text(&done.stdout).contains("20x8, 4 rows by 2 lanes"), "{}", text(&done.stdout));

    file["adapter"] = "another".into();
    std::fs::write(path, file.to_string()).unwrap();
    let done = place.flash(&bench);
    assert!(done.status.code() == Some(2) && text(&done.stderr).contains("is of another"), "{}", text(&done.stderr));
    std::fs::write(path, "{}").unwrap();
    let done = place.flash(&bench);
    assert!(done.status.code() == Some(2) && text(&done.stderr).contains("tuning file"), "{}", text(&done.stderr));
}

/// Whoever reads the short help finds each name, and the long one has its shape and type.
#[test]
fn help_names_the_tensors_of_a_run() {
    let place = Workplace::new();
    let read = |help: &str| text(&place.flash(&["run", help]).stdout).split_whitespace().collect::<Vec<_>>().join(" ");
    let (short, long) = (read("-h"), read("--help"));
    assert!(short.contains("at the end of `flash run --help`"), "{short}");
    for (name, shape) in [
        ("bias", "F32 or the type of q, [batch, heads, seqlen_q, seqlen_kv], each of them or 1"),
        ("mask", "BOOL or U8, like bias"),
        ("alibi_slopes", "F32 [heads] or [batch, heads]"),
        ("sink", "F32 [heads] of q"),
        ("seqlens_q, seqlens_kv", "integers [batch]"),
        ("cu_seqlens_q, cu_seqlens_kv", "integers [batch + 1]"),
        ("block_mask", "BOOL or U8 [batch, heads, blocks of rows, blocks of keys]"),
        ("document_ids", "integers from 0, [batch or 1, seqlen_kv]"),
        ("aux", "of any shape"),
    ] {
        assert!(short.contains(name), "no {name}: {short}");
        assert!(long.contains(&format!("{name} {shape}")), "no {name} {shape}: {long}");
    }
}
