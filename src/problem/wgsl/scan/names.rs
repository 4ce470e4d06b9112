//! Which name stands for what. A name that is not declared where it is used is refused: in a kernel it could be one of the
//! library's.

use super::super::tokens::{Kind, Refusal};
use super::items::{Function, Item, Items};
use super::types::is_builtin_type;
use super::words;

pub(super) struct Names<'a> {
    items: &'a Items<'a>,
    /// The names that are declared in the scopes that are open.
    declared: Vec<&'a str>,
    scopes: Vec<Scope>,
    /// Declared at the next `;`: an initialiser does not know its name.
    pending: Option<&'a str>,
    calls: Vec<usize>,
}

struct Scope {
    /// How many names were declared before it.
    names_before: usize,
    /// That of a loop's header, which ends with its body.
    is_header: bool,
}

impl<'a> Names<'a> {
    pub fn new(items: &'a Items<'a>) -> Self {
        Self { items, declared: Vec::new(), scopes: Vec::new(), pending: None, calls: Vec::new() }
    }

    /// Checks the names of constants, structs, aliases and assertions.
    pub fn of_globals(mut self) -> Result<(), Refusal> {
        let of_functions =
            |place: &usize| self.items.functions.iter().any(|function| function.tokens().contains(place));
        let places: Vec<_> = (0..self.items.tokens.len()).filter(|place| !of_functions(place)).collect();
        let mut is_member = false;
        for place in places {
            match self.items.text(place) {
                "struct" => is_member = true,
                "}" => is_member = false,
                "alias" => {}
                _ if is_member && self.items.text(place + 1) == ":" => {}
                _ => self.resolve(place)?,
            }
            if !self.calls.is_empty() {
                return self.items.refuse(place, "functions can be called in functions alone");
            }
        }
        Ok(())
    }

    /// Checks the names of a function; the functions that it names.
    pub fn of_function(mut self, function: &Function) -> Result<Vec<usize>, Refusal> {
        self.open(false);
        // Types first: no parameter is a type, whatever its name.
        let parameters: Vec<_> = function.parameters(self.items.tokens).collect();
        let types = (function.name + 1..function.open).filter(|place| parameters.binary_search(place).is_err());
        types.into_iter().try_for_each(|place| self.resolve(place))?;
        parameters.into_iter().try_for_each(|place| self.declare(place))?;
        let mut place = function.open;
        while place <= function.close {
            place = self.step(place)? + 1;
        }
        Ok(self.calls)
    }

    /// Goes on by a token or a few; the last of them.
    fn step(&mut self, place: usize) -> Result<usize, Refusal> {
        match self.items.text(place) {
            "{" => self.open(false),
            "}" => {
                self.close();
                if self.scopes.last().is_some_and(|scope| scope.is_header) {
                    self.close();
                }
            }
            "for" => {
                let end = self.items.closed(place + 1, "(")?;
                self.items.closed(end + 1, "{")?;
                self.open(true);
            }
            ";" => self.declared.extend(self.pending.take()),
            "let" | "var" | "const" => {
                let is_spaced = self.items.text(place + 1) == "<";
                let name = self.items.word(if is_spaced { place + 4 } else { place + 1 })?;
                self.check(name)?;
                self.pending = Some(self.items.text(name));
                return Ok(name);
            }
            _ => self.resolve(place)?,
        }
        Ok(place)
    }

    fn open(&mut self, is_header: bool) {
        self.scopes.push(Scope { names_before: self.declared.len(), is_header });
    }

    /// Ends the innermost scope.
    fn close(&mut self) {
        if let Some(scope) = self.scopes.pop() {
            self.declared.truncate(scope.names_before);
        }
    }

    fn declare(&mut self, place: usize) -> Result<(), Refusal> {
        self.check(place)?;
        self.declared.push(self.items.text(place));
        Ok(())
    }

    /// Refuses a name that loops could not return a value of any more.
    fn check(&self, place: usize) -> Result<(), Refusal> {
        match self.items.get(self.items.text(self.items.word(place)?)) {
            Some(Item::Struct(_) | Item::Alias(_)) => {
                self.items.refuse(place, "this is the name of a type; choose another name")
            }
            _ => Ok(()),
        }
    }

    /// Refuses a word that stands for nothing here.
    fn resolve(&mut self, place: usize) -> Result<(), Refusal> {
        let token = &self.items.tokens[place];
        let before = |step| place.checked_sub(step).map_or("", |at| self.items.text(at));
        if token.kind != Kind::Word || before(1) == "." {
            return Ok(());
        }
        let word = token.text;
        if self.declared.contains(&word) {
            return Ok(());
        }
        match self.items.get(word) {
            Some(Item::Function(number)) => {
                self.calls.push(number);
                Ok(())
            }
            Some(_) => Ok(()),
            None if word == "aux" || words::is_keyword(word) || words::is_function(word) || is_builtin_type(word) => {
                Ok(())
            }
            None if word == "function" && before(1) == "<" && matches!(before(2), "var" | "ptr") => Ok(()),
            None if word == "ptr" && [1, 2].map(|step| self.items.text(place + step)) == ["<", "function"] => Ok(()),
            None => self.items.refuse(place, words::reason(word)),
        }
    }
}
