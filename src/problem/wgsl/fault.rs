/// Why a text in WGSL is refused, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{function}, line {line}, column {column}: {message}\n  | {source_line}\n  | {}^", " ".repeat(self.indent()))]
pub struct WgslFault {
    function: &'static str,
    line: u32,
    column: u32,
    source_line: String,
    message: String,
}

/// Of a longer line, this many characters are kept.
const LONGEST_LINE: usize = 160;

impl WgslFault {
    /// The fault at a byte of a text.
    pub(super) fn new(function: &'static str, text: &str, at: usize, message: String) -> Self {
        let at = (0..=at.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        let before = &text[..at];
        let start = before.rfind('\n').map_or(0, |newline| newline + 1);
        let source_line = text[start..].lines().next().unwrap_or("").chars().take(LONGEST_LINE);
        Self {
            function,
            line: 1 + before.matches('\n').count() as u32,
            column: 1 + before[start..].chars().count() as u32,
            source_line: source_line.map(|c| if c.is_control() { ' ' } else { c }).collect(),
            message,
        }
    }

    /// What the text was to define: `score_mod` or `mask_mod`.
    pub fn function(&self) -> &'static str {
        self.function
    }

    /// The line of the text, from 1.
    pub fn line(&self) -> u32 {
        self.line
    }

    /// The character of the line, from 1.
    pub fn column(&self) -> u32 {
        self.column
    }

    /// The text of the line.
    pub fn source_line(&self) -> &str {
        &self.source_line
    }

    /// What is wrong, and what to do.
    pub fn message(&self) -> &str {
        &self.message
    }

    fn indent(&self) -> usize {
        (self.column as usize - 1).min(LONGEST_LINE)
    }
}
