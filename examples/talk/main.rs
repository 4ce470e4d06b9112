//! `talk`: the methods that were proposed for long sequences, beside exact attention, on the GPU at hand: time, memory
//! and error.

mod arguments;
mod bound;
mod case;
mod compare;
mod device;
mod draws;
mod exact;
mod inputs;
mod methods;
mod tensors;

// What both programs need is in one place, and neither needs all of it.
#[allow(dead_code, reason = "shared with the example flash")]
#[path = "../flash/bench/axes.rs"]
mod axes;
#[allow(dead_code, reason = "shared with the example flash")]
#[path = "../flash/bench/ceilings.rs"]
mod ceilings;
#[allow(dead_code, reason = "shared with the example flash")]
#[path = "../flash/elements.rs"]
mod elements;
#[allow(dead_code, reason = "shared with the example flash")]
#[path = "../flash/failure.rs"]
mod failure;
#[allow(dead_code, reason = "shared with the example flash")]
#[path = "../flash/gpu.rs"]
mod gpu;
#[allow(dead_code, reason = "shared with the example flash")]
#[path = "../flash/resident.rs"]
mod resident;
#[allow(dead_code, reason = "shared with the example flash")]
#[path = "../flash/bench/roof.rs"]
mod roof;
#[allow(dead_code, reason = "shared with the example flash")]
#[path = "../flash/target.rs"]
mod target;
#[allow(dead_code, reason = "shared with the example flash")]
#[path = "../flash/text.rs"]
mod text;
#[allow(dead_code, reason = "shared with the example flash")]
#[path = "../flash/timing.rs"]
mod timing;

use std::io::{self, Write};
use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;

use arguments::{Arguments, Command};
use failure::{Failure, Result};

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) if !error.use_stderr() => {
            // --help and --version. A reader that has gone away is no error.
            let _ = error.print();
            return ExitCode::SUCCESS;
        }
        Err(error) if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            let _ = error.print();
            return ExitCode::from(2);
        }
        Err(error) => return complain(&usage(&error)),
    };
    let mut out = io::stdout().lock();
    match dispatch(&arguments, &mut out).and_then(|good| Ok(out.flush().map(|()| good)?)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(Failure::ClosedPipe) => ExitCode::SUCCESS,
        Err(Failure::Message(message)) => complain(&message),
    }
}

/// Whether every answer was as it must be: false is exit status 1.
fn dispatch(arguments: &Arguments, out: &mut dyn Write) -> Result<bool> {
    match &arguments.command {
        Command::Bound(options) => bound::bound(options, arguments.adapter.as_deref(), out),
        Command::Compare(options) => compare::compare(options, arguments.adapter.as_deref(), out),
    }
}

/// The first paragraph of a usage error in one line.
fn usage(error: &clap::Error) -> String {
    let text = error.to_string();
    let words: Vec<&str> = text.split("\n\n").next().unwrap_or_default().split_whitespace().collect();
    let line = words.join(" ");
    // Not all errors of clap have a line of usage, which would name the command.
    let command = std::env::args().skip(1).find(|word| ["compare", "bound"].contains(&word.as_str()));
    let command = command.map_or(String::new(), |command| format!(" {command}"));
    format!("{}; see `talk{command} --help`", line.strip_prefix("error: ").unwrap_or(&line))
}

fn complain(message: &str) -> ExitCode {
    let _ = writeln!(io::stderr(), "talk: {message}");
    ExitCode::from(2)
}
