//! A checked text, as a kernel takes it: its names have a prefix, its loops a limit, and `aux` is read through a function.

use super::tokens::{Kind, Refusal, Token, is_counted};

/// The text with these changes, line for line. Comments become spaces.
pub(super) fn rewrite(text: &str, tokens: &[Token], prefix: &str) -> Result<String, Refusal> {
    let names = global_names(tokens);
    let mut writer = Writer { tokens, prefix, names, written: String::with_capacity(2 * text.len()) };
    let changes = writer.changes()?;
    let mut end = 0;
    for (index, token) in tokens.iter().enumerate() {
        writer.gap(&text[end..token.at]);
        end = token.at + token.text.len();
        match &changes[index] {
            Some(Change::Instead(other)) => writer.written += other,
            Some(Change::Behind(more)) => {
                writer.name(index);
                writer.written += more;
            }
            None => writer.name(index),
        }
    }
    writer.written.push('\n');
    Ok(writer.written)
}

/// What is declared outside of functions.
fn global_names<'a>(tokens: &[Token<'a>]) -> Vec<&'a str> {
    let mut depth = 0usize;
    let mut names = Vec::new();
    for pair in tokens.windows(2) {
        match pair[0].text {
            "{" => depth += 1,
            "}" => depth = depth.saturating_sub(1),
            "fn" | "const" | "struct" | "alias" if depth == 0 => names.push(pair[1].text),
            _ => {}
        }
    }
    names
}

/// What is written instead of a token, or behind it.
enum Change {
    Instead(&'static str),
    Behind(String),
}

struct Writer<'a> {
    tokens: &'a [Token<'a>],
    prefix: &'a str,
    names: Vec<&'a str>,
    written: String,
}

impl Writer<'_> {
    fn is(&self, index: usize, text: &str) -> bool {
        self.tokens.get(index).is_some_and(|token| token.text == text)
    }

    /// What lies between tokens: line ends stay, all else is a space.
    fn gap(&mut self, text: &str) {
        self.written.push_str(if text.is_empty() { "" } else { " " });
        self.written.extend(text.chars().filter(|c| *c == '\n'));
    }

    /// Writes a token; a global name has its prefix.
    fn name(&mut self, index: usize) {
        let token = self.tokens[index];
        let is_member = index > 0 && self.is(index - 1, ".") || self.declares_member(index);
        if token.kind == Kind::Word && !is_member && self.names.contains(&token.text) {
            self.written += self.prefix;
        }
        self.written += token.text;
    }

    /// Whether the token is the name of a member in a struct.
    fn declares_member(&self, index: usize) -> bool {
        if !self.is(index + 1, ":") {
            return false;
        }
        let open = self.tokens[..index].iter().rposition(|token| matches!(token.text, "{" | "}"));
        open.is_some_and(|open| self.is(open, "{") && open >= 2 && self.is(open - 2, "struct"))
    }

    /// What changes beside names, for each token.
    fn changes(&self) -> Result<Vec<Option<Change>>, Refusal> {
        let mut found: Vec<_> = self.tokens.iter().map(|_| None).collect();
        let mut returned = String::new();
        // The braces that are open, each true where it is that of a `continuing` or lies in one.
        let mut open: Vec<bool> = Vec::new();
        for (index, token) in self.tokens.iter().enumerate() {
            match token.text {
                "fn" if open.is_empty() => returned = self.returned_type(index),
                "{" => {
                    let is_continuing = index > 0 && self.is(index - 1, "continuing");
                    open.push(is_continuing || open.last().copied().unwrap_or(false));
                }
                "}" => drop(open.pop()),
                "loop" | "while" | "for" => {
                    if open.last() == Some(&true) {
                        let reason = "a loop inside continuing cannot be limited; write it before continuing";
                        return Err((token.at, reason.to_owned()));
                    }
                    let behind = format!(
                        " if wgsl_turns_left == 0u {{ wgsl_is_spent = true; return {returned}; }} wgsl_turns_left -= 1u;"
                    );
                    found[self.body(index)] = Some(Change::Behind(behind));
                }
                "aux" if !is_counted(self.tokens, index) => {
                    let places = [(index, "wgsl_aux"), (index + 1, "(u32("), (self.closing(index + 1), "))")];
                    places.into_iter().for_each(|(place, text)| found[place] = Some(Change::Instead(text)));
                }
                _ => {}
            }
        }
        Ok(found)
    }

    /// The zero value of what the function at `function` returns; nothing if it returns nothing.
    fn returned_type(&self, function: usize) -> String {
        let parameters_end = self.closing(function + 2);
        if !self.is(parameters_end + 1, "->") {
            return String::new();
        }
        let mut name = Writer { written: String::new(), names: self.names.clone(), ..*self };
        for index in parameters_end + 2..self.tokens.len() {
            if self.is(index, "{") {
                break;
            }
            name.name(index);
        }
        name.written + "()"
    }

    /// The `{` of a loop.
    fn body(&self, keyword: usize) -> usize {
        let head = if self.is(keyword + 1, "(") { self.closing(keyword + 1) } else { keyword };
        (head + 1..self.tokens.len()).find(|index| self.is(*index, "{")).unwrap_or(head)
    }

    /// The bracket that closes the one at `open`. The text was parsed, so there is one.
    fn closing(&self, open: usize) -> usize {
        let mut depth = 0usize;
        for index in open..self.tokens.len() {
            match self.tokens[index].text {
                "(" | "[" | "{" => depth += 1,
                ")" | "]" | "}" => {
                    depth = depth.saturating_sub(1);
                    if depth == 0 {
                        return index;
                    }
                }
                _ => {}
            }
        }
        open
    }
}
