//! What is written to the terminal.

use crate::launch::Failure;
use std::io::{Write, stderr, stdout};
use wgpu_flash_attention_distributed::Error;

/// A line on stderr, by one write: lines of several ranks do not mix.
pub fn say(line: &str) {
    // If nobody reads it, nobody is to be told.
    let _ = stderr().write_all(format!("flash-ring: {line}\n").as_bytes());
}

/// The program's answer, on stdout.
pub fn answer(text: &str) -> Result<(), Failure> {
    let mut out = stdout().lock();
    let written = out.write_all(text.as_bytes()).and_then(|()| out.write_all(b"\n")).and_then(|()| out.flush());
    Ok(written.map_err(|error| Error::Work(format!("stdout: {error}")))?)
}
