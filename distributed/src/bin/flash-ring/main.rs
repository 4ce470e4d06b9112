//! Attention of one problem on several GPUs, from the command line: `flash-ring bench`, `check`, `run` and `transfer`, on the GPUs of this
//! machine (`--in-process`) or as processes that `mpirun` starts.

mod arguments;
mod bench;
mod check;
mod inputs;
mod launch;
mod run;
mod safetensors;
mod signals;
mod svg;
mod transfer;
mod unfinished;
mod words;

use arguments::{Arguments, Command};
use clap::Parser;
use launch::Failure;
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let result = match &arguments.command {
        Command::Bench(options) => bench::bench(options),
        Command::Check(options) => check::check(options),
        Command::Run(options) => run::run(options),
        Command::Transfer(options) => transfer::transfer(options),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if let Failure::Other(error) = failure {
                words::say(&error.to_string());
            }
            ExitCode::from(2)
        }
    }
}
