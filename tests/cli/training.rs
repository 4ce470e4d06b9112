//! The training example: a loss that falls, and the same losses from the same seed.

use std::process::Command;

use crate::workplace::{Workplace, program, text};

fn losses(seed: &str) -> Vec<String> {
    let place = Workplace::new();
    let done = Command::new(program("training_step"))
        .arg(seed)
        .env("XDG_RUNTIME_DIR", place.0.path())
        .output()
        .expect("the program starts");
    assert!(done.status.success(), "{}", text(&done.stderr));
    let lines = text(&done.stdout);
    lines.lines().skip(1).map(|line| line.split_whitespace().nth(1).expect("step and loss").to_owned()).collect()
}

#[test]
fn the_loss_falls_and_the_seed_says_how() {
    let first = losses("1");
    let number = |loss: &String| loss.parse::<f64>().expect("a number");
    let (start, end) = (number(&first[0]), number(first.last().expect("losses")));
    // Guessing one of 12 tokens costs ln 12 = 2.48.
    assert!(start > 2.0 && end < 0.2, "from {start} to {end}");
    assert_eq!(losses("1"), first);
    assert_ne!(losses("2"), first);
}
