//! The pieces of a kernel's text: files of `shaders/`.

/// A file.
#[derive(Clone, Copy)]
pub(crate) struct File {
    /// Its path below `shaders/`.
    pub name: &'static str,
    pub text: &'static str,
}

/// The file of this name. If it does not exist, this does not compile. A browser's module holds it without comments and
/// indentation: a page downloads every byte.
#[cfg(not(target_arch = "wasm32"))]
macro_rules! wgsl {
    ($name:expr) => {
        $crate::plan::File { name: $name, text: include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/shaders/", $name)) }
    };
}

#[cfg(target_arch = "wasm32")]
macro_rules! wgsl {
    ($name:expr) => {{
        const WHOLE: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/shaders/", $name));
        const LEN: usize = $crate::plan::shortened::<0>(WHOLE).1;
        const SHORT: [u8; LEN] = $crate::plan::shortened(WHOLE).0;
        const TEXT: &str = match core::str::from_utf8(&SHORT) {
            Ok(text) => text,
            Err(_) => unreachable!(),
        };
        $crate::plan::File { name: $name, text: TEXT }
    }};
}

/// As `wgsl!`, for kernels on cooperative matrices. WebGPU has none, and a page downloads every byte.
macro_rules! matrix_wgsl {
    ($name:expr) => {
        $crate::plan::File {
            text: if cfg!(target_arch = "wasm32") { "" } else { $crate::plan::wgsl!($name).text },
            name: $name,
        }
    };
}

/// A file of `shaders/common/` as a piece.
macro_rules! common {
    ($name:literal) => {
        $crate::plan::Piece::Common($crate::plan::wgsl!(concat!("common/", $name, ".wgsl")))
    };
}

macro_rules! matrix_common {
    ($name:literal) => {
        $crate::plan::Piece::Common($crate::plan::matrix_wgsl!(concat!("common/", $name, ".wgsl")))
    };
}

pub(super) use {common, matrix_common};
pub(crate) use {matrix_wgsl, wgsl};

/// A piece of a kernel's text.
#[derive(Clone, Copy)]
pub(crate) enum Piece {
    /// A file that several kernels have in common.
    Common(File),
    /// One of the files of a slot, which define the same names.
    OneOf(Slot),
}

/// A folder of `shaders/slots/`. The specialization decides which of its files a kernel needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Slot {
    Access,
    Angles,
    BiasHalf,
    CacheSeqlens,
    CachedElement,
    CachedHalf,
    Element,
    F32Store,
    Keep,
    KeyPlace,
    MatrixOperand,
    MatrixParts,
    Output,
    Parts,
    RotaryPairs,
    Rotated,
    RowEnd,
    RowMax,
    RowPlace,
    RowReduce,
    RowSource,
    RowTarget,
    RowUnits,
    RowWords,
    TargetElement,
    TileRead,
    Tokens,
    Visits,
}

/// The first `LEN` bytes of `text` without lines of comment and indentation, and how many bytes that are. Lines keep their
/// numbers, and `unroll` its comments.
#[cfg(any(test, target_arch = "wasm32"))]
pub(crate) const fn shortened<const LEN: usize>(text: &str) -> ([u8; LEN], usize) {
    let text = text.as_bytes();
    let (mut short, mut len, mut at) = ([0; LEN], 0, 0);
    let (mut is_indentation, mut is_comment) = (true, false);
    while at < text.len() {
        let is_end = text[at] == b'\n';
        if is_indentation && text[at] != b' ' {
            is_indentation = false;
            is_comment = has(text, at, b"//") && !has(text, at, b"// unroll ") && !has(text, at, b"// }");
        }
        if is_end || !is_indentation && !is_comment {
            if len < LEN {
                short[len] = text[at];
            }
            len += 1;
        }
        is_indentation = is_indentation || is_end;
        at += 1;
    }
    (short, len)
}

#[cfg(any(test, target_arch = "wasm32"))]
const fn has(text: &[u8], at: usize, word: &[u8]) -> bool {
    let mut index = 0;
    while index < word.len() {
        if at + index >= text.len() || text[at + index] != word[index] {
            return false;
        }
        index += 1;
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_indentation_go_and_lines_stay() {
        const TEXT: &str =
            "// Header.\nfn f() { // one\n  // unroll N in ROWS {\n    x_N = 1; // N\n  // }\n  // two\n\n}\n//";
        const SHORT: &str = "\nfn f() { // one\n// unroll N in ROWS {\nx_N = 1; // N\n// }\n\n\n}\n";
        const LEN: usize = shortened::<0>(TEXT).1;
        assert_eq!(std::str::from_utf8(&shortened::<LEN>(TEXT).0), Ok(SHORT));
    }
}
