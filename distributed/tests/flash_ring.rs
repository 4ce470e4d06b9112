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

/// A problem with its q, k and v.
fn example() -> (AttentionProblem, [Vec<f64>; 3]) {
    let (batch, rows, heads, heads_kv, dim) = (2, 37, 4, 2, 16);
    let values =
        |count: u32, step: f64| (0..count).map(move |n| (f64::from(n) * step).sin()).map(|x| f64::from(x as f32));
    let q: Vec<f64> = values(batch * rows * heads * dim, 0.7).collect();
    let k: Vec<f64> = values(batch * rows * heads_kv * dim, 1.3).collect();
    let v: Vec<f64> = values(batch * rows * heads_kv * dim, 2.1).collect();
    let shape = AttentionShape::new(batch, heads, rows, dim).with_num_heads_kv(heads_kv);
    (AttentionProblem::new(shape).with_causal(), [q, k, v])
}

fn write_example(path: &Path) {
    let (problem, [q, k, v]) = example();
    let AttentionShape { batch, num_heads, num_heads_kv, seqlen_q, head_dim, .. } = problem.shape;
    let of_kv = [batch, seqlen_q, num_heads_kv, head_dim];
    write(path, &[("q", [batch, seqlen_q, num_heads, head_dim], &q), ("k", of_kv, &k), ("v", of_kv, &v)]);
}

/// What is in a folder.
fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// The program ends by itself, and says why.
fn refused(output: &Output, text: &str) {
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{errors}");
    assert!(errors.contains(text), "{text}: {errors}");
}

#[test]
fn run_reads_and_writes_files() {
    let folder = folder("run");
    let (input, output) = (folder.join("in.safetensors"), folder.join("out.safetensors"));
    write_example(&input);
    let (problem, [q, k, v]) = example();
    let AttentionShape { batch, num_heads: heads, seqlen_q: rows, head_dim: dim, .. } = problem.shape;
    let (given, written) = (input.to_str().unwrap(), output.to_str().unwrap());
    // What a run left that was killed is taken over.
    std::fs::write(folder.join("out.safetensors.unfinished"), [7; 1 << 16]).unwrap();
    let said = stdout(&flash_ring(&["run", given, written, "--causal", "--in-process", "3"]));
    let expected = format!("{written}: 37 rows of 2 sequences, by 3 ranks in ");
    assert!(said.starts_with(&expected) && said.lines().count() == 1, "{said}");
    let expected = reference::forward(&problem, &q, &k, &v);
    let (o, lse) = (read(&output, "o"), read(&output, "lse"));
    let close = |found: &[f64], expected: &[f64]| {
        found.len() == expected.len() && found.iter().zip(expected).all(|(found, wanted)| (found - wanted).abs() < 1e-5)
    };
    assert!(close(&o, &expected.o) && close(&lse, &expected.lse));

    let said = stdout(&flash_ring(&["run", given, written, "--causal", "--in-process", "3", "--parts"]));
    assert!(said.starts_with(&format!("{written}.rank0 to .rank2: 37 rows")), "{said}");
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
    let written = ["", ".rank0", ".rank1", ".rank2"].map(|part| format!("out.safetensors{part}"));
    assert_eq!(names(&folder), [&["in.safetensors".to_owned()][..], &written].concat());
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
        (vec!["check", "--in-process", "65"], "there must be a rank, and 64 at most"),
        (vec!["check", "--in-process", "2", "--head-dim", "300", "--seqlen", "8"], "head_dim = 300"),
        (vec!["check", "--in-process", "2", "--seqlen", "4294967295"], "seqlen_q = 4294967295; at most 536870912"),
        (vec!["bench", "--in-process", "2", "--seqlen", "4294967295"], "seqlen_q = 4294967295; at most 536870912"),
        (vec!["bench", "--in-process", "1", "--one-device", "--head-dim", "4294967295"], "head_dim = 4294967295"),
        (
            vec!["check", "--in-process", "2", "--batch", "4294967295", "--num-heads", "4294967295"],
            "batch = 4294967295",
        ),
        (vec!["check", "--in-process", "2", "--num-heads", "0", "--num-heads-kv", "536870912"], "rows this large"),
        (
            vec!["transfer", "--in-process", "2", "--bytes", "1000000000000000"],
            "rank 1: too little memory: a rank needs",
        ),
        (vec!["transfer", "--in-process", "2", "--bytes", "18446744073709551615"], "than can be counted"),
        (vec!["transfer", "--in-process", "2", "--repeats", "0"], "--repeats"),
        (vec!["bench", "--in-process", "2", "--repeats", "0"], "--repeats"),
        (vec!["check", "--in-process", "2", "--timeout", "0"], "--timeout"),
        (vec!["check", "--in-process", "2", "--num-heads", "3", "--num-heads-kv", "2", "--seqlen", "8"], "multiple"),
    ] {
        refused(&flash_ring(&arguments), text);
    }
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 1);
}

#[test]
fn what_has_nothing_to_compute_is_no_fault() {
    for arguments in [
        vec!["check", "--seqlen", "0", "--backward"],
        vec!["check", "--seqlen", "8", "--batch", "0", "--backward"],
        // Of four rows one rank has all.
        vec!["check", "--seqlen", "4", "--backward", "--timeout", "18446744073709551615"],
        vec!["bench", "--seqlen", "4", "--backward", "--repeats", "1"],
        vec!["bench", "--seqlen", "0", "--backward", "--repeats", "1"],
        vec!["bench", "--seqlen", "8", "--batch", "0", "--backward", "--repeats", "1"],
    ] {
        stdout(&flash_ring(&[&arguments[..], SMALL].concat()));
    }
    stdout(&flash_ring(&["check", "--seqlen", "8", "--num-heads", "0", "--in-process", "2"]));
}

#[test]
fn files_are_tried_before_anything_is_computed() {
    let folder = folder("files");
    let path = |name: &str| folder.join(name).into_os_string().into_string().unwrap();
    let (input, output) = (path("in"), path("out"));
    write_example(Path::new(&input));
    std::fs::create_dir(path("folder")).unwrap();
    std::fs::create_dir(path("taken.unfinished")).unwrap();
    let nowhere = path("nowhere/out");
    let is_folder = if cfg!(windows) { "denied" } else { "it is a directory" };
    let mut cases = vec![
        (path("folder"), is_folder),
        (path("taken"), is_folder),
        (nowhere.clone(), "nowhere"),
        (path("x.unfinished"), "not finished"),
        (input.clone(), "it would overwrite the input"),
        (path("folder/../in"), "it would overwrite the input"),
    ];
    #[cfg(unix)]
    {
        let made =
            |command: &str, arguments: &[&str]| Command::new(command).args(arguments).status().unwrap().success();
        assert!(made("mkfifo", &[&path("pipe")]));
        cases.extend([(path("pipe"), "it is no regular file"), ("/dev/null".into(), "it is no regular file")]);
        std::os::unix::fs::symlink(&input, path("link")).unwrap();
        std::os::unix::fs::symlink(path("missing"), path("dangling")).unwrap();
        std::fs::hard_link(&input, path("other-name")).unwrap();
        let overwrites = "it would overwrite the input";
        cases.extend([
            (path("link"), overwrites),
            (path("other-name"), overwrites),
            (path("dangling"), "dangling: No"),
        ]);
    }
    let before = names(&folder);
    for (output, text) in &cases {
        refused(&flash_ring(&["run", &input, output, "--in-process", "2"]), text);
        let figure = ["bench", "--seqlen", "1000000", "--in-process", "2", "--svg", output];
        if !text.contains("input") {
            refused(&flash_ring(&figure), &format!("rank 0: {output}"));
        }
    }
    refused(&flash_ring(&["run", &nowhere, &output, "--in-process", "2"]), "rank 0: ");
    refused(&flash_ring(&["run", &path("folder"), &output, "--in-process", "2"]), "it is no regular file");
    // Of parts, that of any rank.
    std::fs::create_dir(path("out.rank1")).unwrap();
    refused(&flash_ring(&["run", &input, &output, "--in-process", "2", "--parts"]), "out.rank1: ");
    std::fs::remove_dir(path("out.rank1")).unwrap();
    assert_eq!(names(&folder), before);
}

#[test]
#[cfg(unix)]
fn a_link_leads_to_the_file_that_is_written() {
    let folder = folder("link");
    let path = |name: &str| folder.join(name).into_os_string().into_string().unwrap();
    write_example(Path::new(&path("in")));
    std::fs::create_dir(path("elsewhere")).unwrap();
    std::fs::write(path("elsewhere/file"), "old").unwrap();
    std::os::unix::fs::symlink(path("elsewhere/file"), path("out")).unwrap();
    stdout(&flash_ring(&["run", &path("in"), &path("out"), "--in-process", "2"]));
    assert!(std::fs::symlink_metadata(path("out")).unwrap().is_symlink());
    assert_eq!(read(Path::new(&path("elsewhere/file")), "lse").len(), 2 * 37 * 4);
}

/// A run with three ranks that has made its file, of a problem that takes it long.
#[cfg(unix)]
fn started(folder: &Path, program: &str, before: &[&str]) -> std::process::Child {
    let path = |name: &str| folder.join(name).into_os_string().into_string().unwrap();
    let run = ["run", &path("in"), &path("out"), "--in-process", "3"];
    let mut child = Command::new(program)
        .args(before)
        .args(run)
        .env("XDG_RUNTIME_DIR", "/tmp")
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    while !folder.join("out.unfinished").exists() {
        assert!(child.try_wait().unwrap().is_none(), "it ended before it made its file");
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    child
}

/// Some seconds of work on a software driver.
#[cfg(unix)]
fn long_example(path: &Path) {
    let (rows, dim) = (4096, 64);
    let zeros = vec![0.0; (rows * 8 * dim) as usize];
    write(path, &["q", "k", "v"].map(|name| (name, [1, rows, 8, dim], &zeros[..])));
}

#[cfg(unix)]
fn send(child: &std::process::Child, signal: &str) {
    assert!(Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap().success());
}

#[test]
#[cfg(unix)]
fn a_signal_leaves_nothing_unfinished() {
    use std::os::unix::process::ExitStatusExt;
    let folder = folder("signals");
    long_example(&folder.join("in"));
    let program = env!("CARGO_BIN_EXE_flash-ring");
    for (signal, number) in [("-INT", 2), ("-HUP", 1), ("-TERM", 15)] {
        let child = started(&folder, program, &[]);
        send(&child, signal);
        let output = child.wait_with_output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.signal(), Some(number), "{signal}: {errors}");
        let said = format!("flash-ring: ended by SIG{}; ", &signal[1..]);
        assert!(errors.starts_with(&said) && errors.ends_with("out.unfinished is removed\n"), "{errors}");
        assert_eq!(names(&folder), ["in"], "{signal}");
    }
    // What nohup ignores does not end it.
    let child = started(&folder, "nohup", &[program]);
    send(&child, "-HUP");
    std::thread::sleep(std::time::Duration::from_millis(50));
    send(&child, "-TERM");
    assert_eq!(child.wait_with_output().unwrap().status.signal(), Some(15));
    assert_eq!(names(&folder), ["in"]);
}

#[test]
#[cfg(unix)]
fn one_run_at_a_time_writes_a_file() {
    let folder = folder("lock");
    let path = |name: &str| folder.join(name).into_os_string().into_string().unwrap();
    long_example(&folder.join("in"));
    write_example(&folder.join("small"));
    let child = started(&folder, env!("CARGO_BIN_EXE_flash-ring"), &[]);
    let again = ["run", &path("small"), &path("out"), "--in-process", "3"];
    refused(&flash_ring(&again), "out.unfinished: another run writes it");
    assert!(folder.join("out.unfinished").exists());
    // What cannot be handled leaves it, without a lock.
    send(&child, "-KILL");
    child.wait_with_output().unwrap();
    assert!(folder.join("out.unfinished").exists());
    stdout(&flash_ring(&again));
    assert_eq!(names(&folder), ["in", "out", "small"]);
}

#[test]
#[cfg(unix)]
fn a_limit_of_file_sizes_is_an_error() {
    let folder = folder("limit");
    write_example(&folder.join("in"));
    let program = env!("CARGO_BIN_EXE_flash-ring");
    for parts in ["", "--parts"] {
        let command = format!("cd {} && ulimit -f 1 && {program} run in out --in-process 3 {parts}", folder.display());
        let output = Command::new("sh").args(["-c", &command]).env("XDG_RUNTIME_DIR", "/tmp").output().unwrap();
        refused(&output, "out");
        assert!(String::from_utf8_lossy(&output.stderr).contains("unfinished: File too large"));
        assert_eq!(names(&folder), ["in"]);
    }
}

#[test]
fn ranks_of_mpi_have_no_ranks_in_process() {
    for name in ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE"] {
        let output = Command::new(env!("CARGO_BIN_EXE_flash-ring"))
            .args(["check", "--seqlen", "8", "--in-process", "2"])
            .env(name, "3")
            .output()
            .unwrap();
        refused(&output, "--in-process: mpirun started 3 processes");
    }
}

#[test]
#[cfg(target_os = "linux")]
fn an_answer_that_nobody_takes_is_an_error() {
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    let arguments = ["transfer", "--bytes", "10", "--in-process", "2"];
    let output = Command::new(env!("CARGO_BIN_EXE_flash-ring")).args(arguments).stdout(full).output().unwrap();
    refused(&output, "stdout: No space left on device");
}
