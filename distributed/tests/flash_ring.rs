//! flash-ring as a user sees it, with ranks in one process.

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use wgpu_flash_attention::reference;
use wgpu_flash_attention::{AttentionProblem, AttentionShape};

const SMALL: &[&str] = &["--num-heads", "4", "--num-heads-kv", "2", "--head-dim", "16", "--in-process", "3"];

fn flash_ring(arguments: &[&str]) -> Output {
    let program = env!("CARGO_BIN_EXE_flash-ring");
    let output = Command::new(program).args(arguments).env("XDG_RUNTIME_DIR", "/tmp").output();
    output.expect("flash-ring runs")
}

fn stdout(output: &Output) -> String {
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A folder of this test.
fn folder(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

#[test]
fn bench_tells_what_each_rank_did() {
    let folder = folder("bench");
    let figure = folder.join("timeline.svg");
    let more =
        ["bench", "--causal", "--seqlen", "101", "--backward", "--one-device", "--repeats", "2", "--json", "--svg"];
    let output = flash_ring(&[&more[..], &[figure.to_str().unwrap()], SMALL].concat());
    let record: Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!((&record["ranks"], &record["scheme"]), (&3.into(), &"zigzag".into()));
    for pass in record["passes"].as_array().unwrap() {
        assert!(pass["seconds"].as_f64().unwrap() > 0.0 && pass["efficiency"].as_f64().unwrap() > 0.0);
        assert_eq!(pass["all_seconds"].as_array().unwrap().len(), 2);
        let ranks = pass["ranks"].as_array().unwrap();
        assert_eq!(ranks.len(), 3);
        for events in ranks.iter().map(|rank| rank["events"].as_array().unwrap()) {
            let of = |activity: &str| events.iter().filter(|event| event["activity"] == activity).count();
            // The backward pass comes back to a rank's own keys.
            let steps = if pass["pass"] == "backward" { 4 } else { 3 };
            assert!(of("compute") == steps && of("transfer") >= 2, "{events:?}");
            let ends_later = |event: &Value| event["end"].as_f64() >= event["begin"].as_f64();
            assert!(events.iter().all(ends_later));
        }
    }
    let svg = std::fs::read_to_string(figure).unwrap();
    assert!(svg.starts_with("<svg") && svg.contains("rank 2 transfer") && svg.contains("backward"));
}

#[test]
fn check_compares_ranks_with_one_device() {
    let options = ["check", "--scheme", "ring", "--window-left", "30", "--seqlen", "101", "--dropout", "0.2", "--json"];
    let record: Value = serde_json::from_str(&stdout(&flash_ring(&[&options[..], SMALL].concat()))).unwrap();
    assert_eq!(record["is_well"], true);
    assert!(record["tensors"][0]["error"].as_f64().unwrap() > 0.0);
}

/// A safetensors file of f32.
fn write(path: &Path, tensors: &[(&str, [u32; 4], &[f64])]) {
    let (mut header, mut bytes) = (serde_json::Map::new(), Vec::new());
    for (name, shape, values) in tensors {
        let first = bytes.len();
        bytes.extend(values.iter().flat_map(|value| (*value as f32).to_le_bytes()));
        let entry = serde_json::json!({"dtype": "F32", "shape": shape, "data_offsets": [first, bytes.len()]});
        header.insert((*name).to_owned(), entry);
    }
    let header = Value::Object(header).to_string();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.bytes().chain(bytes));
    std::fs::write(path, file).unwrap();
}

/// A tensor of f32, or of u64.
fn read(path: &Path, name: &str) -> Vec<f64> {
    let file = std::fs::read(path).unwrap();
    let count = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&file[8..8 + count]).unwrap();
    let entry = &header[name];
    let [first, end] = [0, 1].map(|n| 8 + count + entry["data_offsets"][n].as_u64().unwrap() as usize);
    let bytes = &file[first..end];
    match entry["dtype"].as_str().unwrap() {
        "U64" => bytes.chunks(8).map(|word| u64::from_le_bytes(word.try_into().unwrap()) as f64).collect(),
        _ => bytes.chunks(4).map(|word| f32::from_le_bytes(word.try_into().unwrap()).into()).collect(),
    }
}

#[test]
fn run_reads_and_writes_files() {
    let folder = folder("run");
    let (batch, rows, heads, heads_kv, dim) = (2, 37, 4, 2, 16);
    let values =
        |count: u32, step: f64| (0..count).map(move |n| (f64::from(n) * step).sin()).map(|x| f64::from(x as f32));
    let q: Vec<f64> = values(batch * rows * heads * dim, 0.7).collect();
    let k: Vec<f64> = values(batch * rows * heads_kv * dim, 1.3).collect();
    let v: Vec<f64> = values(batch * rows * heads_kv * dim, 2.1).collect();
    let (input, output) = (folder.join("in.safetensors"), folder.join("out.safetensors"));
    let of_kv = [batch, rows, heads_kv, dim];
    write(&input, &[("q", [batch, rows, heads, dim], &q), ("k", of_kv, &k), ("v", of_kv, &v)]);
    let (given, written) = (input.to_str().unwrap(), output.to_str().unwrap());
    stdout(&flash_ring(&["run", given, written, "--causal", "--in-process", "3"]));
    let shape = AttentionShape::new(batch, heads, rows, dim).with_num_heads_kv(heads_kv);
    let problem = AttentionProblem::new(shape).with_causal();
    let expected = reference::forward(&problem, &q, &k, &v);
    let (o, lse) = (read(&output, "o"), read(&output, "lse"));
    let close = |found: &[f64], expected: &[f64]| {
        found.len() == expected.len() && found.iter().zip(expected).all(|(found, wanted)| (found - wanted).abs() < 1e-5)
    };
    assert!(close(&o, &expected.o) && close(&lse, &expected.lse));

    stdout(&flash_ring(&["run", given, written, "--causal", "--in-process", "3", "--parts"]));
    let width = (heads * dim) as usize;
    for rank in 0..3 {
        let part = folder.join(format!("out.safetensors.rank{rank}"));
        let (own, mut rest) = (read(&part, "o"), Vec::new());
        for span in read(&part, "spans").chunks(2) {
            for sequence in 0..batch as usize {
                let first = (sequence * rows as usize + span[0] as usize) * width;
                rest.extend_from_slice(&o[first..first + span[1] as usize * width]);
            }
        }
        assert!(!own.is_empty() && own == rest);
    }
    let left = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    assert!(left.into_iter().all(|name| !name.contains("unfinished")));
}

#[test]
fn what_cannot_be_is_refused() {
    let folder = folder("refused");
    let (broken, output) = (folder.join("broken.safetensors"), folder.join("out.safetensors"));
    std::fs::write(&broken, [255; 100]).unwrap();
    let (given, written) = (broken.to_str().unwrap(), output.to_str().unwrap());
    for (arguments, text) in [
        (
            vec!["run", given, written, "--in-process", "2"],
            "broken.safetensors: no sound safetensors file: header too large",
        ),
        (vec!["run", "/no/such/file", written, "--in-process", "2"], "/no/such/file"),
        (vec!["check", "--in-process", "0"], "there must be a rank"),
        (vec!["check", "--in-process", "2", "--adapters", "99"], "there are adapters 0 to"),
        (vec!["check", "--in-process", "2", "--head-dim", "300", "--seqlen", "8"], "head_dim = 300"),
        (vec!["check", "--in-process", "2", "--num-heads", "3", "--num-heads-kv", "2", "--seqlen", "8"], "multiple"),
    ] {
        let refused = flash_ring(&arguments);
        let errors = String::from_utf8_lossy(&refused.stderr);
        assert_eq!(refused.status.code(), Some(2), "{arguments:?}: {errors}");
        assert!(errors.contains(text), "{arguments:?}: {errors}");
    }
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 1);
}
