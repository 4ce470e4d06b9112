//! Functions in the caller's own WGSL: `score_mod`, its gradient, and `mask_mod`.
//!
//! A text goes through three steps: `tokens` splits it and refuses what could harm the parser, `gate` compiles it alone and
//! refuses what an attention kernel must not do, `rewrite` gives its names a prefix and puts a limit in its loops. `gate` then
//! reads what was rewritten once more. So a [`ScoreWgsl`] or a [`MaskWgsl`] holds only text that is safe to compile. A browser's
//! module has no compiler: `scan` stands for `gate` there.

#[cfg(not(target_arch = "wasm32"))]
mod explain;
mod fault;
mod gate;
mod rewrite;
mod scan;
mod tokens;

pub use fault::WgslFault;

use std::sync::Arc;

/// What `aux` holds, the data that the caller's functions may read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum AuxType {
    /// `aux: array<f32>`
    #[default]
    F32,
    /// `aux: array<u32>`
    U32,
}

impl AuxType {
    /// The name of the type of an entry, in WGSL.
    pub const fn name(self) -> &'static str {
        match self {
            AuxType::F32 => "f32",
            AuxType::U32 => "u32",
        }
    }
}

/// How a text in WGSL is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[must_use]
#[non_exhaustive]
pub struct WgslOptions {
    /// What `aux` holds: f32 by default.
    pub aux: AuxType,
    /// The most turns that all loops of one call may take together: 4,096 by default. A call that wants more is ended.
    pub max_turns: u32,
}

impl WgslOptions {
    /// `aux` in f32, and 4,096 turns.
    pub const fn new() -> Self {
        Self { aux: AuxType::F32, max_turns: 4096 }
    }

    /// Reads `aux` as this type.
    pub const fn with_aux(mut self, aux: AuxType) -> Self {
        self.aux = aux;
        self
    }

    /// Lets the loops of one call take this many turns.
    pub const fn with_max_turns(mut self, max_turns: u32) -> Self {
        self.max_turns = max_turns;
        self
    }
}

impl Default for WgslOptions {
    fn default() -> Self {
        Self::new()
    }
}

/// A score modifier in the caller's own WGSL, checked. See [`ScoreMod::Wgsl`](crate::ScoreMod::Wgsl).
///
/// The text defines
///
/// ```wgsl
/// fn score_mod(score: f32, batch: u32, head: u32, q_idx: u32, kv_idx: u32) -> f32
/// ```
///
/// For gradients it also defines
///
/// ```wgsl
/// fn score_mod_grad(grad: f32, score: f32, batch: u32, head: u32, q_idx: u32, kv_idx: u32) -> f32
/// ```
///
/// which gives the gradient of the loss with respect to the score that came in. `grad` is the gradient with respect to the score
/// that went out, `score` the one that came in. A `grad` of 0 gives 0 without a call.
///
/// `head` is a query head. `q_idx` and `kv_idx` count rows and keys within the sequence; over a
/// [cache](crate::AttentionProblem::with_cache) `q_idx` is the row's position among the keys, the last row's that of the last
/// key. Functions, constants, structs and aliases beside these are welcome. `aux` is one array of data, f32 or u32; see
/// [`AttentionProblem::with_aux`](crate::AttentionProblem::with_aux). An index past its end reads its last entry.
///
/// Loops may take [`WgslOptions::max_turns`] turns a call. A call that wants more gives NaN.
///
/// ```
/// use wgpu_flash_attention::ScoreWgsl;
///
/// // Relative positions: aux holds 2 · 64 + 1 numbers.
/// let relative = ScoreWgsl::new(
///     "fn score_mod(score: f32, batch: u32, head: u32, q_idx: u32, kv_idx: u32) -> f32 {
///        return score + aux[clamp(i32(q_idx) - i32(kv_idx), -64, 64) + 64];
///      }",
/// )?;
/// assert!(relative.reads_aux() && !relative.has_gradient());
///
/// let fault = ScoreWgsl::new("fn score_mod(score: f32) -> f32 { return score; }").unwrap_err();
/// assert_eq!((fault.line(), fault.column()), (1, 1));
/// # Ok::<(), wgpu_flash_attention::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ScoreWgsl(pub(crate) Snippet);

impl ScoreWgsl {
    /// Checks a text, with the usual options.
    ///
    /// # Errors
    /// [`WgslFault`], with a line and a column of the text, and what to do. Everything is refused that a score modifier does not
    /// need: attributes, directives, global variables, overrides, barriers, atomics, operations of subgroups, textures.
    ///
    /// In a browser the text is judged by its tokens. That refuses a little more: the length of an array must be a number, or a
    /// constant that is a number. Mistakes of types are found when an operation is prepared: [`Error::Shader`](crate::Error::Shader)
    /// with `score_mod` as file, and a line of the text.
    pub fn new(text: &str) -> Result<Self, WgslFault> {
        Self::with_options(text, WgslOptions::new())
    }

    /// As [`ScoreWgsl::new`], with these options.
    ///
    /// # Errors
    /// As `new`.
    pub fn with_options(text: &str, options: WgslOptions) -> Result<Self, WgslFault> {
        Snippet::new(text, Role::Score, options).map(Self)
    }

    /// Whether it has `score_mod_grad`.
    pub fn has_gradient(&self) -> bool {
        self.0.has_gradient
    }

    /// Whether it reads `aux`.
    pub fn reads_aux(&self) -> bool {
        self.0.aux.is_some()
    }
}

/// A mask in the caller's own WGSL, checked. See [`KeyMask::Wgsl`](crate::KeyMask::Wgsl).
///
/// The text defines
///
/// ```wgsl
/// fn mask_mod(batch: u32, head: u32, q_idx: u32, kv_idx: u32) -> bool
/// ```
///
/// which is true where row `q_idx` may attend to key `kv_idx`. All else is as for [`ScoreWgsl`]. A call that wants more turns of
/// loops than it may take hides the key.
///
/// ```
/// use wgpu_flash_attention::MaskWgsl;
///
/// let prefix = MaskWgsl::new(
///     "fn mask_mod(batch: u32, head: u32, q_idx: u32, kv_idx: u32) -> bool { return kv_idx < 16 || kv_idx <= q_idx; }",
/// )?;
/// # Ok::<(), wgpu_flash_attention::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct MaskWgsl(pub(crate) Snippet);

impl MaskWgsl {
    /// Checks a text, with the usual options.
    ///
    /// # Errors
    /// As [`ScoreWgsl::new`].
    pub fn new(text: &str) -> Result<Self, WgslFault> {
        Self::with_options(text, WgslOptions::new())
    }

    /// As [`MaskWgsl::new`], with these options.
    ///
    /// # Errors
    /// As [`ScoreWgsl::new`].
    pub fn with_options(text: &str, options: WgslOptions) -> Result<Self, WgslFault> {
        Snippet::new(text, Role::Mask, options).map(Self)
    }

    /// Whether it reads `aux`.
    pub fn reads_aux(&self) -> bool {
        self.0.aux.is_some()
    }
}

/// What a text is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Role {
    Score,
    Mask,
}

impl Role {
    /// The function that the text must define.
    pub const fn function(self) -> &'static str {
        match self {
            Role::Score => "score_mod",
            Role::Mask => "mask_mod",
        }
    }

    /// What the names of the text begin with in a kernel.
    const fn prefix(self) -> &'static str {
        match self {
            Role::Score => "wgsl_score_",
            Role::Mask => "wgsl_mask_",
        }
    }
}

/// A checked text, as it stands in a kernel: line for line that of the caller.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Snippet {
    pub text: Arc<str>,
    pub role: Role,
    /// What `aux` holds, if it is read.
    pub aux: Option<AuxType>,
    pub has_gradient: bool,
    pub has_loops: bool,
    /// Whether it indexes its own variables with what only run time tells.
    pub has_indices: bool,
    pub max_turns: u32,
}

impl Snippet {
    fn new(text: &str, role: Role, options: WgslOptions) -> Result<Self, WgslFault> {
        let fault = |(at, message): (usize, String)| WgslFault::new(role.function(), text, at, message);
        let tokens = tokens::tokens(text).map_err(fault)?;
        let found = gate::check(text, &tokens, role, options.aux).map_err(fault)?;
        let rewritten = rewrite::rewrite(text, &tokens, role.prefix()).map_err(fault)?;
        let has_indices =
            gate::check_rewritten(&rewritten, role, options.aux).map_err(|message| fault((0, message)))?;
        Ok(Self {
            text: rewritten.into(),
            role,
            aux: found.reads_aux.then_some(options.aux),
            has_gradient: found.has_gradient,
            has_loops: found.has_loops,
            has_indices,
            max_turns: options.max_turns,
        })
    }
}

/// Why a browser's module would refuse a text of `score_mod` (or of `mask_mod`), if it would. It judges by the tokens alone.
pub fn fault_in_browsers(function: &str, text: &str) -> Option<WgslFault> {
    let role = role_of(function);
    let judge = || {
        let tokens = tokens::tokens(text)?;
        scan::scan(&tokens, role)?;
        rewrite::rewrite(text, &tokens, role.prefix())
    };
    judge().err().map(|(at, message)| WgslFault::new(role.function(), text, at, message))
}

/// What a browser's compiler found in a text of `score_mod` (or of `mask_mod`), in its words, at a line and a column.
pub fn fault_of_compiler(function: &str, text: &str, line: u32, column: u32, message: &str) -> WgslFault {
    WgslFault::of_compiler(role_of(function).function(), text, line, column, message)
}

fn role_of(function: &str) -> Role {
    if function == Role::Mask.function() { Role::Mask } else { Role::Score }
}
