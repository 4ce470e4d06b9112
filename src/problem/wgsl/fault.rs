/// Why a text in WGSL is refused, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{function}, line {line}, column {column}: {message}\n  | {source_line}\n  | {}^", " ".repeat(*indent))]
pub struct WgslFault {
    function: &'static str,
    line: u32,
    column: u32,
    source_line: String,
    /// Where the column is in it.
    indent: usize,
    message: String,
}

/// Of a longer line, this many characters around the fault are kept.
const LONGEST_LINE: usize = 100;

/// Of a longer word of a message, such as a name of the text, this many characters are kept.
const LONGEST_WORD: usize = 60;

impl WgslFault {
    /// The fault at a byte of a text.
    pub(super) fn new(function: &'static str, text: &str, at: usize, message: String) -> Self {
        let at = (0..=at.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        let before = &text[..at];
        let start = before.rfind('\n').map_or(0, |newline| newline + 1);
        let line = text[start..].lines().next().unwrap_or("");
        Self::in_line(
            function,
            line,
            1 + before.matches('\n').count() as u32,
            before[start..].chars().count(),
            &message,
        )
    }

    /// What a browser's compiler found in a text, in its words.
    pub(super) fn of_compiler(function: &'static str, text: &str, line: u32, column: u32, message: &str) -> Self {
        let source_line = text.lines().nth((line as usize).saturating_sub(1)).unwrap_or("");
        Self::in_line(function, source_line, line, (column as usize).saturating_sub(1), message)
    }

    fn in_line(function: &'static str, source_line: &str, line: u32, indent: usize, message: &str) -> Self {
        let (source_line, shown_indent) = excerpt(source_line, indent);
        Self {
            function,
            line,
            column: 1 + indent as u32,
            source_line,
            indent: shown_indent,
            message: shortened(message),
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

    /// The text of the line; of a long one 100 characters around the fault, with `…` where others are left out.
    pub fn source_line(&self) -> &str {
        &self.source_line
    }

    /// What is wrong, and what to do.
    pub fn message(&self) -> &str {
        &self.message
    }
}

/// A line as messages show it, and how many characters of it stand before the fault.
fn excerpt(line: &str, indent: usize) -> (String, usize) {
    let characters: Vec<char> = line.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let indent = indent.min(characters.len());
    let start = indent.saturating_sub(LONGEST_LINE / 2).min(characters.len().saturating_sub(LONGEST_LINE));
    let end = characters.len().min(start + LONGEST_LINE);
    let (before, after) = (if start > 0 { "…" } else { "" }, if end < characters.len() { "…" } else { "" });
    let kept: String = characters[start..end].iter().collect();
    (format!("{before}{kept}{after}"), indent - start + before.chars().count())
}

/// A message whose very long words are cut.
fn shortened(message: &str) -> String {
    let short = |word: &str| match word.char_indices().nth(LONGEST_WORD) {
        Some((end, _)) if word.chars().count() > 2 * LONGEST_WORD => format!("{}…", &word[..end]),
        _ => word.to_owned(),
    };
    message.split_inclusive(' ').map(short).collect()
}
