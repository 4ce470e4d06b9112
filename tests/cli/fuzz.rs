//! `flash fuzz`: problems drawn at random, against the oracle.

use crate::workplace::{Workplace, text};

/// Runs it, and gives what it prints as JSON.
fn fuzz(arguments: &[&str]) -> (bool, serde_json::Value) {
    let done = Workplace::new().flash(&[&["fuzz", "--json"], arguments].concat());
    let said = text(&done.stdout);
    let object = serde_json::from_str(&said).unwrap_or_else(|error| panic!("{error}: {said}{}", text(&done.stderr)));
    (done.status.success(), object)
}

#[test]
fn drawn_problems_are_right() {
    let (good, said) = fuzz(&["--problems", "120", "--seed", "19"]);
    assert!(good, "{said}");
    assert_eq!(said["problems"], 120, "{said}");
    assert_eq!(said["misses"], serde_json::json!([]));
    // Most are answered.
    let refused: u64 = said["refused"].as_object().unwrap().values().map(|count| count.as_u64().unwrap()).sum();
    assert!(refused < 60, "{said}");
}

/// What was wrong once is right now.
#[test]
fn kept_cases_are_right() {
    let (good, said) = fuzz(&["--kept"]);
    assert!(good, "{said}");
    assert!(said["problems"].as_u64() > Some(0), "{said}");
}

/// The same seed draws the same problems, of the features that are asked for.
#[test]
fn one_case_and_some_features() {
    let (good, said) = fuzz(&["--case", "seqlen_q=5 seqlen_kv=9 head_dim=8 head_dim_v=8 causal=1 seed=3"]);
    assert!(good && said["problems"] == 1, "{said}");
    let some = ["--problems", "20", "--seed", "4", "--features", "causal,left"];
    assert_eq!(fuzz(&some).1["largest_share"], fuzz(&some).1["largest_share"]);
    let place = Workplace::new();
    place.refuses(&["fuzz", "--features", "casual"], "'casual' is no feature");
    place.refuses(&["fuzz", "--case", "seqlen_q"], "'seqlen_q' is not NAME=NUMBER");
    place.refuses(&["fuzz", "--case", "rows=3"], "a case has no number 'rows'");
    place.refuses(&["fuzz", "--minutes", "0"], "above 0");
}

/// Ctrl-C ends it with a summary.
#[cfg(unix)]
#[test]
fn a_signal_ends_it_in_good_order() {
    use std::process::Stdio;

    let place = Workplace::new();
    let mut command = place.command(&["fuzz", "--json", "--minutes", "5", "--features", "causal"]);
    crate::workplace::heed(&mut command, libc::SIGINT);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the program starts");
    std::thread::sleep(std::time::Duration::from_secs(3));
    // SAFETY: the child was not waited for, so its number is its own.
    unsafe { libc::kill(child.id() as libc::pid_t, libc::SIGINT) };
    let done = child.wait_with_output().expect("it ends");
    let said: serde_json::Value = serde_json::from_slice(&done.stdout).expect("a summary");
    assert_eq!(said["misses"], serde_json::json!([]), "{said}");
    assert!(done.status.success(), "{said}");
}
