/// The compiler that reads the WGSL. The two disagree on `enable subgroups`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Dialect {
    /// naga, the compiler inside wgpu (native, and Firefox).
    #[default]
    Naga,
    /// Tint, the compiler inside Chromium.
    Tint,
}
