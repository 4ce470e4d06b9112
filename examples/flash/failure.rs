use std::fmt::Display;
use std::io;

/// Why a command stopped.
#[derive(Debug)]
pub enum Failure {
    /// One line for standard error; exit status 2.
    Message(String),
    /// The reader of standard output has gone away (`flash info | head -1`).
    ClosedPipe,
}

pub type Result<T> = std::result::Result<T, Failure>;

impl Failure {
    /// Messages of drivers and parsers may span lines; the user gets one.
    pub fn new(message: impl Display) -> Self {
        Failure::Message(in_one_line(&message.to_string()))
    }

    /// The line, for a table.
    pub fn line(&self) -> &str {
        match self {
            Failure::Message(message) => message,
            Failure::ClosedPipe => "standard output was closed",
        }
    }
}

impl From<wgpu_flash_attention::Error> for Failure {
    fn from(error: wgpu_flash_attention::Error) -> Self {
        Failure::new(error)
    }
}

/// Only `write!` to standard output uses `?` on an [`io::Error`]; file operations name their file.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Failure::ClosedPipe,
            _ => Failure::new(format_args!("cannot write to standard output: {error}")),
        }
    }
}

/// Names come from files and arguments, and a terminal obeys control characters.
fn in_one_line(lines: &str) -> String {
    let words: Vec<&str> = lines.split_whitespace().collect();
    let plain = |c: char| if c.is_control() { '\u{fffd}' } else { c };
    words.join(" ").chars().map(plain).collect()
}

/// The first paragraph of a usage error in one line, without clap's prefix.
pub fn usage(error: &clap::Error) -> String {
    use clap::error::ErrorKind;

    if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        return "a command is missing: info, demo, run, check, bench, tune or fuzz; see `flash --help`".to_owned();
    }
    let text = error.to_string();
    let paragraph = text.split("\n\n").next().unwrap_or_default();
    let line = in_one_line(paragraph);
    // clap's own usage line names the command; beside a value that is wrong there is none.
    let usage = text.split("Usage: flash ").nth(1).and_then(|usage| usage.split_whitespace().next());
    let known = ["info", "demo", "run", "check", "bench", "tune", "fuzz"];
    let given = usage.map(str::to_owned).or_else(|| std::env::args().nth(1));
    let command = given.filter(|word| known.contains(&word.as_str())).map_or(String::new(), |word| format!(" {word}"));
    format!("{}; see `flash{command} --help`", line.strip_prefix("error: ").unwrap_or(&line))
}
