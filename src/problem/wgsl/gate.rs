//! What a text may do: the compiler's view of it, alone.

use super::tokens::{Refusal, Token};
use super::{AuxType, Role};

/// What a text holds.
pub(super) struct Found {
    pub reads_aux: bool,
    pub has_gradient: bool,
    pub has_loops: bool,
}

/// Expressions and statements of a call, with those of the functions that it calls. Drivers put called functions in place, so a
/// text of functions that call each other twice grows without limit.
pub(super) const MAX_SIZE: u64 = 1 << 14;

/// Branches of a call, with those of the functions that it calls: an `if` and a `return` before the end count 1, a `case` 2, a
/// loop 2. Drivers put the text where each score is, and some take a time that grows with the square of its branches. Mesa's software driver, without
/// its optimiser, took for the kernel of a decoding problem 0.3 s without branches, 7 s with 128 cases that return, 32 s with 300,
/// 16 s with 300 `if` that return, 3.6 s with 300 that do not. 2,000 lines of arithmetic took 9 s.
pub(super) const MAX_BRANCHES: u64 = 384;

/// Bytes of a variable or constant, and of all variables of a function.
pub(super) const MAX_VARIABLE_BYTES: u64 = 1 << 14;

pub(super) const GRADIENT: &str = "score_mod_grad";

/// A function that a text must or may define, as it is written.
pub(super) fn written(function: &str, role: Role) -> &'static str {
    match role {
        Role::Score if function == GRADIENT => {
            "fn score_mod_grad(grad: f32, score: f32, batch: u32, head: u32, q_idx: u32, kv_idx: u32) -> f32"
        }
        Role::Score => "fn score_mod(score: f32, batch: u32, head: u32, q_idx: u32, kv_idx: u32) -> f32",
        Role::Mask => "fn mask_mod(batch: u32, head: u32, q_idx: u32, kv_idx: u32) -> bool",
    }
}

pub(super) fn too_large() -> String {
    format!("this type is too large; at most {MAX_VARIABLE_BYTES} bytes are allowed; put data in aux")
}

pub(super) fn too_many_bytes(bytes: u64) -> String {
    format!("the variables of this function take {bytes} bytes, at most {MAX_VARIABLE_BYTES} are allowed")
}

pub(super) fn too_many_operations(size: u64) -> String {
    format!(
        "with all functions that it calls, this function has {size} operations, at most {MAX_SIZE} are allowed; use a \
         loop, or data in aux"
    )
}

pub(super) fn too_many_branches(branches: u64) -> String {
    format!(
        "with all functions that it calls, this function counts {branches} branches (an if and a return 1, a case and a loop \
         2), at most {MAX_BRANCHES} are allowed; put the table into aux, and read it by an index"
    )
}

/// How much a function holds, with those that it calls.
#[derive(Clone, Copy, Default)]
pub(super) struct Size {
    /// Expressions and statements.
    pub operations: u64,
    pub branches: u64,
}

impl Size {
    pub fn add(&mut self, other: Size) {
        self.operations = self.operations.saturating_add(other.operations);
        self.branches = self.branches.saturating_add(other.branches);
    }

    /// Why it is too large, if it is.
    pub fn fault(self) -> Option<String> {
        if self.operations > MAX_SIZE {
            return Some(too_many_operations(self.operations));
        }
        (self.branches > MAX_BRANCHES).then(|| too_many_branches(self.branches))
    }
}

/// A browser's module has no compiler of its own. The browser compiles the text later, and says what else is wrong.
#[cfg(target_arch = "wasm32")]
pub(super) fn check(_: &str, tokens: &[Token], role: Role, _: AuxType) -> Result<Found, Refusal> {
    super::scan::scan(tokens, role)
}

#[cfg(target_arch = "wasm32")]
pub(super) fn check_rewritten(_: &str, _: Role, _: AuxType) -> Result<bool, String> {
    Ok(true)
}

#[cfg(not(target_arch = "wasm32"))]
pub(super) use native::{check, check_rewritten};

#[cfg(not(target_arch = "wasm32"))]
mod native {
    use super::{
        AuxType, Found, GRADIENT, MAX_VARIABLE_BYTES, Refusal, Role, Size, Token, too_large, too_many_bytes, written,
    };
    use crate::problem::wgsl::explain;
    use std::collections::HashMap;
    use wgpu::naga::front::wgsl::parse_str;
    use wgpu::naga::valid::{Capabilities, ValidationFlags, Validator};
    use wgpu::naga::{
        AddressSpace, Block, Expression, Function, GlobalVariable, Handle, Module, Scalar, ScalarKind, Span, Statement,
        Type, TypeInner,
    };

    /// Parses and validates the text behind a declaration of `aux`, and reads what it does.
    pub(in super::super) fn check(text: &str, _: &[Token], role: Role, aux: AuxType) -> Result<Found, Refusal> {
        // The declaration is last, so that lines are the caller's.
        let harness = format!("@group(0) @binding(0) var<storage, read> aux: array<{}>;\n", aux.name());
        let source = format!("{text}\n{harness}");
        let module = parse(&source)?;
        let reader = Reader { module: &module, globals: &["aux"], is_rewritten: false };
        let mut found = reader.read()?;
        validate(&source, &module, aux)?;
        let (parameters, result): (&[Scalar], Scalar) = match role {
            Role::Score => (&[F32, U32, U32, U32, U32], F32),
            Role::Mask => (&[U32, U32, U32, U32], BOOL),
        };
        reader.expect_function(role.function(), role, parameters, result)?;
        found.has_gradient = role == Role::Score && reader.function(GRADIENT).is_some();
        if found.has_gradient {
            reader.expect_function(GRADIENT, role, &[F32, F32, U32, U32, U32, U32], F32)?;
        }
        Ok(found)
    }

    /// Whether what was rewritten is still such a text, and names nothing but what is its own. This holds of all texts that
    /// passed `check`, unless the two disagree on what a token is. Whether it has indices that only run time tells: with
    /// `aux` behind a function, they are those of variables.
    pub(in super::super) fn check_rewritten(text: &str, role: Role, aux: AuxType) -> Result<bool, String> {
        let of_aux = aux.name();
        let source = format!(
            "{text}
             var<private> wgsl_turns_left: u32 = 0u;
             var<private> wgsl_is_spent: bool = false;
             @group(0) @binding(0) var<storage, read> aux: array<{of_aux}>;
             fn wgsl_aux(index: u32) -> {of_aux} {{ return aux[index]; }}
            "
        );
        let failed = |(at, reason): Refusal| {
            let line = source[..at.min(source.len())].matches('\n').count() + 1;
            format!("the library fails to rewrite this text (line {line}: {reason}); please report it")
        };
        let module = parse(&source).map_err(failed)?;
        let globals = &["aux", "wgsl_turns_left", "wgsl_is_spent"];
        Reader { module: &module, globals, is_rewritten: true }.read().map_err(failed)?;
        validate(&source, &module, aux).map_err(failed)?;
        let is_own = |function: &&Function| function.name.as_deref() != Some("wgsl_aux");
        let functions = || module.functions.iter().map(|(_, function)| function).filter(is_own);
        let expressions = functions().flat_map(|function| function.expressions.iter());
        let has_indices = expressions.map(|(_, found)| found).any(|found| matches!(found, Expression::Access { .. }));
        let mut names = functions()
            .map(|function| &function.name)
            .chain(module.constants.iter().map(|(_, constant)| &constant.name))
            .flatten();
        match names.find(|name| !name.starts_with(role.prefix())) {
            Some(name) => Err(failed((0, format!("{name} kept its name")))),
            None => Ok(has_indices),
        }
    }

    const F32: Scalar = Scalar::F32;
    const U32: Scalar = Scalar::U32;
    const BOOL: Scalar = Scalar { kind: ScalarKind::Bool, width: 1 };

    fn parse(source: &str) -> Result<Module, Refusal> {
        parse_str(source).map_err(|error| explain::of_parser(source, &error))
    }

    fn validate(source: &str, module: &Module, aux: AuxType) -> Result<(), Refusal> {
        // Without any capability: no f16, no f64, no subgroups.
        let mut validator = Validator::new(ValidationFlags::all(), Capabilities::empty());
        validator.validate(module).map(|_| ()).map_err(|error| explain::of_validator(source, module, aux, &error))
    }

    /// Reads a module.
    struct Reader<'a> {
        module: &'a Module,
        /// The variables that may be there beside those of functions.
        globals: &'static [&'static str],
        /// Whether it holds what the library adds, which counts in no size.
        is_rewritten: bool,
    }

    impl<'a> Reader<'a> {
        fn read(&self) -> Result<Found, Refusal> {
            let module = self.module;
            for (handle, variable) in module.global_variables.iter() {
                if !variable.name.as_deref().is_some_and(|name| self.globals.contains(&name)) {
                    let reason = "only variables of functions are allowed; use const, or data in aux";
                    return Err(refusal(module.global_variables.get_span(handle), reason));
                }
            }
            for (handle, of_type) in module.types.iter() {
                self.check_type(of_type).map_err(|reason| refusal(self.place_of(handle), reason))?;
            }
            if !module.entry_points.is_empty() || !module.overrides.is_empty() {
                return Err((0, "entry points and overrides are not allowed; write plain functions".into()));
            }
            let mut found = Found { reads_aux: false, has_gradient: false, has_loops: false };
            // Functions stand behind those that they call.
            let mut sizes = HashMap::new();
            for (handle, function) in module.functions.iter() {
                let span = module.functions.get_span(handle);
                self.check_variables(function).map_err(|reason| refusal(span, reason))?;
                found.reads_aux |= self.check_expressions(function)?;
                let mut size = Size { operations: function.expressions.len() as u64, branches: 0 };
                self.check_block(&function.body, &sizes, &mut size, &mut found.has_loops)?;
                // A return at the end is no branch.
                let ends = matches!(function.body.last(), Some(Statement::Return { value: Some(_) }));
                size.branches = size.branches.saturating_sub(u64::from(ends));
                if let Some(reason) = size.fault().filter(|_| !self.is_rewritten) {
                    return Err(refusal(span, reason));
                }
                sizes.insert(handle, size);
            }
            Ok(found)
        }

        fn check_type(&self, of_type: &Type) -> Result<(), String> {
            match of_type.inner {
                TypeInner::Pointer { space: AddressSpace::Function, .. }
                | TypeInner::Scalar(_)
                | TypeInner::Vector { .. }
                | TypeInner::Matrix { .. }
                | TypeInner::Array { .. }
                | TypeInner::Struct { .. } => {}
                TypeInner::Pointer { .. } | TypeInner::ValuePointer { .. } => {
                    return Err(super::super::scan::POINTERS.into());
                }
                _ => return Err("this type is not allowed; numbers, vectors, matrices, arrays and structs are".into()),
            }
            match of_type.inner.try_size(self.module.to_ctx()).map(u64::from) {
                Some(bytes) if bytes <= MAX_VARIABLE_BYTES => Ok(()),
                _ => Err(too_large()),
            }
        }

        /// Where a type is first used, if its own place is not known.
        fn place_of(&self, wanted: Handle<Type>) -> Span {
            let variables = self.module.functions.iter().flat_map(|(_, function)| {
                let variables = function.local_variables.iter();
                let types =
                    variables.map(|(handle, variable)| (variable.ty, function.local_variables.get_span(handle)));
                types.chain(function.expressions.iter().filter_map(|(handle, expression)| match expression {
                    Expression::Compose { ty, .. } | Expression::ZeroValue(ty) => {
                        Some((*ty, function.expressions.get_span(handle)))
                    }
                    _ => None,
                }))
            });
            let constants = self.module.constants.iter();
            let constants = constants.map(|(handle, constant)| (constant.ty, self.module.constants.get_span(handle)));
            let own = self.module.types.get_span(wanted);
            let places = variables.chain(constants).filter(|(ty, _)| *ty == wanted).map(|(_, place)| place);
            [own].into_iter().chain(places).find(|place| place.is_defined()).unwrap_or(own)
        }

        fn check_variables(&self, function: &Function) -> Result<(), String> {
            let bytes = |ty: Handle<Type>| u64::from(self.module.types[ty].inner.size(self.module.to_ctx()));
            let all: u64 = function.local_variables.iter().map(|(_, variable)| bytes(variable.ty)).sum();
            if all <= MAX_VARIABLE_BYTES {
                return Ok(());
            }
            Err(too_many_bytes(all))
        }

        /// Whether the function reads `aux`.
        fn check_expressions(&self, function: &Function) -> Result<bool, Refusal> {
            let mut reads_aux = false;
            for (handle, expression) in function.expressions.iter() {
                match expression {
                    Expression::GlobalVariable(variable) => reads_aux |= self.is_aux(*variable),
                    Expression::Literal(_)
                    | Expression::Constant(_)
                    | Expression::ZeroValue(_)
                    | Expression::Compose { .. }
                    | Expression::Access { .. }
                    | Expression::AccessIndex { .. }
                    | Expression::Splat { .. }
                    | Expression::Swizzle { .. }
                    | Expression::FunctionArgument(_)
                    | Expression::LocalVariable(_)
                    | Expression::Load { .. }
                    | Expression::Unary { .. }
                    | Expression::Binary { .. }
                    | Expression::Select { .. }
                    | Expression::Relational { .. }
                    | Expression::Math { .. }
                    | Expression::As { .. }
                    | Expression::CallResult(_)
                    | Expression::ArrayLength(_) => {}
                    _ => {
                        let reason = "this operation is not allowed; plain arithmetic on numbers is";
                        return Err(refusal(function.expressions.get_span(handle), reason));
                    }
                }
            }
            Ok(reads_aux)
        }

        fn is_aux(&self, variable: Handle<GlobalVariable>) -> bool {
            self.module.global_variables[variable].name.as_deref() == Some("aux")
        }

        /// Adds the statements of a block, and the sizes of the functions that it calls.
        fn check_block(
            &self,
            block: &Block,
            sizes: &HashMap<Handle<Function>, Size>,
            size: &mut Size,
            has_loops: &mut bool,
        ) -> Result<(), Refusal> {
            for (statement, span) in block.span_iter() {
                let branches = match statement {
                    Statement::If { .. } | Statement::Return { value: Some(_) } => 1,
                    Statement::Switch { cases, .. } => 2 * cases.len() as u64,
                    Statement::Loop { .. } => 2,
                    _ => 0,
                };
                size.add(Size { operations: 1, branches });
                match statement {
                    Statement::Emit(_)
                    | Statement::Break
                    | Statement::Continue
                    | Statement::Return { .. }
                    | Statement::Store { .. } => {}
                    Statement::Call { function, .. } => {
                        let unknown = Size { operations: u64::MAX, branches: u64::MAX };
                        size.add(sizes.get(function).copied().unwrap_or(unknown));
                    }
                    Statement::Block(block) => self.check_block(block, sizes, size, has_loops)?,
                    Statement::If { accept, reject, .. } => {
                        self.check_block(accept, sizes, size, has_loops)?;
                        self.check_block(reject, sizes, size, has_loops)?;
                    }
                    Statement::Switch { cases, .. } => {
                        for case in cases {
                            self.check_block(&case.body, sizes, size, has_loops)?;
                        }
                    }
                    Statement::Loop { body, continuing, .. } => {
                        *has_loops = true;
                        self.check_block(body, sizes, size, has_loops)?;
                        self.check_block(continuing, sizes, size, has_loops)?;
                    }
                    _ => {
                        let reason = "this statement is not allowed: no barriers, no atomics, no subgroups, no discard";
                        return Err(refusal(*span, reason));
                    }
                }
            }
            Ok(())
        }

        fn function(&self, name: &str) -> Option<(Handle<Function>, &'a Function)> {
            self.module.functions.iter().find(|(_, function)| function.name.as_deref() == Some(name))
        }

        /// Refuses a text without this function, or with another signature.
        fn expect_function(
            &self,
            name: &str,
            role: Role,
            parameters: &[Scalar],
            result: Scalar,
        ) -> Result<(), Refusal> {
            let written = written(name, role);
            let Some((handle, function)) = self.function(name) else {
                return Err((0, format!("there is no {name}; write {written} {{ … }}")));
            };
            let is = |ty: Handle<Type>, scalar: Scalar| self.module.types[ty].inner == TypeInner::Scalar(scalar);
            let found = &function.arguments;
            let fits = found.len() == parameters.len()
                && found.iter().zip(parameters).all(|(argument, scalar)| is(argument.ty, *scalar))
                && function.result.as_ref().is_some_and(|found| is(found.ty, result));
            let reason = || format!("this must be {written}");
            if fits { Ok(()) } else { Err(refusal(self.module.functions.get_span(handle), reason())) }
        }
    }

    fn refusal(span: Span, reason: impl Into<String>) -> Refusal {
        (span.to_range().map_or(0, |range| range.start), reason.into())
    }
}
