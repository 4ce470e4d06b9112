//! The WGSL text of a kernel: prelude, slots, common files and the kernel file, unrolled. Pure.
//!
//! Three rules decide where a difference goes. What differs from call to call is in the [`Params`](crate::plan::Params)
//! uniform. What changes a size or switches plain arithmetic is a constant of the prelude, the only generated text. What
//! needs another capability or other bindings is a slot: small files that define the same names.

mod dialect;
mod files;
mod prelude;
mod unroll;

pub use dialect::Dialect;

use crate::error::Error;
use crate::plan::Specialization;
use std::borrow::Cow;
use unroll::{Lines, Lists};

/// Where a line of the assembled text comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The file below `shaders/`, `prelude`, or `score_mod` or `mask_mod` for the caller's own WGSL.
    pub file: &'static str,
    /// Its line, from 1.
    pub line: u32,
}

/// Assembled WGSL, and where each of its lines comes from.
#[derive(Clone, Debug, PartialEq)]
pub struct ShaderSource {
    text: String,
    origins: Vec<Origin>,
}

impl ShaderSource {
    /// Assembles the text of one kernel.
    ///
    /// # Errors
    /// [`Error::InvalidPlan`] for a specialization that no plan has; [`Error::Shader`] for a mistake in an `// unroll`
    /// directive.
    pub fn new(specialization: &Specialization, dialect: Dialect) -> Result<Self, Error> {
        if !specialization.is_sound() {
            let reason = format!("no {} can be made of tiles {}", specialization.kernel.name(), specialization.tiles);
            return Err(Error::InvalidPlan { what: "specialization", reason });
        }
        let mut source = Self { text: String::new(), origins: Vec::new() };
        let (prelude, lists) = prelude::prelude(specialization, dialect);
        source.append("prelude", &prelude, &Lists::default())?;
        for file in files::files_of(specialization) {
            // What a dispatch reads may lie in a buffer that it writes, which wgpu lets it use in one way alone. Not the tables:
            // see `is_declared_writable`.
            let text = match specialization.shares_buffers && file.name != "common/tables.wgsl" {
                true => Cow::Owned(file.text.replace("var<storage, read>", "var<storage, read_write>")),
                false => Cow::Borrowed(file.text),
            };
            source.append(file.name, &text, &lists)?;
        }
        // Never unrolled: no comment of the caller's is a directive.
        for snippet in specialization.wgsl.snippets() {
            let lines = (1..).zip(snippet.text.lines().map(Cow::Borrowed)).collect();
            source.append_lines(snippet.role.function(), lines);
        }
        Ok(source)
    }

    /// The WGSL.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Where line `line` of the text, from 1, comes from.
    pub fn origin(&self, line: u32) -> Option<Origin> {
        self.origins.get((line as usize).checked_sub(1)?).copied()
    }

    fn append(&mut self, file: &'static str, text: &str, lists: &Lists) -> Result<(), Error> {
        let lines = unroll::unroll(text, lists).map_err(|(line, message)| Error::Shader {
            file: file.into(),
            line,
            message,
        })?;
        self.append_lines(file, lines);
        Ok(())
    }

    fn append_lines(&mut self, file: &'static str, lines: Lines) {
        for (line, text) in lines {
            self.text.push_str(&text);
            self.text.push('\n');
            self.origins.push(Origin { file, line });
        }
    }
}
