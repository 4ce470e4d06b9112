//! What the compiler finds wrong in a text, in plain words, at the place in the text.

use super::AuxType;
use super::tokens::{Refusal, tokens};
use wgpu::naga::front::Typifier;
use wgpu::naga::front::wgsl::{ParseError, parse_str};
use wgpu::naga::proc::{ResolveContext, ResolveError};
use wgpu::naga::valid::{CallError, ComposeError, ExpressionError, FunctionError, ValidationError};
use wgpu::naga::{
    BinaryOperator, Block, Expression, Function, Handle, Module, Scalar, ScalarKind, Span, Statement, Type, TypeInner,
    UnaryOperator, VectorSize, WithSpan,
};

/// What the compiler's parser refuses in `source`: the caller's text and a declaration of `aux`.
pub(super) fn of_parser(source: &str, error: &ParseError) -> Refusal {
    let label = error.labels().next();
    let start = label.as_ref().and_then(|(span, _)| span.to_range()).map(|range| range.start);
    let is_too_large = error.message().starts_with("type is too large");
    let found = || if is_too_large { source.find("array") } else { place_of(source, error.message()) };
    let at = start.or_else(found).unwrap_or(0);
    if is_too_large {
        return (at, super::gate::too_large());
    }
    if let Some(message) = plain(error.message(), error.notes(), &source[at.min(source.len())..], &source[..at]) {
        return (at, message);
    }
    let is_news = |text: &&str| !text.is_empty() && *text != "see msg" && !error.message().contains(text);
    let detail = label.map(|(_, text)| text).filter(is_news);
    // Directives are refused, so advice on extensions is of no use.
    let more = detail.into_iter().chain(error.notes()).filter(|more| !more.contains("xtension"));
    (at, more.fold(error.message().to_owned(), |message, more| format!("{message}; {more}")))
}

/// Plain words for a message of the parser that needs them. `there` is the text from the place on, `before` what comes first.
fn plain<'a>(message: &str, notes: impl Iterator<Item = &'a str>, there: &str, before: &str) -> Option<String> {
    let quoted = |n: usize| message.split('`').nth(n).unwrap_or_default();
    let number = || message.split(|c: char| !c.is_ascii_digit()).find(|part| !part.is_empty()).unwrap_or_default();
    let begins = |beginning: &str| message.starts_with(beginning);
    Some(if begins("wrong type passed as argument") {
        let (argument, function) = (number(), quoted(1));
        let allowed = allowed(notes);
        let advice = if allowed.starts_with("f32 or") { "; convert it, as f32(x)" } else { "" };
        format!("argument {argument} of {function} must be {allowed}{advice}")
    } else if begins("inconsistent type passed as argument") {
        let (argument, function) = (number(), quoted(1));
        format!(
            "argument {argument} of {function} must have the type of argument 1, {}; convert it, as f32(x)",
            allowed(notes)
        )
    } else if begins("Abstract types may only appear") {
        "this number meets a value of another type; write it in that type, as 1u, 1i or 1.0, or convert the value, as f32(x)"
            .into()
    } else if begins("failed to convert expression to a concrete type") {
        "the parts of this expression have different types; give all one type, as f32(x)".into()
    } else if begins("automatic conversions cannot convert elements of") {
        format!("this is {}, and {} is needed here; convert it, as {1}(x)", quoted(1), quoted(3))
    } else if begins("the type of `") {
        format!("{} is declared as {}, and its value is {}; convert it, as {1}(x)", quoted(1), quoted(3), quoted(5))
    } else if begins("the concrete type") {
        format!("{} cannot hold the number {}", quoted(1), quoted(3))
    } else if message.ends_with("operation overflowed") {
        "the value of this is too large for its type; the compiler computes what is constant".into()
    } else if begins("RHS of shift operation") {
        "a number of 32 bits can be shifted by 0 to 31".into()
    } else if begins("this operation is not supported in a const context") {
        "this must be a constant: numbers, other constants, and WGSL's own functions of them".into()
    } else if begins("unexpected components") {
        "there are too many values for this type".into()
    } else if begins("type mismatch for reject and accept values") {
        "the first two arguments of select must have one type: select(if_false, if_true, condition)".into()
    } else if begins("invalid field accessor") {
        format!("there is no {} in this value; vectors have x, y, z and w, structs their members", quoted(1))
    } else if begins("increment/decrement operation requires") {
        "++ and -- work on a var of i32 or u32 alone".into()
    } else if begins("expected assignment or increment/decrement") {
        "this is no statement; variables are declared as let x = … or var x = …".into()
    } else if begins("expected") && there.starts_with('?') {
        "WGSL has no ? and :; use select(if_false, if_true, condition)".into()
    } else if begins("the operand of the `*` operator") && before.ends_with('*') {
        "WGSL has no **; use pow(x, y)".into()
    } else if begins("Index") && message.contains("out of bounds") {
        format!("index {} is past the end; the first entry has index 0", number())
    } else if begins("Invalid access") || begins("Invalid sub-access") {
        "this value has no entries; arrays, vectors and matrices do, and an entry of aux is one number".into()
    } else if begins("Incompatible operands: Logical") {
        "&& and || need bool on both sides; compare numbers, as x != 0u".into()
    } else if begins("Incompatible operands") {
        "both sides of this operator must have one type; convert one of them, as f32(x)".into()
    } else {
        return None;
    })
}

/// The types that a function takes, of those that a text can have.
fn allowed<'a>(notes: impl Iterator<Item = &'a str>) -> String {
    let types: Vec<&str> = notes.filter_map(|note| note.strip_prefix("allowed type: ")).collect();
    let scalars = |beginning: &str, end: &str| {
        let is_allowed = |scalar: &&&str| types.contains(&&*format!("{beginning}{scalar}{end}"));
        ["f32", "i32", "u32", "bool"].iter().filter(is_allowed).copied().collect::<Vec<_>>().join(", ")
    };
    match (scalars("", ""), scalars("vec2<", ">")) {
        (plain, vectors) if plain.is_empty() && vectors.is_empty() => types.join(", "),
        (plain, vectors) if vectors.is_empty() => plain,
        (plain, vectors) if plain.is_empty() => format!("a vector of {vectors}"),
        (plain, _) if plain.contains(',') => format!("{plain} or a vector of one of them"),
        (plain, _) => format!("{plain} or a vector of it"),
    }
}

/// Where a fault is that the parser gives no place for: the first statement without which it is not found.
fn place_of(source: &str, message: &str) -> Option<usize> {
    let kind = |message: &str| message.chars().filter(|c| !c.is_ascii_digit()).collect::<String>();
    let fails = |text: &str| parse_str(text).is_err_and(|error| kind(error.message()) == kind(message));
    let found = tokens(source.get(..source.rfind("\n@")?)?).ok()?;
    // Where each function's body begins and ends.
    let (mut bodies, mut depth, mut open, mut is_function) = (Vec::new(), 0usize, 0, false);
    for token in &found {
        match token.text {
            "fn" if depth == 0 => is_function = true,
            "{" => {
                depth += 1;
                open = if depth == 1 { token.at } else { open };
            }
            "}" => {
                depth = depth.saturating_sub(1);
                if depth == 0 && std::mem::take(&mut is_function) {
                    bodies.push((open, token.at));
                }
            }
            _ => {}
        }
    }
    let blank = |text: &str| text.chars().map(|c| if c == '\n' { '\n' } else { ' ' }).collect::<String>();
    // The source with a body that ends early, and all others empty.
    let cut = |body: usize, end: usize| {
        let (mut text, mut at) = (String::new(), 0);
        for (number, (open, close)) in bodies.iter().enumerate() {
            let kept = if number == body { end } else { open + 1 };
            let levels =
                found.iter().filter(|token| (open + 1..kept).contains(&token.at)).fold(0usize, |depth, token| {
                    match token.text {
                        "{" => depth + 1,
                        "}" => depth.saturating_sub(1),
                        _ => depth,
                    }
                });
            text += &source[at..kept];
            text += &"}".repeat(levels);
            text += &blank(&source[kept..*close]);
            at = *close;
        }
        text + &source[at..]
    };
    let body = (0..bodies.len()).find(|body| fails(&cut(*body, bodies[*body].1)))?;
    let (open, close) = bodies[body];
    let inside = || found.iter().filter(|token| (open + 1..close).contains(&token.at));
    let ends: Vec<usize> =
        inside().filter(|token| matches!(token.text, ";" | "{" | "}")).map(|token| token.at + 1).collect();
    let last = ends.partition_point(|end| !fails(&cut(body, *end)));
    let begin = if last == 0 { open + 1 } else { ends[last - 1] };
    let mut places = inside().filter(|token| token.at >= begin).peekable();
    let first = places.peek()?.at;
    // An index is found in its brackets.
    let digits: String = message.chars().skip_while(|c| !c.is_ascii_digit()).take_while(char::is_ascii_digit).collect();
    let index = places
        .collect::<Vec<_>>()
        .windows(2)
        .find(|pair| {
            message.starts_with("Index") && pair[0].text == "[" && pair[1].text.trim_end_matches(['u', 'i']) == digits
        })
        .map(|pair| pair[1].at);
    Some(index.unwrap_or(first))
}

/// What validation refuses in a module of `source`.
pub(super) fn of_validator(source: &str, module: &Module, aux: AuxType, error: &WithSpan<ValidationError>) -> Refusal {
    let function = match error.as_inner() {
        ValidationError::Function { handle, source: fault, .. } => Some((&module.functions[*handle], fault)),
        _ => None,
    };
    // Parameters have the place of their declaration, which is not where they are used.
    let is_used =
        |range: &std::ops::Range<usize>| !function.is_some_and(|(function, _)| declares(function, range.start));
    let places = error.spans().filter_map(|(span, _)| span.to_range()).filter(is_used);
    let narrowest = places.min_by_key(ExactSizeIterator::len).map_or(0, |range| range.start);
    let statement =
        function.filter(|(function, fault)| value_of(fault).is_some_and(|value| is_parameter(function, value)));
    let statement = statement.and_then(|(function, fault)| statement_of(&function.body, value_of(fault)?));
    let at = statement.and_then(Span::to_range).map_or(narrowest, |range| range.start);
    let words = function.and_then(|(function, fault)| Words { source, module, function, aux, at }.of_function(fault));
    let message = words.unwrap_or_else(|| {
        // The deepest cause.
        let mut cause: &dyn std::error::Error = error.as_inner();
        while let Some(deeper) = cause.source() {
            cause = deeper;
        }
        let cause = cause.to_string();
        plain(&cause, std::iter::empty(), "", "").unwrap_or(cause)
    });
    (at, message)
}

/// The value that a statement cannot take.
fn value_of(fault: &FunctionError) -> Option<Handle<Expression>> {
    match fault {
        FunctionError::InvalidReturnType { expression, .. } => *expression,
        FunctionError::InvalidIfType(value) | FunctionError::InvalidSwitchType(value) => Some(*value),
        _ => None,
    }
}

/// The place of the statement that takes a value.
fn statement_of(block: &Block, value: Handle<Expression>) -> Option<Span> {
    block.span_iter().find_map(|(statement, span)| match statement {
        Statement::Return { value: Some(found) } if *found == value => Some(*span),
        Statement::If { condition: found, .. } | Statement::Switch { selector: found, .. } if *found == value => {
            Some(*span)
        }
        Statement::Block(block) => statement_of(block, value),
        Statement::If { accept, reject, .. } => statement_of(accept, value).or_else(|| statement_of(reject, value)),
        Statement::Switch { cases, .. } => cases.iter().find_map(|case| statement_of(&case.body, value)),
        Statement::Loop { body, continuing, .. } => {
            statement_of(body, value).or_else(|| statement_of(continuing, value))
        }
        _ => None,
    })
}

fn is_parameter(function: &Function, value: Handle<Expression>) -> bool {
    matches!(function.expressions[value], Expression::FunctionArgument(_))
}

/// Whether a parameter of this function is declared there.
fn declares(function: &Function, at: usize) -> bool {
    let starts = |span: Span| span.to_range().is_some_and(|range| range.start == at);
    let mut values = function.expressions.iter().map(|(value, _)| value);
    values.any(|value| is_parameter(function, value) && starts(function.expressions.get_span(value)))
}

/// Says what is wrong in a function.
struct Words<'a> {
    source: &'a str,
    module: &'a Module,
    function: &'a Function,
    aux: AuxType,
    /// The place.
    at: usize,
}

impl Words<'_> {
    fn of_function(&self, fault: &FunctionError) -> Option<String> {
        Some(match fault {
            FunctionError::InvalidReturnType { expression: None, expected_ty: Some(ty) } => {
                let wanted = self.name_of(&self.module.types[*ty].inner);
                match self.source[self.at..].starts_with("return") {
                    true => format!("this function declares -> {wanted}: return a value"),
                    false => format!(
                        "this function can end without a value; it declares -> {wanted}, so each way through it must end \
                         with return, the last line too"
                    ),
                }
            }
            FunctionError::InvalidReturnType { expression: Some(_), expected_ty: None } => {
                "this function returns a value and declares none; write -> and the type before its {".into()
            }
            FunctionError::InvalidReturnType { expression: Some(value), expected_ty: Some(ty) } => {
                let (found, wanted) = (self.type_of(*value), self.name_of(&self.module.types[*ty].inner));
                format!(
                    "this is {found}, and the function declares -> {wanted}{}{}",
                    conversion(&found, &wanted),
                    self.of_aux(*value)
                )
            }
            FunctionError::InvalidIfType(value) => {
                let found = self.type_of(*value);
                format!("this condition is {found}; a condition is bool, such as x != 0{}", self.of_aux(*value))
            }
            FunctionError::InvalidSwitchType(_) => "switch takes a value of i32 or u32".into(),
            FunctionError::ConflictingSwitchCase(_) => "this case is there twice".into(),
            FunctionError::MissingDefaultCase => "this switch has no default; add default: { }".into(),
            FunctionError::InvalidStorePointer(_) => {
                "this cannot be written to; only variables of functions can (var), aux is only read".into()
            }
            FunctionError::InvalidStoreTypes { value, .. } => {
                format!("this variable cannot hold {}; convert the value{}", self.type_of(*value), self.of_aux(*value))
            }
            FunctionError::LocalVariable { name, .. } => {
                format!("{name} cannot be a variable of this type: arrays need a length, and the value the same type")
            }
            FunctionError::InvalidArgumentType { name, .. } => {
                format!(
                    "{name} cannot be a parameter of this type; arrays without a length cannot be passed, aux can be read anywhere"
                )
            }
            FunctionError::InvalidCall { function, error } => {
                let called = self.module.functions[*function].name.as_deref().unwrap_or_default();
                match error {
                    CallError::ArgumentCount { required, seen } => {
                        format!("{called} takes {required} arguments, and {seen} are given")
                    }
                    CallError::ArgumentType { index, required, seen_expression } => {
                        let wanted = self.name_of(&self.module.types[*required].inner);
                        let found = self.type_of(*seen_expression);
                        let (number, aux) = (index + 1, self.of_aux(*seen_expression));
                        format!(
                            "argument {number} of {called} is {found}, and must be {wanted}{}{aux}",
                            conversion(&found, &wanted)
                        )
                    }
                    _ => return None,
                }
            }
            FunctionError::Expression { handle, source } => return self.of_expression(*handle, source),
            _ => return None,
        })
    }

    fn of_expression(&self, handle: Handle<Expression>, fault: &ExpressionError) -> Option<String> {
        Some(match fault {
            ExpressionError::InvalidIndexType(index) => {
                let of_aux = match &self.function.expressions[handle] {
                    Expression::Access { base, .. } if self.is_aux(*base) => " of aux",
                    _ => "",
                };
                format!(
                    "this index{of_aux} is {}; an index is one i32 or u32: convert it, as u32(x)",
                    self.type_of(*index)
                )
            }
            ExpressionError::NegativeIndex(_) => "this index is negative; the first entry has index 0".into(),
            ExpressionError::IndexOutOfBounds(_, index) => {
                format!("index {index} is past the end; the first entry has index 0")
            }
            ExpressionError::InvalidBaseType(_) => "this value has no entries; arrays, vectors and matrices do".into(),
            ExpressionError::InvalidUnaryOperandType(operator, value) => {
                let (sign, advice) = match operator {
                    UnaryOperator::Negate => ("-", "convert it to i32 or f32 first"),
                    UnaryOperator::LogicalNot => ("!", "it is for bool: compare, as x == 0u"),
                    UnaryOperator::BitwiseNot => ("~", "it is for i32 and u32"),
                };
                format!("{sign} does not work on {}; {advice}{}", self.type_of(*value), self.of_aux(*value))
            }
            ExpressionError::InvalidBinaryOperandTypes { op, lhs_expr, lhs_type, rhs_expr, rhs_type } => {
                let (left, right) = (self.name_of(lhs_type), self.name_of(rhs_type));
                let aux = Some(self.of_aux(*lhs_expr)).filter(|aux| !aux.is_empty());
                let aux = aux.unwrap_or_else(|| self.of_aux(*rhs_expr));
                let sign = sign(*op);
                if left == right {
                    format!("{sign} does not work on {left}{aux}")
                } else if matches!(op, BinaryOperator::And | BinaryOperator::InclusiveOr | BinaryOperator::ExclusiveOr)
                {
                    format!("{sign} is between {left} and {right}; it is for two i32, two u32 or two bool{aux}")
                } else {
                    format!(
                        "{sign} is between {left} and {right}; both sides must have one type: convert one, as {left}(x){aux}"
                    )
                }
            }
            ExpressionError::SelectConditionNotABool { actual } => {
                format!(
                    "the last argument of select is {}, and must be bool: select(if_false, if_true, condition)",
                    self.name_of(actual)
                )
            }
            ExpressionError::SelectValuesTypeMismatch { .. } => {
                "the first two arguments of select must have one type: select(if_false, if_true, condition)".into()
            }
            ExpressionError::Compose(ComposeError::ComponentCount { given, expected }) => {
                format!("this type takes {expected} values, and {given} are given")
            }
            ExpressionError::Compose(ComposeError::ComponentType { index }) => {
                format!("value {} has another type than is needed here; convert it, as f32(x)", index + 1)
            }
            ExpressionError::DivideByZero => "Division by zero".into(),
            ExpressionError::ShiftAmountTooLarge { .. } => "a number of 32 bits can be shifted by 0 to 31".into(),
            ExpressionError::Type(ResolveError::OutOfBoundsIndex { index, .. }) => {
                format!("index {index} is past the end; the first entry has index 0")
            }
            _ => return None,
        })
    }

    /// What to know of a value that was read from `aux`.
    fn of_aux(&self, value: Handle<Expression>) -> String {
        let base = match &self.function.expressions[value] {
            Expression::Load { pointer } => match &self.function.expressions[*pointer] {
                Expression::Access { base, .. } | Expression::AccessIndex { base, .. } => Some(*base),
                _ => None,
            },
            _ => None,
        };
        match base.is_some_and(|base| self.is_aux(base)) {
            true => {
                format!("; aux is read as {}, which WgslOptions::with_aux or the tensor's type says", self.aux.name())
            }
            false => String::new(),
        }
    }

    fn is_aux(&self, value: Handle<Expression>) -> bool {
        matches!(self.function.expressions[value], Expression::GlobalVariable(_))
    }

    fn type_of(&self, value: Handle<Expression>) -> String {
        let context =
            ResolveContext::with_locals(self.module, &self.function.local_variables, &self.function.arguments);
        let mut typifier = Typifier::new();
        match typifier.grow(value, &self.function.expressions, &context) {
            Ok(()) => self.name_of(typifier.get(value, &self.module.types)),
            Err(_) => "of another type".to_owned(),
        }
    }

    /// A type, as it is written.
    fn name_of(&self, inner: &TypeInner) -> String {
        let of = |handle: Handle<Type>| {
            let ty = &self.module.types[handle];
            ty.name.clone().unwrap_or_else(|| self.name_of(&ty.inner))
        };
        let side = |size: VectorSize| size as u8;
        match inner {
            TypeInner::Scalar(scalar) => scalar_name(*scalar).to_owned(),
            TypeInner::Vector { size, scalar } => format!("vec{}<{}>", side(*size), scalar_name(*scalar)),
            TypeInner::Matrix { columns, rows, scalar } => {
                format!("mat{}x{}<{}>", side(*columns), side(*rows), scalar_name(*scalar))
            }
            TypeInner::Pointer { base, .. } => format!("a pointer to {}", of(*base)),
            TypeInner::Array { base, .. } => format!("an array of {}", of(*base)),
            TypeInner::Struct { .. } => {
                let mut types = self.module.types.iter().map(|(_, ty)| ty);
                types.find(|ty| ty.inner == *inner).and_then(|ty| ty.name.clone()).unwrap_or_else(|| "a struct".into())
            }
            _ => "of another type".to_owned(),
        }
    }
}

/// An advice, where a conversion is one.
fn conversion(found: &str, wanted: &str) -> String {
    match (found, wanted) {
        ("f32" | "i32" | "u32" | "bool", "f32" | "i32" | "u32") => format!("; convert it, as {wanted}(x)"),
        ("f32" | "i32" | "u32", "bool") => "; compare it, as x != 0".to_owned(),
        _ => String::new(),
    }
}

fn scalar_name(scalar: Scalar) -> &'static str {
    match scalar.kind {
        ScalarKind::Float => "f32",
        ScalarKind::Sint => "i32",
        ScalarKind::Uint => "u32",
        ScalarKind::Bool => "bool",
        ScalarKind::AbstractInt | ScalarKind::AbstractFloat => "a plain number",
    }
}

fn sign(operator: BinaryOperator) -> &'static str {
    match operator {
        BinaryOperator::Add => "+",
        BinaryOperator::Subtract => "-",
        BinaryOperator::Multiply => "*",
        BinaryOperator::Divide => "/",
        BinaryOperator::Modulo => "%",
        BinaryOperator::Equal => "==",
        BinaryOperator::NotEqual => "!=",
        BinaryOperator::Less => "<",
        BinaryOperator::LessEqual => "<=",
        BinaryOperator::Greater => ">",
        BinaryOperator::GreaterEqual => ">=",
        BinaryOperator::And => "&",
        BinaryOperator::ExclusiveOr => "^",
        BinaryOperator::InclusiveOr => "|",
        BinaryOperator::LogicalAnd => "&&",
        BinaryOperator::LogicalOr => "||",
        BinaryOperator::ShiftLeft => "<<",
        BinaryOperator::ShiftRight => ">>",
    }
}
