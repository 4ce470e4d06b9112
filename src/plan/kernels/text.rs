//! The pieces of a kernel's text: files of `shaders/`.

/// A file.
#[derive(Clone, Copy)]
pub(crate) struct File {
    /// Its path below `shaders/`.
    pub name: &'static str,
    pub text: &'static str,
}

/// The file of this name. If it does not exist, this does not compile.
macro_rules! wgsl {
    ($name:expr) => {
        $crate::plan::File { name: $name, text: include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/shaders/", $name)) }
    };
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
    BiasHalf,
    Element,
    F32Store,
    Keep,
    MatrixOperand,
    MatrixParts,
    Output,
    Parts,
    RowEnd,
    RowReduce,
    RowUnits,
    TileRead,
    Visits,
}
