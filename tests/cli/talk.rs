//! The program `talk`: each method equals its f64 twin, and what it writes can be read.

use std::process::{Command, Output, Stdio};

use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::Value;

#[cfg(unix)]
use crate::workplace::heed;
use crate::workplace::{Workplace, program, text};

fn command(place: &Workplace, arguments: &[&str]) -> Command {
    let mut command = Command::new(program("talk"));
    command.args(arguments).env("XDG_RUNTIME_DIR", place.0.path()).stdin(Stdio::null());
    command
}

pub fn talk(place: &Workplace, arguments: &[&str]) -> Output {
    command(place, arguments).output().expect("the program starts")
}

/// Runs `compare --json` on tiny problems and gives its records.
pub fn records(place: &Workplace, options: &[&str]) -> Vec<Value> {
    let arguments: Vec<&str> = ["compare", "--json", "--repeats", "1"].iter().chain(options).copied().collect();
    let done = talk(place, &arguments);
    assert!(done.status.success(), "{arguments:?}: {}{}", text(&done.stdout), text(&done.stderr));
    let lines = text(&done.stdout);
    lines.lines().map(|line| serde_json::from_str(line).expect("a JSON object")).collect()
}

pub fn number(record: &Value, field: &str) -> f64 {
    record[field].as_f64().unwrap_or_else(|| panic!("no {field} in {record}"))
}

/// The tensors of a dump, in f32.
pub fn dumped(place: &Workplace, file: &str, options: &[&str]) -> impl Fn(&str) -> Vec<f32> + use<> {
    let path = place.path(file);
    let _ = records(place, &[&["--dump", &path], options].concat());
    let bytes = std::fs::read(&path).expect("the dump was written");
    move |name: &str| {
        let tensors = SafeTensors::deserialize(&bytes).expect("a safetensors file");
        let data =
            tensors.tensor(name).unwrap_or_else(|_| panic!("no {name} in {:?}", tensors.names())).data().to_vec();
        data.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
    }
}

/// Runs options, and expects that every method that is defined equals its twin. Without `bound`, the program's own bound holds.
fn equals_twins(place: &Workplace, bound: Option<f64>, options: &[&str]) -> Vec<Value> {
    let records = records(place, options);
    for record in &records {
        match record["error"].as_str() {
            None => {
                let bound = bound.unwrap_or_else(|| number(record, "twin_bound"));
                assert!(number(record, "twin_error") <= bound, "{options:?}: {record}");
                assert_eq!(record["twin_rows"], "all", "{options:?}");
            }
            Some(error) => assert!(error.starts_with("is not defined for") || error.starts_with("needs "), "{record}"),
        }
    }
    records
}

#[test]
fn every_method_equals_its_twin_on_odd_shapes() {
    let place = Workplace::new();
    // One token, fewer than a block, one more than a block, one less than two; widths of which one is no power of two; and heads
    // that share keys.
    equals_twins(&place, Some(1e-4), &["--seqlen", "1,7,65,127"]);
    equals_twins(&place, Some(1e-4), &["--seqlen", "1,33,131", "--causal"]);
    let shared = ["--heads", "4", "--heads-kv", "2", "--batch", "2", "--head-dim", "40"];
    equals_twins(&place, Some(1e-4), &[&["--seqlen", "5,67"][..], &shared].concat());
    equals_twins(&place, Some(1e-4), &[&["--seqlen", "41,131", "--causal"][..], &shared].concat());
    equals_twins(&place, Some(1e-4), &["--seqlen", "70", "--head-dim", "128", "--heads", "1"]);
    equals_twins(&place, Some(1e-4), &["--seqlen", "70", "--input", "peaked", "--seed", "9"]);
    // More chunks than a turn of a scan takes.
    let chunks = ["--heads", "1", "--methods", "linear,performer"];
    equals_twins(&place, Some(1e-4), &[&["--seqlen", "641", "--causal"][..], &chunks].concat());
    equals_twins(&place, Some(1e-4), &[&["--seqlen", "1024"][..], &chunks].concat());
    equals_twins(&place, Some(1e-4), &["--seqlen", "600", "--heads", "1", "--methods", "linformer"]);
}

/// Where two keys share a row's weight, the errors of large scores arrive at O, and are right. What a wrong kernel computes differs
/// by more.
#[test]
fn bounds_grow_with_scores_and_wrong_kernels_exceed_them() {
    let place = Workplace::new();
    let normal = dumped(&place, "normal", &["--seqlen", "96", "--methods", "flash"]);
    // Keys come in pairs. The scores of a pair differ by about 1, whatever their size; `scale` changes that.
    let file = |factor: f32, scale: f32| {
        let [q, k, v] = ["q", "k", "v"].map(&normal);
        let paired = |at: usize| {
            let (row, odd) = (at / 64 / 2 * 2, at / 64 % 2);
            k[row * 64 + at % 64] * factor * (1.0 + odd as f32 * 0.5 / (factor * factor) * (row as f32).sin())
        };
        let large = |values: &[f32], factor: f32| values.iter().map(|x| x * factor).collect::<Vec<f32>>();
        let all =
            [("q", large(&q, factor * scale)), ("k", (0..k.len()).map(paired).collect()), ("v", large(&v, factor))];
        let data = all.map(|(name, values)| (name, values.into_iter().flat_map(f32::to_le_bytes).collect::<Vec<u8>>()));
        let view = |bytes| TensorView::new(Dtype::F32, vec![1, 2, 96, 64], bytes).expect("the bytes fit");
        let views = data.iter().map(|(name, bytes)| (*name, view(bytes)));
        place.write("input", &safetensors::serialize(views, None).expect("a file"))
    };
    let exact = ["--methods", "flash,standard,block-sparse,longformer,bigbird"];
    let answer = |input: &str, more: &[&str]| {
        dumped(&place, "answer", &[&["--input", input, "--methods", "flash"][..], more].concat())("flash.o")
    };
    for (factor, wrong_scale) in [(10.0, 1.05), (100.0, 3.0)] {
        let input = file(factor, 1.0);
        let records = equals_twins(&place, None, &[&["--input", &input][..], &exact].concat());
        let (error, bound) = (number(&records[0], "twin_error"), number(&records[0], "twin_bound"));
        assert_eq!(error > 1e-4, factor == 100.0, "{}", records[0]);
        assert_eq!(bound > 1e-4, factor == 100.0, "{}", records[0]);
        let right = answer(&input, &[]);
        let hidden = answer(&input, &["--causal"]);
        let scaled = answer(&file(factor, wrong_scale), &[]);
        let largest = right.iter().fold(0.0f32, |largest, x| largest.max(x.abs()));
        for wrong in [hidden, scaled] {
            let error = right.iter().zip(&wrong).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max) / largest;
            assert!(f64::from(error) > 2.0 * bound, "{error} against {bound}, {factor}");
        }
    }
}

#[test]
fn elements_of_16_bits_equal_the_twin_as_far_as_they_can() {
    let place = Workplace::new();
    for element in ["f16", "bf16"] {
        let records = equals_twins(&place, None, &["--seqlen", "65", "--element", element]);
        assert!(records.iter().all(|record| record["element"] == element));
        // A bound of 4 roundings and 1e-4, not an accident of what the program believes.
        let roundoff = if element == "f16" { 2f64.powi(-11) } else { 2f64.powi(-8) };
        assert!(
            records
                .iter()
                .filter(|record| record["error"].is_null())
                .all(|record| number(record, "twin_bound") <= 1e-4 + 4.0 * roundoff)
        );
    }
    equals_twins(&place, None, &["--seqlen", "65", "--element", "f16", "--causal", "--head-dim", "40"]);
}

#[test]
fn exact_methods_are_exact_and_others_say_how_far_they_are() {
    let place = Workplace::new();
    let records = equals_twins(&place, Some(1e-4), &["--seqlen", "300"]);
    let error = |method: &str| {
        let record = records.iter().find(|record| record["method"] == method).unwrap_or_else(|| panic!("no {method}"));
        number(record, "relative_error")
    };
    assert!(error("flash") < 1e-5 && error("standard") < 1e-5);
    for method in ["linear", "performer", "linformer", "linformer-pool"] {
        assert!(error(method) > 0.1, "{method} errs by {}", error(method));
    }
    for record in &records {
        assert!(number(record, "largest_row_error") >= number(record, "relative_error"), "{record}");
        assert!(number(record, "ms_median") > 0.0 && number(record, "flops") > 0.0 && number(record, "bytes") > 0.0);
    }
    // With as many projected keys as keys, a mean of one is the key itself.
    let short = equals_twins(&place, Some(1e-4), &["--seqlen", "250", "--methods", "linformer-pool"]);
    assert!(number(&short[0], "relative_error") < 1e-5);
}

#[test]
fn files_and_tables() {
    let place = Workplace::new();
    let folder = place.path("out");
    let done = talk(
        &place,
        &["compare", "--seqlen", "64,128", "--repeats", "1", "--out", &folder, "--methods", "flash,standard,linear"],
    );
    assert!(done.status.success(), "{}", text(&done.stderr));
    let table = text(&done.stdout);
    assert_eq!(table.lines().filter(|line| line.contains(" linear ")).count(), 2, "{table}");
    let read = |name: &str| std::fs::read_to_string(place.0.path().join("out").join(name)).expect(name);
    let json: Vec<Value> = serde_json::from_str(&read("compare.json")).expect("JSON");
    assert_eq!(json.len(), 6);
    let csv = read("compare.csv");
    let (head, rows) = csv.split_once('\n').expect("a header");
    assert_eq!(rows.lines().count(), 6);
    let names: Vec<&str> = json[0].as_object().expect("an object").keys().map(String::as_str).collect();
    let mut columns: Vec<&str> = head.split(',').collect();
    columns.sort_unstable();
    let mut sorted = names.clone();
    sorted.sort_unstable();
    assert_eq!(columns, sorted);
    for figure in ["time.svg", "memory.svg", "error.svg"] {
        let svg = read(figure);
        for method in ["flash", "standard", "linear", "seqlen"] {
            assert!(svg.contains(method), "no {method} in {figure}");
        }
    }

    let record = place.path("record");
    let done = talk(
        &place,
        &["compare", "--seqlen", "64", "--repeats", "1", "--record", &record, "--methods", "flash,linear"],
    );
    assert!(done.status.success(), "{}", text(&done.stderr));
    let page = text(&done.stdout);
    assert_eq!(
        std::fs::read_to_string(place.0.path().join("record/compare.md")).expect("the tables"),
        page.split("\nwrote ").next().expect("tables")
    );
    for part in ["Time, ms, f32:", "Time, ms, f16:", "| | N=64 |", "| linear | ", "Measured ceilings: "] {
        assert!(page.contains(part), "no '{part}' in {page}");
    }
}

#[test]
fn a_dump_gives_the_same_answers_again() {
    let place = Workplace::new();
    let options = ["--seqlen", "90", "--seed", "1", "--methods", "linear,performer,linformer"];
    let first = dumped(&place, "first", &options);
    let path = place.path("first");
    // Another seed draws another ω and E, unless they are loaded.
    let other = ["--input", &path, "--seed", "2", "--methods", "linear,performer,linformer"];
    let drawn = dumped(&place, "drawn", &other);
    let loaded = dumped(&place, "loaded", &[&["--load", &path], &other[..]].concat());
    for name in ["q", "linear.o", "exact.o"] {
        assert_eq!(first(name), drawn(name), "{name}");
    }
    for name in ["performer.o", "performer.omega", "linformer.o", "linformer.e"] {
        assert_eq!(first(name), loaded(name), "{name}");
        assert_ne!(first(name), drawn(name), "{name}");
    }
}

#[test]
fn the_order_of_tokens_does_not_matter_where_it_should_not() {
    const HEADS: usize = 2;
    const TOKENS: usize = 70;
    const DIM: usize = 64;
    let place = Workplace::new();
    let first = dumped(&place, "first", &["--seqlen", "70", "--methods", "linear,performer"]);
    let reversed = |values: Vec<f32>| -> Vec<f32> {
        assert_eq!(values.len(), HEADS * TOKENS * DIM);
        values.chunks_exact(TOKENS * DIM).flat_map(|head| head.chunks_exact(DIM).rev().flatten().copied()).collect()
    };
    let bytes: Vec<(&str, Vec<u8>)> = ["q", "k", "v"]
        .map(|name| (name, reversed(first(name)).into_iter().flat_map(f32::to_le_bytes).collect()))
        .to_vec();
    let views = bytes.iter().map(|(name, bytes)| {
        let shape = vec![1, HEADS, TOKENS, DIM];
        (*name, TensorView::new(Dtype::F32, shape, bytes).expect("a view"))
    });
    let file = place.write("reversed", &safetensors::serialize(views, None).expect("a file"));
    let second = dumped(&place, "second", &["--input", &file, "--methods", "linear,performer"]);
    for name in ["linear.o", "performer.o", "exact.o"] {
        let (found, expected) = (second(name), reversed(first(name)));
        let largest = expected.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
        for (found, expected) in found.iter().zip(&expected) {
            assert!((found - expected).abs() <= 1e-5 * largest, "{name}: {found} for {expected}");
        }
    }
}

#[test]
fn the_features_of_the_performer_estimate_the_kernel_without_bias() {
    const DIM: usize = 40;
    let place = Workplace::new();
    let mut rows = Vec::new();
    for seed in 0..12 {
        let seed = seed.to_string();
        let first =
            dumped(&place, "omega", &["--seqlen", "1", "--head-dim", "40", "--seed", &seed, "--methods", "performer"]);
        let omega = first("performer.omega");
        assert_eq!(omega.len(), 148 * DIM, "m = round(40 ln 40)");
        let own: Vec<Vec<f32>> = omega.chunks_exact(DIM).map(<[f32]>::to_vec).collect();
        for (i, row) in own.iter().enumerate() {
            for (j, other) in own.iter().enumerate().filter(|(j, _)| j / DIM == i / DIM && *j < i) {
                let dot: f32 = row.iter().zip(other).map(|(a, b)| a * b).sum();
                assert!(dot.abs() < 1e-4, "rows {i} and {j} of a block: {dot}");
            }
        }
        rows.extend(own);
    }
    // The mean of exp(ω · x) is exp(|x|² / 2) where ω is as a normal vector is. In each direction of a coordinate, and back.
    for i in 0..DIM {
        let mean = |x: f64| rows.iter().map(|row| (f64::from(row[i]) * x).exp()).sum::<f64>() / rows.len() as f64;
        // 1776 rows: the standard error of the mean is (e − 1)^½ / 42 = 3 %.
        for x in [1.0, -1.0] {
            assert!((mean(x) / 0.5f64.exp() - 1.0).abs() < 0.15, "coordinate {i}: {}", mean(x));
        }
    }
}

#[test]
fn bound_says_which_ceiling_is_the_lower_one() {
    let place = Workplace::new();
    let folder = place.path("out");
    let done = talk(&place, &["bound", "--seqlen", "64,128", "--head-dim", "64", "--out", &folder]);
    assert!(done.status.success(), "{}", text(&done.stderr));
    let words = text(&done.stdout);
    for part in ["Measured ceilings: ", "standard f32, head_dim 64: ", "flash f32, head_dim 64: ", "So "] {
        assert!(words.contains(part), "no '{part}' in {words}");
    }
    let read = |name: &str| std::fs::read_to_string(place.0.path().join("out").join(name)).expect(name);
    let records: Vec<Value> = serde_json::from_str(&read("bound.json")).expect("JSON");
    assert_eq!(records.len(), 4);
    for record in &records {
        let lower = number(record, "memory_ceiling") < number(record, "compute_ceiling");
        assert_eq!(record["bound"], if lower { "memory" } else { "compute" }, "{record}");
        let per_byte = number(record, "flops") / number(record, "bytes");
        assert!((number(record, "flops_per_byte") / per_byte - 1.0).abs() < 1e-9, "{record}");
    }
    // Flash attention reads and writes less for the same operations.
    let per_byte = |algorithm: &str| {
        let longest = records.iter().rfind(|record| record["algorithm"] == algorithm);
        number(longest.expect("a record"), "flops_per_byte")
    };
    assert!(per_byte("flash") > 2.0 * per_byte("standard"));
    assert!(read("bound.svg").contains("compute-bound or memory-bound?"));
    assert!(words.lines().last().expect("words").starts_with("So "), "{words}");
}

/// A file of q, k and v, `[1, 1, len / dim, dim]`, of which element 5 of one is this value.
fn with_value(place: &Workplace, name: &str, value: f32, dim: usize) -> String {
    let bytes = |tensor: &str| -> Vec<u8> {
        let of = |i: usize| if i == 5 && tensor == name { value } else { 0.5 };
        (0..4 * dim).map(of).flat_map(f32::to_le_bytes).collect()
    };
    let all = ["q", "k", "v"].map(|name| (name, bytes(name)));
    let view = |bytes| TensorView::new(Dtype::F32, vec![1, 1, 4, dim], bytes);
    let views = all.iter().map(|(name, bytes)| (*name, view(bytes).expect("a view")));
    place.write(&format!("{name}{value}{dim}"), &safetensors::serialize(views, None).expect("a file"))
}

#[test]
fn values_that_are_not_finite_are_refused_by_name() {
    let place = Workplace::new();
    for (name, value, dim, more, reason) in [
        ("q", f32::NAN, 4, "f32", "q has a NaN at [0, 0, 1, 1]"),
        ("v", f32::NEG_INFINITY, 4, "f32", "v has an infinity at [0, 0, 1, 1]"),
        ("k", 70_000.0, 4, "f16", "k has 70000 at [0, 0, 1, 1], which is too large for f16"),
        ("k", 3.4e38, 4, "f32,bf16", "which is too large for bf16"),
        ("k", 1.0, 257, "f32", "dim is 257, and 256 is the most here"),
    ] {
        let file = with_value(&place, name, value, dim);
        let done = talk(&place, &["compare", "--input", &file, "--element", more]);
        assert_eq!(done.status.code(), Some(2), "{reason}");
        assert!(text(&done.stderr).contains(reason), "no '{reason}' in: {}", text(&done.stderr));
        assert_eq!(text(&done.stdout), "");
    }
    let fits = with_value(&place, "k", 60_000.0, 4);
    let done = talk(&place, &["compare", "--input", &fits, "--element", "f16", "--methods", "flash", "--repeats", "1"]);
    assert!(done.status.success(), "{}{}", text(&done.stdout), text(&done.stderr));
}

#[test]
fn the_exit_status_says_whether_all_went_well() {
    let place = Workplace::new();
    let status = |options: &[&str]| {
        let run = ["compare", "--seqlen", "20", "--repeats", "1", "--heads", "1"];
        talk(&place, &[&run[..], options].concat()).status.code()
    };
    // Of all methods, those that are not defined are passed over.
    assert_eq!(status(&["--causal", "--head-dim", "8"]), Some(0));
    assert_eq!(status(&["--causal", "--methods", "flash"]), Some(0));
    // Of methods that are named, none is.
    assert_eq!(status(&["--causal", "--methods", "flash,linformer"]), Some(1));
    assert_eq!(status(&["--head-dim", "6", "--methods", "performer"]), Some(1));
}

#[test]
fn lengths_are_sorted_and_each_is_there_once() {
    let place = Workplace::new();
    let found = records(&place, &["--seqlen", "33,20,33", "--methods", "flash"]);
    assert_eq!(found.iter().map(|record| number(record, "seqlen")).collect::<Vec<_>>(), [20.0, 33.0]);
}

#[test]
fn without_a_command_there_is_help() {
    let place = Workplace::new();
    let done = talk(&place, &[]);
    assert_eq!(done.status.code(), Some(2));
    assert!(text(&done.stderr).contains("Commands:"), "{}", text(&done.stderr));
    let done = talk(&place, &["compare", "--seqlen", "x"]);
    assert!(text(&done.stderr).ends_with("see `talk compare --help`\n"), "{}", text(&done.stderr));
}

#[test]
fn refusals_say_why() {
    let place = Workplace::new();
    let bad = place.write("bad", b"not a file of tensors");
    let cases: [(&[&str], &str); 9] = [
        (&["--seqlen", "1048576", "--heads", "1024", "--batch", "1024"], "are the most here"),
        (&["--methods", "magic"], "there is no method 'magic'; there is flash, standard, linear"),
        (&["--input", "/nowhere"], "cannot read /nowhere"),
        (&["--input", &bad], "cannot read"),
        (&["--load", &bad], "cannot read"),
        (&["--heads", "3", "--heads-kv", "2"], "must be a multiple"),
        (&["--seqlen", "8,9", "--dump", &place.path("dump")], "--dump is for one length"),
        (&["--seqlen", "0"], "0 is not in 1..="),
        (&["--record", "a", "--out", "b"], "cannot be used with"),
    ];
    for (options, reason) in cases {
        let done = talk(&place, &[&["compare"], options].concat());
        let stderr = text(&done.stderr);
        assert_eq!(done.status.code(), Some(2), "{options:?}: {stderr}");
        assert!(stderr.starts_with("talk: ") && stderr.lines().count() == 1, "{options:?}: {stderr}");
        assert!(stderr.contains(reason), "{options:?}: no '{reason}' in: {stderr}");
        assert_eq!(text(&done.stdout), "", "{options:?}");
    }
}

/// Runs until this file is there, and then interrupts.
#[cfg(unix)]
fn interrupted(place: &Workplace, arguments: &[&str], file: &std::path::Path) {
    let mut command = command(place, arguments);
    heed(&mut command, libc::SIGINT);
    let mut child = command.stdout(Stdio::null()).spawn().expect("the program starts");
    let start = std::time::Instant::now();
    while !file.exists() && start.elapsed().as_secs() < 100 {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    // SAFETY: kill has no other effect than the signal, and the child has not been waited for.
    unsafe { libc::kill(child.id() as i32, libc::SIGINT) };
    let status = child.wait().expect("the program ends");
    assert!(!status.success());
}

#[cfg(unix)]
#[test]
fn what_is_interrupted_leaves_what_is_done() {
    let place = Workplace::new();
    let folder = place.path("out");
    // Far more than can end by itself.
    let much = ["compare", "--seqlen", "64,128,256,512,1024,2048,4096,8192", "--repeats", "50"];
    for option in ["--out", "--record"] {
        let file = place.0.path().join("out/compare.json");
        interrupted(&place, &[&much[..], &[option, &folder]].concat(), &file);
        let bytes = std::fs::read(&file).expect("the records");
        let records: Vec<Value> = serde_json::from_slice(&bytes).expect("whole JSON");
        assert!(!records.is_empty());
        let left = std::fs::read_dir(&folder).expect("the folder").flatten();
        let temporary: Vec<_> =
            left.map(|entry| entry.file_name()).filter(|name| name.to_string_lossy().starts_with('.')).collect();
        assert!(temporary.is_empty(), "{temporary:?}");
        std::fs::remove_dir_all(&folder).expect("the folder goes");
    }
    let dump = place.path("dump");
    let one = ["compare", "--seqlen", "256", "--repeats", "1000", "--methods", "flash,standard", "--dump", &dump];
    interrupted(&place, &one, std::path::Path::new(&dump));
    let bytes = std::fs::read(&dump).expect("the dump");
    let tensors = SafeTensors::deserialize(&bytes).expect("a whole file");
    for name in ["q", "k", "v", "flash.o", "exact.o"] {
        assert!(tensors.tensor(name).is_ok(), "no {name} in {:?}", tensors.names());
    }
}
