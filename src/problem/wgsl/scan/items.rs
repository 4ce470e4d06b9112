//! What a text declares outside of functions.

use super::super::tokens::{Kind, Refusal, Token};
use super::words;
use std::ops::Range;

/// Places in this module are numbers of tokens.
pub(super) struct Items<'a> {
    pub tokens: &'a [Token<'a>],
    pub functions: Vec<Function>,
    /// Few enough to be searched one by one, as all lists of names here: a browser downloads every byte of a map.
    named: Vec<(&'a str, Item)>,
    /// For each token that opens a bracket the one that closes it, for all others themselves.
    closing: Vec<usize>,
}

/// What a global name stands for. All but functions hold the place of their keyword.
#[derive(Clone, Copy)]
pub(super) enum Item {
    /// A number in `functions`.
    Function(usize),
    Const(usize),
    Struct(usize),
    Alias(usize),
}

/// `keyword name ( … parameters_end … open … close`
pub(super) struct Function {
    pub keyword: usize,
    pub name: usize,
    pub parameters_end: usize,
    pub open: usize,
    pub close: usize,
}

impl Function {
    pub fn tokens(&self) -> Range<usize> {
        self.keyword..self.close + 1
    }
}

impl<'a> Items<'a> {
    pub fn read(tokens: &'a [Token<'a>]) -> Result<Self, Refusal> {
        let closing = pairs(tokens)?;
        let mut items = Self { tokens, functions: Vec::new(), named: Vec::new(), closing };
        if let Some(number) = tokens.iter().find(|token| token.kind == Kind::Number && !words::is_number(token.text)) {
            let reason = "this is no number that is allowed; write 1, 1u, 1i, 0x1f, 1.5 or 1.5e-3";
            return Err((number.at, reason.to_owned()));
        }
        let mut at = 0;
        while at < tokens.len() {
            at = items.add(at)? + 1;
        }
        Ok(items)
    }

    /// Adds the item at a place; the place of its last token.
    fn add(&mut self, at: usize) -> Result<usize, Refusal> {
        let item = match self.text(at) {
            ";" => return Ok(at),
            "const_assert" => return self.find(at, ";"),
            "fn" => Item::Function(self.functions.len()),
            "const" => Item::Const(at),
            "struct" => Item::Struct(at),
            "alias" => Item::Alias(at),
            "var" => {
                let reason = "only variables of functions are allowed; use const, or data in aux";
                return Err((self.tokens[at].at, reason.to_owned()));
            }
            found => {
                let reason = format!("expected global item: fn, const, struct or alias, found `{found}`");
                return Err((self.tokens[at].at, reason));
            }
        };
        let name = self.word(at + 1)?;
        if self.get(self.text(name)).is_some() {
            return Err((self.tokens[name].at, format!("redefinition of `{}`", self.text(name))));
        }
        self.named.push((self.text(name), item));
        match item {
            Item::Function(_) => {
                let parameters_end = self.closed(name + 1, "(")?;
                let open = self.find(parameters_end, "{")?;
                let close = self.closed(open, "{")?;
                self.functions.push(Function { keyword: at, name, parameters_end, open, close });
                Ok(close)
            }
            Item::Struct(_) => self.closed(name + 1, "{"),
            Item::Const(_) | Item::Alias(_) => self.find(name, ";"),
        }
    }

    pub fn get(&self, name: &str) -> Option<Item> {
        self.named.iter().find(|(other, _)| *other == name).map(|(_, item)| *item)
    }

    pub fn all(&self) -> impl Iterator<Item = Item> {
        self.named.iter().map(|(_, item)| *item)
    }

    pub fn function(&self, name: &str) -> Option<&Function> {
        match self.get(name) {
            Some(Item::Function(number)) => self.functions.get(number),
            _ => None,
        }
    }

    /// The text of a token; nothing past the last one.
    pub fn text(&self, place: usize) -> &'a str {
        self.tokens.get(place).map_or("", |token| token.text)
    }

    /// Refuses what stands at a place.
    pub fn refuse<T>(&self, place: usize, reason: impl Into<String>) -> Result<T, Refusal> {
        let end = || self.tokens.last().map_or(0, |last| last.at);
        Err((self.tokens.get(place).map_or_else(end, |token| token.at), reason.into()))
    }

    /// The place of a name.
    pub fn word(&self, place: usize) -> Result<usize, Refusal> {
        match self.tokens.get(place) {
            Some(token) if token.kind == Kind::Word => Ok(place),
            _ => self.refuse(place, "expected a name"),
        }
    }

    /// The bracket that closes the one that must stand at a place.
    pub fn closed(&self, place: usize, bracket: &str) -> Result<usize, Refusal> {
        match self.closing.get(place) {
            Some(closing) if self.text(place) == bracket => Ok(*closing),
            _ => self.refuse(place, format!("expected `{bracket}`")),
        }
    }

    /// The first such token behind a place, outside of brackets that open there.
    fn find(&self, place: usize, text: &str) -> Result<usize, Refusal> {
        let mut at = place + 1;
        while at < self.tokens.len() && self.text(at) != text {
            at = self.closing[at] + 1;
        }
        if at < self.tokens.len() { Ok(at) } else { self.refuse(place, format!("expected `{text}` behind this")) }
    }
}

/// Each bracket that opens with the one that closes it.
fn pairs(tokens: &[Token]) -> Result<Vec<usize>, Refusal> {
    let mut found: Vec<usize> = (0..tokens.len()).collect();
    let mut open = Vec::new();
    for (place, token) in tokens.iter().enumerate() {
        let opening = match token.text {
            "(" | "[" | "{" => {
                open.push(place);
                continue;
            }
            ")" => "(",
            "]" => "[",
            "}" => "{",
            _ => continue,
        };
        match open.pop() {
            Some(at) if tokens[at].text == opening => found[at] = place,
            Some(at) => {
                return Err((token.at, format!("`{}` is open here, and this does not close it", tokens[at].text)));
            }
            None => return Err((token.at, "expected global item; no bracket is open here".to_owned())),
        }
    }
    match open.pop() {
        Some(at) => Err((tokens[at].at, "this bracket is never closed".to_owned())),
        None => Ok(found),
    }
}
