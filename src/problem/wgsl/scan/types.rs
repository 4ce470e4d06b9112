//! How large variables are.

use super::super::gate::{MAX_VARIABLE_BYTES, too_large, too_many_bytes};
use super::super::tokens::{Kind, Refusal};
use super::items::{Function, Item, Items};

/// Bytes of a type, and the power of two that its place is a multiple of.
#[derive(Clone, Copy)]
struct Layout {
    size: u64,
    align: u64,
}

pub(super) struct Types<'a> {
    items: &'a Items<'a>,
    /// Structs and aliases by name; `None` while their parts are being measured.
    known: Vec<(&'a str, Option<Layout>)>,
    /// Bytes that a value whose type is not written takes at most.
    largest: u64,
    /// How many types are being measured, each a part of the one before.
    depth: usize,
}

/// How deep types may be nested.
const MAX_DEPTH: usize = 50;

/// Numbers, vectors and matrices in f32, i32, u32 and bool, and arrays.
pub(super) fn is_builtin_type(word: &str) -> bool {
    word == "array" || scalars(word).is_some()
}

impl<'a> Types<'a> {
    /// Measures all types of a text.
    pub fn read(items: &'a Items<'a>) -> Result<Self, Refusal> {
        let mut types = Self { items, known: Vec::new(), largest: 64, depth: 0 };
        for item in items.all() {
            if let Item::Struct(keyword) | Item::Alias(keyword) = item {
                types.named_layout(keyword + 1)?;
            }
        }
        let is_array = |place: &usize| items.text(*place) == "array";
        let arrays: Vec<_> = (0..items.tokens.len()).filter(is_array).collect();
        for place in arrays.iter().filter(|place| items.text(**place + 1) == "<") {
            types.layout(*place)?;
        }
        // Inner ones first: what is written with more arguments holds them.
        for place in arrays.iter().rev().filter(|place| items.text(**place + 1) == "(") {
            types.measure_constructor(*place)?;
        }
        Ok(types)
    }

    /// Refuses a function whose variables take too much together.
    pub fn check_variables(&mut self, function: &Function) -> Result<(), Refusal> {
        let mut bytes = 0u64;
        for place in function.tokens().filter(|place| self.items.text(*place) == "var") {
            let name = if self.items.text(place + 1) == "<" { place + 4 } else { place + 1 };
            bytes = bytes.saturating_add(match self.items.text(name + 1) {
                ":" => self.layout(name + 2)?.0.size,
                _ => self.size_of_value(name + 2, function),
            });
        }
        match bytes {
            bytes if bytes <= MAX_VARIABLE_BYTES => Ok(()),
            bytes => self.items.refuse(function.keyword, too_many_bytes(bytes)),
        }
    }

    /// The most bytes of the value that starts at a place.
    fn size_of_value(&self, place: usize, function: &Function) -> u64 {
        let end = self.items.closed(place + 1, "(").unwrap_or(place);
        let word = self.items.text(place);
        let is_number = self.items.tokens.get(place).is_some_and(|token| token.kind == Kind::Number);
        let is_scalar = match end == place {
            true => is_number || matches!(word, "true" | "false") || self.is_scalar_parameter(word, function),
            false => is_scalar(word),
        };
        if is_scalar && self.items.text(end + 1) == ";" { 4 } else { self.largest }
    }

    /// Whether a name stands for a number that a function is given, and nothing else in it.
    fn is_scalar_parameter(&self, name: &str, function: &Function) -> bool {
        let mut parameters = function.parameters(self.items.tokens).filter(|at| self.items.text(*at) == name);
        let declares =
            |at: usize| matches!(self.items.text(at), "let" | "var" | "const") && self.items.text(at + 1) == name;
        parameters.any(|at| is_scalar(self.named(at + 2))) && !function.tokens().any(declares)
    }

    /// The name that the type at a place has at last.
    pub fn named(&self, place: usize) -> &'a str {
        let mut place = place;
        // As many steps as there are names: an alias that leads back to itself was refused.
        while let Some(Item::Alias(keyword)) = self.items.get(self.items.text(place)) {
            place = keyword + 3;
        }
        self.items.text(place)
    }

    /// The name of a function's result.
    pub fn result_of(&self, function: &Function) -> &'a str {
        let place = function.parameters_end + 2;
        let is_one = self.items.text(place - 1) == "->" && place + 1 == function.open;
        if is_one { self.named(place) } else { "" }
    }

    /// The struct or alias of this name.
    fn named_layout(&mut self, name: usize) -> Result<Layout, Refusal> {
        let word = self.items.text(name);
        let number = self.known.len();
        match self.known.iter().find(|(name, _)| *name == word) {
            Some((_, Some(layout))) => return Ok(*layout),
            Some(_) => return self.items.refuse(name, format!("declaration of `{word}` is cyclic")),
            None => self.known.push((word, None)),
        }
        let layout = match self.items.get(word) {
            Some(Item::Struct(keyword)) => self.layout_of_struct(keyword + 2)?,
            Some(Item::Alias(keyword)) => self.layout(keyword + 3)?.0,
            _ => return self.items.refuse(name, format!("`{word}` is no type that is known here")),
        };
        self.note(name, layout)?;
        self.known[number].1 = Some(layout);
        Ok(layout)
    }

    /// The struct whose `{` stands at a place.
    fn layout_of_struct(&mut self, open: usize) -> Result<Layout, Refusal> {
        let close = self.items.closed(open, "{")?;
        let mut all = Layout { size: 0, align: 4 };
        let mut at = open + 1;
        while at < close {
            self.items.word(at)?;
            let (member, end) = self.layout(at + 2)?;
            all.size = all.size.next_multiple_of(member.align).saturating_add(member.size);
            all.align = all.align.max(member.align);
            at = end + 1;
        }
        all.size = all.size.next_multiple_of(all.align);
        Ok(all)
    }

    /// The type at a place, and the place behind it.
    fn layout(&mut self, place: usize) -> Result<(Layout, usize), Refusal> {
        if self.depth == MAX_DEPTH {
            return self.items.refuse(place, format!("types are nested deeper than {MAX_DEPTH}; leave some out"));
        }
        self.depth += 1;
        let found = self.layout_inside(place);
        self.depth -= 1;
        found
    }

    fn layout_inside(&mut self, place: usize) -> Result<(Layout, usize), Refusal> {
        let word = self.items.text(place);
        let is_template = self.items.text(place + 1) == "<";
        if let Some(layout) = scalars(word) {
            // vec3<f32>: one name of a scalar between the brackets.
            return Ok((layout, if is_template { place + 4 } else { place + 1 }));
        }
        if word == "ptr" && is_template {
            let (_, end) = self.layout(place + 4)?;
            return Ok((Layout { size: 4, align: 4 }, self.behind_template(end)?));
        }
        if word != "array" {
            return Ok((self.named_layout(place)?, place + 1));
        }
        let (entry, comma) = if is_template { self.layout(place + 2)? } else { self.items.refuse(place, LENGTH)? };
        let count =
            if self.items.text(comma) == "," { self.count(comma + 1)? } else { self.items.refuse(place, LENGTH)? };
        let size = entry.size.next_multiple_of(entry.align).saturating_mul(count);
        let layout = Layout { size, ..entry };
        self.note(place, layout)?;
        Ok((layout, self.behind_template(comma + 2)?))
    }

    /// Behind the `>`, and a comma before it.
    fn behind_template(&self, place: usize) -> Result<usize, Refusal> {
        let end = if self.items.text(place) == "," { place + 1 } else { place };
        if self.items.text(end) == ">" { Ok(end + 1) } else { self.items.refuse(place, LENGTH) }
    }

    /// The number at a place, or that of the constant there.
    fn count(&self, place: usize) -> Result<u64, Refusal> {
        let number = match self.items.get(self.items.text(place)) {
            Some(Item::Const(keyword)) if !self.is_hidden(place) => {
                let value = if self.items.text(keyword + 2) == ":" { keyword + 5 } else { keyword + 3 };
                if self.items.text(value + 1) == ";" { self.items.text(value) } else { "" }
            }
            _ => self.items.text(place),
        };
        let digits = number.strip_suffix(['u', 'i']).unwrap_or(number);
        let count = match digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X")) {
            Some(hex) => u64::from_str_radix(hex, 16),
            None => digits.parse(),
        };
        count.or_else(|_| self.items.refuse(place, LENGTH))
    }

    /// Whether some function declares the name at a place too.
    fn is_hidden(&self, place: usize) -> bool {
        let name = self.items.text(place);
        let is_declared = |at: usize| {
            let before = at.checked_sub(1).map_or("", |before| self.items.text(before));
            matches!(before, "let" | "var" | "const" | ">") || self.items.text(at + 1) == ":"
        };
        let mut places = self.items.functions.iter().flat_map(Function::tokens);
        places.any(|at| self.items.text(at) == name && is_declared(at))
    }

    /// `array( … )`, whose type its arguments tell.
    fn measure_constructor(&mut self, place: usize) -> Result<(), Refusal> {
        let close = self.items.closed(place + 1, "(")?;
        let arguments = 1 + (place + 2..close).filter(|at| self.items.text(*at) == ",").count() as u64;
        let entry = if self.has_scalars_alone(place + 2..close) { 4 } else { self.largest };
        self.note(place, Layout { size: arguments.saturating_mul(entry), align: 16 })
    }

    fn has_scalars_alone(&self, mut places: std::ops::Range<usize>) -> bool {
        places.all(|at| {
            self.items.tokens[at].kind == Kind::Number || matches!(self.items.text(at), "," | "-" | "true" | "false")
        })
    }

    /// Refuses a type that is too large, and remembers the largest.
    fn note(&mut self, place: usize, layout: Layout) -> Result<(), Refusal> {
        if layout.size > MAX_VARIABLE_BYTES {
            return self.items.refuse(place, too_large());
        }
        self.largest = self.largest.max(layout.size);
        Ok(())
    }
}

const LENGTH: &str =
    "the length of an array must be a number here, or a constant outside of functions that is a number: array<f32, 4>";

fn is_scalar(word: &str) -> bool {
    matches!(word, "f32" | "i32" | "u32" | "bool")
}

/// A number, vector or matrix.
fn scalars(word: &str) -> Option<Layout> {
    if is_scalar(word) {
        return Some(Layout { size: 4, align: 4 });
    }
    let side = |digit: u8| (b'2'..=b'4').contains(&digit).then(|| u64::from(digit - b'0'));
    let vector = |rows: u64| Layout { size: 4 * rows, align: 4 * rows.next_power_of_two() };
    match word.as_bytes() {
        [b'v', b'e', b'c', rows] | [b'v', b'e', b'c', rows, b'f' | b'i' | b'u'] => Some(vector(side(*rows)?)),
        [b'm', b'a', b't', columns, b'x', rows] | [b'm', b'a', b't', columns, b'x', rows, b'f'] => {
            let Layout { size, align } = vector(side(*rows)?);
            Some(Layout { size: side(*columns)? * size.next_multiple_of(align), align })
        }
        _ => None,
    }
}
