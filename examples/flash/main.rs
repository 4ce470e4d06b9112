//! `flash`: exact attention from the command line. Reads and writes safetensors, checks the kernels against the f64
//! oracle, and times them.

mod arguments;
mod bench;
mod blocks;
mod cached;
mod check;
mod demo;
mod device;
mod elements;
mod failure;
mod fuzz;
mod gpu;
mod info;
mod own_wgsl;
mod random;
mod resident;
mod rewritten;
mod run;
mod target;
mod tensors;
mod text;
mod timing;
mod tune;
mod unused;

use std::io::{self, Write};
use std::process::ExitCode;

use clap::Parser;

use arguments::{Arguments, Command};
use failure::{Failure, Result};

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse_from(arguments::join_causal(std::env::args_os())) {
        Ok(arguments) => arguments,
        Err(error) if !error.use_stderr() => {
            // --help and --version. A reader that has gone away is no error.
            let _ = error.print();
            return ExitCode::SUCCESS;
        }
        Err(error) => return complain(&failure::usage(&error)),
    };

    let mut out = io::stdout().lock();
    match pollster::block_on(dispatch(&arguments, &mut out)).and_then(|good| Ok(out.flush().map(|()| good)?)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(Failure::ClosedPipe) => ExitCode::SUCCESS,
        Err(Failure::Message(message)) => complain(&message),
    }
}

/// Whether what the command looked at is good: false is exit status 1.
async fn dispatch(arguments: &Arguments, out: &mut dyn Write) -> Result<bool> {
    let tuning = arguments.tuning.as_deref().map(tune::TuningFile::read).transpose()?;
    let choice = device::Choice {
        adapter: arguments.adapter.as_deref(),
        matrices: !arguments.no_matrices,
        tuning: tuning.as_ref(),
    };
    match &arguments.command {
        Command::Info => info::info(choice, out).await,
        Command::Demo => demo::demo(choice, out).await,
        // The result goes through the pipe, and words beside it.
        Command::Run(options) if target::is_pipe(&options.output) => run::run(options, choice, &mut io::stderr()).await,
        Command::Run(options) => run::run(options, choice, out).await,
        Command::Check(options) => check::check(options, choice, out).await,
        Command::Bench(options) => bench::bench(options, choice, out).await,
        Command::Tune(options) => tune::tune(options, choice, out).await,
        Command::Fuzz(options) => fuzz::fuzz(options, choice, out).await,
    }
}

fn complain(message: &str) -> ExitCode {
    let _ = writeln!(io::stderr(), "flash: {message}");
    ExitCode::from(2)
}
