//! Where results are put: at the end of links, in regular files alone, and whole or not at all.

use std::fs;
use std::os::unix::fs::{FileTypeExt, PermissionsExt, symlink};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use safetensors::tensor::Dtype;

use crate::workplace::{OLD, SHAPE, Workplace, file, heed, qkv, text};

/// The bytes that a run on the CPU gives, which are the same each time.
fn result(place: &Workplace, input: &str) -> Vec<u8> {
    let output = place.path("result");
    assert!(place.flash(&["run", input, &output, "--algorithm", "reference"]).status.success());
    let bytes = fs::read(&output).expect("OUT was written");
    fs::remove_file(output).expect("the folder is writable");
    bytes
}

#[test]
fn links_are_written_through() {
    let place = Workplace::new();
    let input = place.write("in", &qkv(Dtype::F32, SHAPE, SHAPE, SHAPE));
    let expected = result(&place, &input);
    let [first, second, target] = ["first", "elsewhere/second", "elsewhere/deep/target"].map(|name| place.path(name));
    fs::create_dir_all(place.path("elsewhere/deep")).expect("the folder is writable");
    symlink("elsewhere/second", &first).expect("links can be made");
    symlink("deep/target", &second).expect("links can be made");
    // At first nothing is at their end, then a file.
    for old in [None, Some(OLD)] {
        if let Some(old) = old {
            fs::write(&target, old).expect("the folder is writable");
        }
        let done = place.flash(&["run", &input, &first, "--algorithm", "reference"]);
        assert!(done.status.success(), "{}", text(&done.stderr));
        assert!(
            fs::symlink_metadata(&first).unwrap().is_symlink() && fs::symlink_metadata(&second).unwrap().is_symlink()
        );
        assert!(fs::symlink_metadata(&target).unwrap().is_file());
        assert_eq!(fs::read(&target).unwrap(), expected);
        assert_eq!(place.files(), ["elsewhere", "first", "in"]);
        assert_eq!(fs::read_dir(place.path("elsewhere/deep")).unwrap().count(), 1, "a temporary was left behind");
    }

    // A link of another kind: an absolute one, to a folder on the way.
    symlink(place.path("elsewhere/deep"), place.path("folder")).expect("links can be made");
    fs::remove_file(&target).unwrap();
    assert!(place.flash(&["run", &input, &place.path("folder/target"), "--algorithm", "reference"]).status.success());
    assert_eq!(fs::read(&target).unwrap(), expected);
}

#[test]
fn links_that_lead_nowhere_are_refused() {
    let place = Workplace::new();
    let input = place.write("in", &qkv(Dtype::F32, SHAPE, SHAPE, SHAPE));
    for (link, to) in [("loop", "loop"), ("ping", "pong"), ("pong", "ping"), ("astray", "missing/out"), ("up", "..")] {
        symlink(to, place.path(link)).expect("links can be made");
    }
    place.refuses(&["run", &input, &place.path("loop")], "too many symbolic links");
    place.refuses(&["run", &input, &place.path("ping")], "too many symbolic links");
    place.refuses(&["run", &input, &place.path("astray")], "cannot write");
    place.refuses(&["run", &input, &place.path("up")], "folder");
    assert!(fs::symlink_metadata(place.path("astray")).unwrap().is_symlink());
}

#[test]
fn what_is_no_regular_file_is_refused() {
    let place = Workplace::new();
    let input = place.write("in", &qkv(Dtype::F32, SHAPE, SHAPE, SHAPE));
    fs::create_dir(place.path("folder")).expect("the folder is writable");
    let _socket = std::os::unix::net::UnixListener::bind(place.path("socket")).expect("sockets can be made");
    let pipe = std::ffi::CString::new(place.path("pipe")).expect("a plain path");
    // SAFETY: the path ends in a zero.
    assert_eq!(unsafe { libc::mkfifo(pipe.as_ptr(), 0o600) }, 0);
    symlink("/dev/null", place.path("null")).expect("links can be made");
    for (output, reason) in [
        ("folder", "it is a folder, not a regular file"),
        ("new/", "the name of a folder"),
        ("socket", "it is a socket, not a regular file"),
        ("pipe", "it is a pipe, not a regular file"),
        ("null", "it is a device, not a regular file"),
        ("/dev/null", "it is a device, not a regular file"),
        ("/dev/stdout", "name a regular file"),
        ("/dev/stderr", "name a regular file"),
        ("/dev/fd/1", "name a regular file"),
        ("/proc/self/fd/1", "name a regular file"),
    ] {
        // The folder of a test comes before a name alone.
        let output = place.0.path().join(output);
        let output = output.to_str().expect("a plain path");
        place.refuses(&["run", &input, output], reason);
        place.refuses(&["tune", "--out", output], reason);
    }
    assert!(fs::symlink_metadata("/dev/null").unwrap().file_type().is_char_device());
    assert!(fs::symlink_metadata("/dev/stdout").unwrap().is_symlink());

    // Also where standard output is a regular file.
    let log = fs::File::create(place.path("log")).expect("the folder is writable");
    let done = place.command(&["run", &input, "/dev/stdout"]).stdout(log).output().expect("the program starts");
    assert!(done.status.code() == Some(2) && text(&done.stderr).contains("/dev/stdout"), "{}", text(&done.stderr));
    assert_eq!(fs::read(place.path("log")).unwrap(), b"");

    // Before anything is measured.
    fs::rename(place.path("pipe"), place.path("folder/time.svg")).expect("the folder is writable");
    place.refuses(&["bench", "--out", &place.path("folder")], "time.svg: it is a pipe");
}

#[test]
fn files_of_a_bench_are_written_through_links() {
    let place = Workplace::new();
    fs::create_dir(place.path("figures")).expect("the folder is writable");
    symlink("../csv", place.path("figures/bench.csv")).expect("links can be made");
    let bench = ["bench", "--seqlen", "16", "--head-dim", "8", "--batch", "1", "--heads", "1", "--iterations", "1"];
    let done = place.flash(&[&bench[..], &["--out", &place.path("figures")]].concat());
    assert!(done.status.success(), "{}", text(&done.stderr));
    assert!(fs::symlink_metadata(place.path("figures/bench.csv")).unwrap().is_symlink());
    assert_eq!(fs::read_to_string(place.path("csv")).unwrap().lines().count(), 3);
    assert_eq!(fs::read_dir(place.path("figures")).unwrap().count(), 5);
}

#[test]
fn permissions_are_kept() {
    let place = Workplace::new();
    let input = place.write("in", &qkv(Dtype::F32, SHAPE, SHAPE, SHAPE));
    let mode = |name: &str| fs::metadata(place.path(name)).unwrap().permissions().mode() & 0o7777;
    let run = |name: &str| {
        let done = place.flash(&["run", &input, &place.path(name), "--algorithm", "reference"]);
        assert!(done.status.success(), "{}", text(&done.stderr));
    };
    // A new file is as others are that this user makes.
    run("new");
    assert_eq!(mode("new"), mode("in"));
    symlink("old", place.path("link")).expect("links can be made");
    // Bits that the usual mask takes away are among them.
    for bits in [0o600, 0o640, 0o666, 0o777] {
        place.write("old", OLD);
        fs::set_permissions(place.path("old"), fs::Permissions::from_mode(bits)).unwrap();
        for name in ["old", "link"] {
            run(name);
            assert_eq!(mode("old"), bits, "{name}");
        }
    }
}

#[test]
fn runs_that_write_one_file_at_once_leave_a_whole_one() {
    let place = Workplace::new();
    let inputs: Vec<String> = (1..=4)
        .map(|rows| {
            let shape = [1, 8, 200 * rows, 32];
            place.write(&format!("in{rows}"), &qkv(Dtype::F32, shape, [1, 8, 1, 32], [1, 8, 1, 32]))
        })
        .collect();
    let expected: Vec<Vec<u8>> = inputs.iter().map(|input| result(&place, input)).collect();
    for _ in 0..3 {
        let start = |input: &String| {
            let mut command = place.command(&["run", input, &place.path("out"), "--algorithm", "reference"]);
            command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("the program starts")
        };
        let running: Vec<Child> = inputs.iter().map(start).collect();
        for child in running {
            let done = child.wait_with_output().expect("the program ends");
            assert!(done.status.success(), "{}", text(&done.stderr));
        }
        assert!(expected.contains(&fs::read(place.path("out")).unwrap()), "OUT is no run's result");
        assert_eq!(place.files(), ["in1", "in2", "in3", "in4", "out"]);
    }
}

/// Whether a temporary of the program's holds something.
fn is_being_written(place: &Workplace) -> bool {
    let entries = fs::read_dir(place.0.path()).expect("the folder is readable").flatten();
    let mut temporaries = entries.filter(|entry| entry.file_name().to_string_lossy().ends_with(".tmp"));
    temporaries.any(|entry| entry.metadata().is_ok_and(|metadata| metadata.len() > 0))
}

/// Sends the signal while the result is being written; gives what became of the program.
fn interrupted(place: &Workplace, input: &str, signal: i32) -> std::process::ExitStatus {
    let mut command = place.command(&["run", input, &place.path("out"), "--algorithm", "reference"]);
    heed(&mut command, signal);
    let mut child = command.stdout(Stdio::null()).spawn().expect("the program starts");
    let start = Instant::now();
    while !is_being_written(place) {
        if let Some(status) = child.try_wait().expect("the program is ours") {
            return status;
        }
        assert!(start.elapsed() < Duration::from_secs(120), "nothing is written");
    }
    // SAFETY: the process was not waited for since it was last seen running, so its number is its own.
    unsafe { libc::kill(child.id() as i32, signal) };
    child.wait().expect("the program ends")
}

#[test]
fn signals_leave_nothing_behind() {
    let place = Workplace::new();
    // Without keys there is nothing to compute, and 80 MB to write.
    let (q, k, v) = ([1, 1, 80_000, 1], [1, 1, 0, 1], [1, 1, 0, 256]);
    let input = place.write("in", &file(&[("q", Dtype::F32, q), ("k", Dtype::F32, k), ("v", Dtype::F32, v)]));
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        // The program may be done before the signal comes.
        let hit = (0..10).any(|_| {
            place.write("out", OLD);
            let status = interrupted(&place, &input, signal);
            assert!(status.success() || status.signal() == Some(signal), "{status}");
            assert_eq!(place.files(), ["in", "out"]);
            let is_old = fs::read(place.path("out")).unwrap() == OLD;
            assert_eq!(is_old, !status.success());
            is_old
        });
        assert!(hit, "signal {signal} never came in time");
    }
}

#[test]
fn signals_that_are_ignored_stay_so() {
    let place = Workplace::new();
    let (q, k, v) = ([1, 1, 20_000, 1], [1, 1, 0, 1], [1, 1, 0, 256]);
    let input = place.write("in", &file(&[("q", Dtype::F32, q), ("k", Dtype::F32, k), ("v", Dtype::F32, v)]));
    // As under nohup: the program that the shell starts has SIGHUP ignored.
    let [program, out] = [crate::workplace::program("flash").to_str().unwrap().to_owned(), place.path("out")];
    let script = format!("trap '' HUP; '{program}' run '{input}' '{out}' --algorithm reference & wait $!");
    let mut shell = std::process::Command::new("sh");
    shell.args(["-c", &script]).stdout(Stdio::null());
    shell.process_group(0);
    let mut shell = shell.spawn().expect("a shell starts");
    let start = Instant::now();
    while !is_being_written(&place) && !fs::exists(&out).unwrap() {
        assert!(start.elapsed() < Duration::from_secs(120), "nothing is written");
    }
    // SAFETY: the group was made for this shell alone, which was not waited for.
    unsafe { libc::kill(-(shell.id() as i32), libc::SIGHUP) };
    assert!(shell.wait().expect("the shell ends").success());
    assert!(fs::metadata(&out).unwrap().len() > 20_000 * 256 * 4);
}
