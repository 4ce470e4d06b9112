//! A text in WGSL as tokens, and what is refused before a parser sees it.

/// The longest text.
const MAX_BYTES: usize = 1 << 16;

/// How deep brackets of all kinds may be nested. naga's parser calls itself for each.
const MAX_DEPTH: usize = 50;

/// How many operators may follow each other in one expression, with those in its brackets. naga calls itself for each: the
/// expression `1 + 1 + 1 + …` is a tree that leans to one side.
const MAX_CHAIN: usize = 200;

/// How many `else` one block may hold: each is a block inside the one before.
const MAX_ELSE: usize = 60;

/// Where something is refused, in bytes, and why.
pub(super) type Refusal = (usize, String);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Word,
    Number,
    /// A single character, or `->`.
    Mark,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Token<'a> {
    pub kind: Kind,
    pub text: &'a str,
    /// Its first byte.
    pub at: usize,
}

/// The tokens of a text, without comments.
pub(super) fn tokens(text: &str) -> Result<Vec<Token<'_>>, Refusal> {
    if text.len() > MAX_BYTES {
        return Err((
            0,
            format!("the text has {} bytes, at most {MAX_BYTES} are allowed; put data in aux", text.len()),
        ));
    }
    refuse_line_breaks(text)?;
    let mut found = Vec::new();
    let mut at = 0;
    while let Some(first) = text[at..].chars().next() {
        let rest = &text[at..];
        let length = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            comment(rest).ok_or((at, "this comment is never closed; close it with */".to_owned()))?
        } else if first.is_ascii_whitespace() {
            1
        } else if first.is_ascii() {
            let (kind, length) = token(rest);
            found.push(Token { kind, text: &rest[..length], at });
            length
        } else {
            return Err((at, format!("the character {first:?} is not allowed outside comments; write names in ASCII")));
        };
        at += length;
    }
    refuse_words(&found)?;
    refuse_depth(&found)?;
    Ok(found)
}

/// Compilers do not agree on what ends a line. Those that all know are \n and \r\n.
fn refuse_line_breaks(text: &str) -> Result<(), Refusal> {
    let mut characters = text.char_indices().peekable();
    while let Some((at, character)) = characters.next() {
        let is_plain = match character {
            '\n' | '\t' => true,
            '\r' => characters.peek().is_some_and(|(_, next)| *next == '\n'),
            // Line breaks and marks of direction, which make a text look like another.
            '\u{2028}' | '\u{2029}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {
                false
            }
            other => !other.is_control(),
        };
        if !is_plain {
            return Err((at, format!("the character {character:?} is not allowed; end lines with \\n or \\r\\n")));
        }
    }
    Ok(())
}

/// The bytes of the block comment at the start, which may hold others. `None` if it is not closed.
fn comment(rest: &str) -> Option<usize> {
    let mut depth = 0;
    let bytes = rest.as_bytes();
    let mut at = 0;
    while at + 1 < bytes.len() {
        match &bytes[at..at + 2] {
            b"/*" => depth += 1,
            b"*/" => depth -= 1,
            _ => {
                at += 1;
                continue;
            }
        }
        at += 2;
        if depth == 0 {
            return Some(at);
        }
    }
    None
}

/// The kind and the bytes of the token at the start.
fn token(rest: &str) -> (Kind, usize) {
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let mut characters = rest.chars();
    let (first, second) = (characters.next().unwrap_or(' '), characters.next().unwrap_or(' '));
    if first.is_ascii_digit() || first == '.' && second.is_ascii_digit() {
        let is_hex = first == '0' && matches!(second, 'x' | 'X');
        let mut previous = ' ';
        let end = rest.find(|c: char| {
            let signs = if is_hex { ['p', 'P'] } else { ['e', 'E'] };
            let is_part = is_word(c) || c == '.' || matches!(c, '+' | '-') && signs.contains(&previous);
            previous = c;
            !is_part
        });
        return (Kind::Number, end.unwrap_or(rest.len()));
    }
    if is_word(first) {
        return (Kind::Word, rest.find(|c| !is_word(c)).unwrap_or(rest.len()));
    }
    (Kind::Mark, if rest.starts_with("->") { 2 } else { 1 })
}

fn refuse_words(tokens: &[Token]) -> Result<(), Refusal> {
    for (index, token) in tokens.iter().enumerate() {
        let next = |step: usize| tokens.get(index + step).map_or("", |token| token.text);
        let reason = match token.text {
            "@" => "attributes are not allowed: your functions are called by a kernel, they need none; remove it",
            "enable" | "requires" | "diagnostic" => "directives are not allowed; remove this one",
            "override" => "override is not allowed; use const, or data in aux",
            "var" if next(1) == "<" && next(2) != "function" => {
                "only variables of functions are allowed; use var without <…>, const, or data in aux"
            }
            "aux" if !is_counted(tokens, index) && (next(1) != "[" || is_pointed_to(tokens, index)) => {
                "aux is the name of your data; it can be read as aux[i] or counted as arrayLength(&aux), nothing else"
            }
            word if is_type(word) && declares(tokens, index) => "this is the name of a type; choose another name",
            word if word.starts_with("wgsl_") && token.kind == Kind::Word => {
                "names that begin with wgsl_ are the library's; choose another name"
            }
            _ => continue,
        };
        return Err((token.at, reason.to_owned()));
    }
    Ok(())
}

/// Whether WGSL has a type, or types, of this name. `rewrite` writes some of them.
fn is_type(word: &str) -> bool {
    let sized = word.strip_prefix("vec").or(word.strip_prefix("mat"));
    matches!(word, "array" | "bool" | "f32" | "i32" | "u32")
        || sized.is_some_and(|size| size.starts_with(|c: char| c.is_ascii_digit()))
}

/// Whether the token is a name that is declared here.
fn declares(tokens: &[Token], index: usize) -> bool {
    let before = index.checked_sub(1).map_or("", |before| tokens[before].text);
    let is_before_type = tokens.get(index + 1).is_some_and(|next| next.text == ":");
    is_before_type || matches!(before, "let" | "var" | "const" | "fn" | "alias" | "struct")
}

/// Whether the token is the aux of `arrayLength(&aux)`.
pub(super) fn is_counted(tokens: &[Token], aux: usize) -> bool {
    let around = |step: usize| aux.checked_sub(step).and_then(|at| tokens.get(at)).map_or("", |token| token.text);
    [around(3), around(2), around(1)] == ["arrayLength", "(", "&"]
        && tokens.get(aux + 1).is_some_and(|token| token.text == ")")
}

/// Whether the token before is the `&` of a pointer, not that of two operands.
fn is_pointed_to(tokens: &[Token], aux: usize) -> bool {
    let before = |step: usize| aux.checked_sub(step).and_then(|at| tokens.get(at));
    let ends_operand = |token: &Token| token.kind != Kind::Mark && token.text != "return" || ")]".contains(token.text);
    before(1).is_some_and(|token| token.text == "&") && !before(2).is_some_and(ends_operand)
}

/// What is open: its expression so far.
#[derive(Default)]
struct Open {
    /// Operators of the expression, and of the deepest one in its brackets.
    chain: usize,
    /// The most of an expression before the last comma.
    most: usize,
    elses: usize,
}

fn refuse_depth(tokens: &[Token]) -> Result<(), Refusal> {
    let mut open = vec![Open::default()];
    let mut previous = "";
    for token in tokens {
        let depth = open.len();
        let Some(current) = open.last_mut() else { break };
        if previous == "}" && token.text != "else" {
            current.elses = 0;
        }
        previous = token.text;
        match token.text {
            "(" | "[" | "{" => open.push(Open::default()),
            ")" | "]" | "}" if depth > 1 => {
                let inner = current.chain.max(current.most);
                open.pop();
                if let (Some(outer), true) = (open.last_mut(), token.text != "}") {
                    outer.chain += inner + 1;
                } else if let Some(outer) = open.last_mut() {
                    outer.chain = 0;
                }
            }
            "," => (current.most, current.chain) = (current.most.max(current.chain), 0),
            ";" => (current.most, current.chain) = (0, 0),
            "else" => current.elses += 1,
            _ if token.kind == Kind::Mark => current.chain += 1,
            _ => {}
        }
        let Some(current) = open.last() else { break };
        let reason = if open.len() > MAX_DEPTH {
            format!("brackets are nested deeper than {MAX_DEPTH}; use variables or functions in between")
        } else if current.chain > MAX_CHAIN {
            format!("this expression has more than {MAX_CHAIN} operators; use variables in between")
        } else if current.elses > MAX_ELSE {
            format!("this block has more than {MAX_ELSE} else; use switch, or data in aux")
        } else {
            continue;
        };
        return Err((token.at, reason));
    }
    Ok(())
}
