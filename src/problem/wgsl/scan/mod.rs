//! What a text may do, from its tokens alone: the gate of browsers, whose module has no compiler.
//!
//! It refuses all that `gate` refuses because it could do harm, and a little more: types whose size it cannot tell. It knows no
//! types of values. What is wrong there, the browser's compiler says.
//!
//! `items` reads what is declared outside of functions, `names` which name stands for what, `types` how large variables are.
//! This file puts them together. Words that it does not know are refused, so a text reaches nothing but what is its own and
//! plain arithmetic.

mod items;
mod names;
mod types;
mod words;

use super::Role;
use super::gate::{Found, GRADIENT, MAX_SIZE, too_many_operations, written};
use super::tokens::{Kind, Refusal, Token, tokens};
use items::{Function, Items};
use names::Names;
use types::Types;

/// Operations that a token stands for, at most: those of compilers that put constants in place.
const OF_A_TOKEN: u64 = 4;

/// Why a pointer is refused.
pub(super) const POINTERS: &str = "pointers may point to variables of functions alone: use ptr<function, …>";

/// How deep functions may call each other.
const MAX_CALLS: usize = 200;

/// Reads the tokens of a text.
pub(super) fn scan(tokens: &[Token], role: Role) -> Result<Found, Refusal> {
    let items = Items::read(tokens)?;
    let mut types = Types::read(&items)?;
    // The functions that each function names.
    let mut calls = Vec::with_capacity(items.functions.len());
    for function in &items.functions {
        calls.push(Names::new(&items).of_function(function)?);
        types.check_variables(function)?;
    }
    Names::new(&items).of_globals()?;
    check_sizes(&items, &calls)?;
    expect_function(&items, &types, role.function(), role)?;
    let has_gradient = role == Role::Score && items.function(GRADIENT).is_some();
    if has_gradient {
        expect_function(&items, &types, GRADIENT, role)?;
    }
    let has = |words: &[&str]| tokens.iter().any(|token| words.contains(&token.text));
    Ok(Found { reads_aux: has(&["aux"]), has_gradient, has_loops: has(&["loop", "while", "for"]) })
}

/// Refuses functions that call themselves, and those that are too large with all that they call.
fn check_sizes(items: &Items, calls: &[Vec<usize>]) -> Result<(), Refusal> {
    let mut sizes = vec![Size::Unknown; items.functions.len()];
    (0..items.functions.len()).try_for_each(|function| size_of(function, items, calls, &mut sizes, 0).map(|_| ()))
}

#[derive(Clone, Copy)]
enum Size {
    Unknown,
    /// Its callees are being counted.
    Open,
    Known(u64),
}

fn size_of(
    function: usize,
    items: &Items,
    calls: &[Vec<usize>],
    sizes: &mut [Size],
    depth: usize,
) -> Result<u64, Refusal> {
    let found = &items.functions[function];
    let name = items.tokens[found.name];
    if let Size::Known(size) = sizes[function] {
        return Ok(size);
    }
    if depth > MAX_CALLS {
        return Err((name.at, format!("functions call each other deeper than {MAX_CALLS}; join some of them")));
    }
    sizes[function] = Size::Open;
    let mut size = OF_A_TOKEN * found.tokens().len() as u64;
    for callee in &calls[function] {
        if matches!(sizes[*callee], Size::Open) {
            let how = if *callee == function { "recursive" } else { "cyclic" };
            return Err((name.at, format!("declaration of `{}` is {how}", name.text)));
        }
        size = size.saturating_add(size_of(*callee, items, calls, sizes, depth + 1)?);
    }
    sizes[function] = Size::Known(size);
    match size {
        size if size > MAX_SIZE => Err((items.tokens[found.keyword].at, too_many_operations(size))),
        size => Ok(size),
    }
}

/// Refuses a text without this function, or with another signature.
fn expect_function(items: &Items, types: &Types, name: &str, role: Role) -> Result<(), Refusal> {
    let written = written(name, role);
    let Some(function) = items.function(name) else {
        return Err((0, format!("there is no {name}; write {written} {{ … }}")));
    };
    let wanted = tokens(written)?;
    let colons = |tokens: &[Token]| tokens.iter().filter(|token| token.text == ":").count();
    let found = &items.tokens[function.name + 1..function.open];
    let mut fits = colons(found) == colons(&wanted[3..]) && types.result_of(function) == wanted[wanted.len() - 1].text;
    let parameters = wanted.windows(2).filter(|pair| pair[0].text == ":").map(|pair| pair[1].text);
    for (found, wanted) in function.parameters(items.tokens).zip(parameters) {
        fits &= types.named(found + 2) == wanted;
    }
    if fits { Ok(()) } else { Err((items.tokens[function.keyword].at, format!("this must be {written}"))) }
}

impl Function {
    /// The places of its parameters' names.
    fn parameters<'a>(&self, tokens: &'a [Token<'a>]) -> impl Iterator<Item = usize> + use<'a> {
        let places = self.name + 1..self.parameters_end;
        places.filter(|place| tokens[*place].kind == Kind::Word && tokens[place + 1].text == ":")
    }
}
