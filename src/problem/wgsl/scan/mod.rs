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
use super::gate::{Found, GRADIENT, Size, written};
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
    let mut sizes = vec![Count::Unknown; items.functions.len()];
    (0..items.functions.len()).try_for_each(|function| size_of(function, items, calls, &mut sizes, 0).map(|_| ()))
}

#[derive(Clone, Copy)]
enum Count {
    Unknown,
    /// Its callees are being counted.
    Open,
    Known(Size),
}

fn size_of(
    function: usize,
    items: &Items,
    calls: &[Vec<usize>],
    sizes: &mut [Count],
    depth: usize,
) -> Result<Size, Refusal> {
    let found = &items.functions[function];
    let name = items.tokens[found.name];
    if let Count::Known(size) = sizes[function] {
        return Ok(size);
    }
    if depth > MAX_CALLS {
        return Err((name.at, format!("functions call each other deeper than {MAX_CALLS}; join some of them")));
    }
    sizes[function] = Count::Open;
    let operations = OF_A_TOKEN * found.tokens().len() as u64;
    let mut size = Size { operations, branches: branches(&items.tokens[found.tokens()]) };
    for callee in &calls[function] {
        if matches!(sizes[*callee], Count::Open) {
            let how = if *callee == function { "recursive" } else { "cyclic" };
            return Err((name.at, format!("declaration of `{}` is {how}", name.text)));
        }
        size.add(size_of(*callee, items, calls, sizes, depth + 1)?);
    }
    sizes[function] = Count::Known(size);
    match size.fault() {
        Some(reason) => Err((items.tokens[found.keyword].at, reason)),
        None => Ok(size),
    }
}

/// Whether the statement at the start is the last of a function that ends behind the tokens.
fn ends_function(tokens: &[Token]) -> bool {
    matches!(tokens, [.., semicolon, close] if semicolon.text == ";" && close.text == "}")
        && tokens.iter().filter(|token| token.text == ";").count() == 1
}

/// The branches that a compiler makes of these tokens, or a few more.
fn branches(tokens: &[Token]) -> u64 {
    let mut in_case = false;
    let mut count = 0;
    for (place, token) in tokens.iter().enumerate() {
        count += match token.text {
            "if" => 1,
            "return" => u64::from(!ends_function(&tokens[place..])),
            "case" | "default" | "loop" => 2,
            "while" | "for" => 3,
            "," if in_case => 2,
            // Each `&&` and `||` is a branch, and two tokens.
            "&" | "|" if place > 0 && tokens[place - 1].text == token.text => 1,
            _ => 0,
        };
        in_case = token.text == "case" || in_case && !matches!(token.text, ":" | "{");
    }
    count
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
