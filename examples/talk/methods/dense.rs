//! What the dense methods share: tiles, and the text of a kernel.

use wgpu_flash_attention::Element;

use crate::case::Problem;

/// Rows of a tile for each row of invocations.
const GROUP: u32 = 8;

/// Rows of workgroup memory that a tile of V, or of another factor, takes at once.
const SLICE: u32 = 32;

const COMMON: &str = include_str!("../shaders/common.wgsl");

/// Rows of left factors in workgroup memory.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Depth {
    /// A slice, like right factors.
    Slice,
    /// One for each dimension of a head.
    HeadDim,
}

/// Sizes of the kernels, which depend on the problem alone.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tiles {
    head_dim: u32,
    element: Element,
    row_groups: u32,
}

impl Tiles {
    /// The sizes for a problem.
    ///
    /// # Errors
    /// The kernels take head_dim in fours, to 128.
    pub fn of(problem: &Problem) -> Result<Self, String> {
        let head_dim = problem.head_dim;
        if !head_dim.is_multiple_of(4) || !(4..=128).contains(&head_dim) {
            return Err(format!("needs a head_dim that is a multiple of 4, to 128, not {head_dim}"));
        }
        // A workgroup is row_groups · (head_dim / 4 + 1) invocations, and WebGPU promises 256.
        Ok(Self { head_dim, element: problem.element, row_groups: if head_dim <= 64 { 8 } else { 4 } })
    }

    /// Rows, or features, that a workgroup owns.
    pub fn tile(&self) -> u32 {
        GROUP * self.row_groups
    }

    /// Keys whose sum is one state. A multiple of every tile.
    pub fn chunk_len(&self, problem: &Problem) -> u32 {
        // Causal rows meet the keys of their own chunk one by one, so chunks are short. Others need as many chunks as keep the
        // device busy, and states of 64 chunks take little memory.
        if problem.causal { 128 } else { problem.seqlen.div_ceil(64).next_multiple_of(256) }
    }

    /// Quads of a row of the state: V and the sum of weights.
    pub fn columns(&self) -> u32 {
        self.head_dim / 4 + 1
    }

    /// A kernel: its sizes, its element type, the common product, and its own files. `depth` is how many rows of workgroup memory
    /// its left factors need, so that more workgroups fit where few are needed.
    pub fn text(&self, depth: Depth, constants: &[(&str, String)], files: &[&str]) -> String {
        let left_depth = match depth {
            Depth::Slice => SLICE,
            Depth::HeadDim => self.head_dim.max(SLICE),
        };
        let own = constants.iter().map(|(name, value)| format!("const {name} = {value};\n")).collect::<String>();
        let sizes = format!(
            "const HEAD_DIM = {}u;\nconst ROW_GROUPS = {}u;\nconst SLICE = {SLICE}u;\nconst LEFT_DEPTH = {left_depth}u;\n",
            self.head_dim, self.row_groups,
        );
        [&sizes, own.as_str(), element_text(self.element), COMMON].into_iter().chain(files.iter().copied()).collect()
    }
}

/// How four elements lie in a buffer: `Quad`, `decode` and `encode`.
pub fn element_text(element: Element) -> &'static str {
    match element {
        Element::F32 => include_str!("../shaders/element_f32.wgsl"),
        Element::F16 => include_str!("../shaders/element_f16.wgsl"),
        Element::Bf16 => include_str!("../shaders/element_bf16.wgsl"),
        other => crate::elements::unknown(other),
    }
}
