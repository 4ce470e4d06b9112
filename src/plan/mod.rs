//! Which kernels with which tiles and grids answer a problem on a device: pure, tested without a GPU.

mod capabilities;
mod check;
mod choice;
mod direction;
mod dispatch;
mod kernel;
mod params;
mod parts;
mod specialization;
mod splits;
mod tile_table;
mod tiles;
mod tuning;
mod turns;
mod visits;

pub use capabilities::{Capabilities, DeviceClass};
pub use check::{MAX_HEAD_DIM, MAX_LENGTH};
pub use direction::Direction;
pub use dispatch::{Call, Dispatch, Origins, Window};
pub use kernel::{Kernel, Operand, Usage};
pub use params::Params;
pub use specialization::{Access, RowReduce, Specialization, Storage};
pub use tiles::Tiles;
pub use tuning::{TunedTiles, Tuning, Workload};

pub(crate) use tiles::{COMBINE_INVOCATIONS, SOFTMAX_INVOCATIONS};

use crate::error::{Error, InvalidProblem};
use crate::problem::{Algorithm, AttentionProblem, Element, MergeProblem};
use choice::{choose, given_for, specialize, steps};
use visits::visits;

/// One kernel of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Pass {
    /// The kernel.
    pub kernel: Kernel,
    /// Everything that its text depends on.
    pub specialization: Specialization,
}

/// Who chose the tiles of a plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    Table,
    Tuning,
    Caller,
}

/// What a caller may choose of a plan.
#[derive(Clone, Copy, Default)]
struct Choices<'a> {
    tiles: &'a [Tiles],
    num_splits: Option<u32>,
    tuning: Option<&'a Tuning>,
}

/// The passes that answer a problem on a device, the scratch memory they need, and (through [`Plan::dispatches`]) the
/// grids and uniforms of each call.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    problem: AttentionProblem,
    direction: Direction,
    capabilities: Capabilities,
    passes: Vec<Pass>,
    /// Of the last pass, and of all passes that share scores in memory.
    tiles: Tiles,
    /// Who chose them.
    source: Source,
    /// Splits of the keys, or partial results to merge.
    num_splits: u32,
    /// The partial results that the caller gives.
    merge: Option<MergeProblem>,
    scratch: Vec<(Operand, u64)>,
}

impl Plan {
    /// Checks the problem and plans its forward pass.
    ///
    /// # Errors
    /// [`Error::InvalidProblem`] if it contradicts itself, [`Error::TooLarge`] if a tensor passes a limit of the device
    /// and no split helps, [`Error::TooManyDispatches`] if it would be cut into too many parts, [`Error::Unsupported`] if
    /// no kernel fits the device.
    pub fn new(problem: &AttentionProblem, capabilities: &Capabilities) -> Result<Self, Error> {
        Self::build(problem, capabilities, Direction::Forward, Choices::default())
    }

    /// As [`Plan::new`], with what was measured on the device before the planner's own table.
    ///
    /// # Errors
    /// Those of `new`.
    pub fn tuned(problem: &AttentionProblem, capabilities: &Capabilities, tuning: &Tuning) -> Result<Self, Error> {
        let choices = Choices { tuning: Some(tuning), ..Choices::default() };
        Self::build(problem, capabilities, Direction::Forward, choices)
    }

    /// The tiles worth measuring for a flash problem on a device, the planner's own choice first; none for a problem that
    /// is refused.
    pub fn candidates(problem: &AttentionProblem, capabilities: &Capabilities) -> Vec<Tiles> {
        tuning::candidates(problem, capabilities)
    }

    /// As [`Plan::new`], with tiles of the caller's choice instead of the table's: to measure, or to test one meaning
    /// under many tilings.
    ///
    /// # Errors
    /// Those of `new`; [`Error::Unsupported`] for tiles that make no kernel or don't fit the device.
    pub fn with_tiles(problem: &AttentionProblem, capabilities: &Capabilities, tiles: Tiles) -> Result<Self, Error> {
        Self::build(problem, capabilities, Direction::Forward, Choices { tiles: &[tiles], ..Choices::default() })
    }

    /// As [`Plan::new`], with the keys in `num_splits` splits (1 for none), whose partial results are merged; and with
    /// tiles of the caller's choice, if any are given.
    ///
    /// # Errors
    /// Those of [`Plan::with_tiles`]; [`Error::Unsupported`] for splits of an algorithm that has none, and for none.
    pub fn with_splits(
        problem: &AttentionProblem,
        capabilities: &Capabilities,
        tiles: Option<Tiles>,
        num_splits: u32,
    ) -> Result<Self, Error> {
        let choices = Choices { tiles: tiles.as_slice(), num_splits: Some(num_splits), tuning: None };
        Self::build(problem, capabilities, Direction::Forward, choices)
    }

    /// Checks a merge of partial results and plans it.
    ///
    /// # Errors
    /// Those of [`Plan::new`].
    pub fn merge(merge: &MergeProblem, capabilities: &Capabilities) -> Result<Self, Error> {
        if merge.parts_element != merge.element && merge.parts_element != Element::F32 {
            return Err(InvalidProblem::PartsElement { element: merge.element, found: merge.parts_element }.into());
        }
        let problem = merge.rows();
        check::check(&problem, Direction::Merge)?;
        let capabilities = capabilities.clone();
        let tiles = Tiles::NONE;
        let kernel = Kernel::Combine;
        let mut specialization = specialize(&problem, &capabilities, Direction::Merge, kernel, tiles);
        specialization.parts_in_f32 = merge.parts_element == Element::F32;
        if !merge.stride_split.is_multiple_of(4) {
            specialization.access = Access::Single;
        }
        let mut plan = Self {
            problem,
            direction: Direction::Merge,
            capabilities,
            passes: vec![Pass { kernel, specialization }],
            tiles,
            source: Source::Table,
            num_splits: merge.num_splits,
            merge: Some(merge.clone()),
            scratch: Vec::new(),
        };
        plan.check_buffers()?;
        plan.check_bindings()?;
        plan.scratch = plan.measure_scratch()?;
        Ok(plan)
    }

    /// Checks the problem and plans its backward pass.
    ///
    /// # Errors
    /// Those of [`Plan::new`].
    pub fn backward(problem: &AttentionProblem, capabilities: &Capabilities) -> Result<Self, Error> {
        Self::build(problem, capabilities, Direction::Backward, Choices::default())
    }

    /// As [`Plan::backward`], with tiles of the caller's choice for dK and dV, and for dQ. (Standard attention has one
    /// choice for both, the first.)
    ///
    /// # Errors
    /// Those of [`Plan::with_tiles`].
    pub fn backward_with_tiles(
        problem: &AttentionProblem,
        capabilities: &Capabilities,
        tiles: [Tiles; 2],
    ) -> Result<Self, Error> {
        Self::build(problem, capabilities, Direction::Backward, Choices { tiles: &tiles, ..Choices::default() })
    }

    fn build(
        problem: &AttentionProblem,
        capabilities: &Capabilities,
        direction: Direction,
        choices: Choices,
    ) -> Result<Self, Error> {
        check::check(problem, direction)?;
        let mut plan = Self {
            problem: problem.clone(),
            direction,
            capabilities: capabilities.clone(),
            passes: Vec::new(),
            tiles: Tiles::NONE,
            source: Source::Table,
            num_splits: 1,
            merge: None,
            scratch: Vec::new(),
        };
        plan.check_buffers()?;
        for step in steps(problem, capabilities, direction) {
            let own = given_for(&step, choices.tiles);
            let choose = |tiles| choose(&step, problem, capabilities, tiles, choices.num_splits);
            let measured = choices.tuning.filter(|_| problem.algorithm == Algorithm::Flash && own.is_none());
            let measured =
                measured.and_then(|tuning| tuning.tiles_for(problem).find_map(|tiles| choose(Some(tiles)).ok()));
            plan.source = match (own, measured) {
                (Some(_), _) => Source::Caller,
                (None, Some(_)) => Source::Tuning,
                (None, None) => Source::Table,
            };
            let (kernels, tiles) = measured.map_or_else(|| choose(own), Ok)?;
            let pass =
                |kernel| Pass { kernel, specialization: specialize(problem, capabilities, direction, kernel, tiles) };
            plan.tiles = tiles;
            let by_itself = || {
                let first = specialize(problem, capabilities, direction, kernels[0], tiles);
                splits::num_splits(&first, problem, capabilities, choices.tuning)
            };
            plan.num_splits = choices.num_splits.unwrap_or_else(by_itself);
            match kernels[0].split().filter(|_| plan.num_splits > 1) {
                Some(kernel) => plan.passes.extend([pass(kernel), pass(Kernel::Combine)]),
                None => plan.passes.extend(kernels.iter().copied().map(pass)),
            }
        }
        plan.check_bindings()?;
        plan.scratch = plan.measure_scratch()?;
        Ok(plan)
    }

    /// Whether the device lets every pass bind its tensors.
    fn check_bindings(&self) -> Result<(), Error> {
        let allowed = self.capabilities.max_storage_buffers;
        for Pass { kernel, .. } in &self.passes {
            let needed = kernel.operands().iter().filter(|(_, usage)| *usage != Usage::Uniform).count();
            if needed > allowed as usize {
                return Err(Error::Unsupported {
                    feature: "this many storage buffers",
                    reason: format!(
                        "{} binds {needed}, max_storage_buffers_per_shader_stage = {allowed}; WebGPU promises 8: ask for a \
                         device with FlashAttention::device_descriptor",
                        kernel.name()
                    ),
                });
            }
        }
        Ok(())
    }

    /// Whether the device can make buffers for all of the caller's tensors.
    fn check_buffers(&self) -> Result<(), Error> {
        for &operand in self.direction.operands() {
            let needed = self.checked_bytes(operand).ok_or(InvalidProblem::LayoutOverflows(operand))?;
            let allowed = self.capabilities.max_buffer;
            if needed > allowed {
                return Err(Error::TooLarge { operand, needed, allowed, limit: "max_buffer_size" });
            }
        }
        Ok(())
    }

    /// The problem it answers.
    pub fn problem(&self) -> &AttentionProblem {
        &self.problem
    }

    /// The device it was made for.
    pub fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    /// The kernels, in the order in which they run.
    pub fn passes(&self) -> &[Pass] {
        &self.passes
    }

    /// Splits of the keys, whose partial results are merged: 1 for none. (Of a merge, its parts.)
    pub fn num_splits(&self) -> u32 {
        self.num_splits
    }

    /// Forward, backward or merge.
    pub fn direction(&self) -> Direction {
        self.direction
    }

    /// The tiles of its kernels, or of the last one (dQ) where they differ.
    pub fn tiles(&self) -> Tiles {
        self.tiles
    }

    /// Why this kernel and these tiles, in a few words for people.
    pub fn reason(&self) -> String {
        let capabilities = &self.capabilities;
        let kernel = match self.passes.first().map(|pass| pass.kernel) {
            Some(kernel) if kernel.packs_heads() => "few rows share K and V".to_owned(),
            Some(Kernel::FlashForwardCooperative | Kernel::FlashForwardCooperativeSplit) => {
                match self.problem.element {
                    Element::F32 => "f32 on matrices, in two parts".to_owned(),
                    element => format!("{} on matrices", element.name()),
                }
            }
            Some(Kernel::FlashForward | Kernel::FlashForwardSplit) => match capabilities.matrix_side {
                None => "no matrices, or switched off".to_owned(),
                Some(side) => format!("{side}x{side} matrices do not suit device or problem"),
            },
            _ => String::new(),
        };
        let tiles = match self.source {
            Source::Table => "tiles of the table",
            Source::Tuning => "tiles as tuned",
            Source::Caller => "tiles as given",
        };
        [kernel.as_str(), tiles].into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("; ")
    }

    /// Scratch buffers and their bytes. Standard attention: the score matrix, or of as many heads and rows of it as one
    /// storage binding holds. Backward: D. Split keys: the partial results.
    pub fn scratch(&self) -> &[(Operand, u64)] {
        &self.scratch
    }

    /// Whether P, and backward dS, are rounded to f16 before their products: on cooperative matrices, in f16 and bf16
    /// problems, as in CUDA's flash attention. The other kernels keep them in f32, or in two parts of f16.
    pub fn rounds_p(&self) -> bool {
        let is_rounded = |pass: &Pass| pass.kernel.uses_matrices() && pass.specialization.storage.matrix_parts() == 1;
        self.passes.iter().any(is_rounded)
    }

    /// Bytes of all scratch buffers.
    pub fn scratch_bytes(&self) -> u64 {
        self.scratch.iter().fold(0, |sum: u64, (_, bytes)| sum.saturating_add(*bytes))
    }

    /// Bytes of device memory beyond Q, K, V, O and the gradients: LSE and scratch.
    pub fn extra_bytes(&self) -> u64 {
        self.scratch_bytes().saturating_add(self.problem.shape.lse_len().saturating_mul(4))
    }

    /// Bytes that the buffer of `operand` must hold: whole 4-byte words.
    pub fn required_bytes(&self, operand: Operand) -> u64 {
        // `check_buffers` has seen that it does not overflow.
        self.checked_bytes(operand).unwrap_or(u64::MAX)
    }

    /// Elements that the buffer of `operand` must hold.
    pub fn required_len(&self, operand: Operand) -> u64 {
        self.checked_len(operand).unwrap_or(u64::MAX)
    }

    /// Bytes that the kernels read from and write to device memory, counted from the tiles: what one workgroup loads
    /// and stores, with no reuse between workgroups. Caches make the true number smaller. 2⁶⁴ − 1 if there are more.
    pub fn traffic_bytes(&self) -> u64 {
        let shape = &self.problem.shape;
        let heads = u128::from(shape.batch) * u128::from(shape.num_heads);
        let size = u128::from(self.problem.element.size());
        let gradient_size = u128::from(self.problem.gradient_element_in_force().size());
        let (head_dim, head_dim_v) = (u128::from(shape.head_dim), u128::from(shape.head_dim_v));
        let (rows, keys) = (u128::from(shape.seqlen_q), u128::from(shape.seqlen_kv));
        let (q, o, lse) = (rows * head_dim * size, rows * head_dim_v * size, rows * 4);
        let per_head: u128 = self
            .passes
            .iter()
            .map(|pass| {
                let tiles = pass.specialization.tiles;
                let (tile_q, tile_kv) = (u128::from(tiles.tile_q), u128::from(tiles.tile_kv));
                let visits = visits(&self.problem, tiles);
                let (k, v) = (visits * tile_kv * head_dim * size, visits * tile_kv * head_dim_v * size);
                let (q_again, o_again) = (visits * tile_q * head_dim * size, visits * tile_q * head_dim_v * size);
                let s = visits * tile_q * tile_kv * 4;
                let splits = u128::from(self.num_splits);
                let parts = splits * rows * (head_dim_v.next_multiple_of(4) + 1) * 4;
                // Decoding: the rows of a tile, and the heads that share its K and V.
                let group = u128::from(splits::heads_per_kv(&self.problem));
                let shared = (rows * group).div_ceil(tile_q) * keys * (head_dim + head_dim_v) * size / group;
                match pass.kernel {
                    Kernel::FlashForwardSplit | Kernel::FlashForwardCooperativeSplit => splits * q + k + v + parts,
                    Kernel::FlashDecode => q + shared + o + lse,
                    Kernel::FlashDecodeSplit => splits * q + shared + parts,
                    Kernel::Combine => parts + o + lse,
                    Kernel::FlashForward | Kernel::FlashForwardCooperative => q + k + v + o + lse,
                    Kernel::StandardScores => q_again + k + s,
                    // Read for the sums, read and written for the probabilities.
                    Kernel::StandardSoftmax => 3 * s + lse,
                    Kernel::StandardOutput => s + v + o,
                    Kernel::FlashBackwardPreprocess => 2 * o + lse,
                    Kernel::FlashBackwardDkdv | Kernel::FlashBackwardDkdvCooperative => {
                        let own = keys * (head_dim + head_dim_v) * (size + gradient_size);
                        q_again + o_again + visits * tile_q * 8 + own
                    }
                    Kernel::StandardDp => o_again + v + s,
                    Kernel::StandardDs => 4 * s + 2 * lse,
                    Kernel::StandardDv => s + o_again + keys * head_dim_v * gradient_size,
                    Kernel::StandardDk => s + q_again + keys * head_dim * gradient_size,
                    Kernel::StandardDq => s + k + rows * head_dim * gradient_size,
                    Kernel::FlashBackwardDq | Kernel::FlashBackwardDqCooperative => {
                        q + o + 2 * lse + k + v + rows * head_dim * gradient_size
                    }
                }
            })
            .sum();
        u64::try_from(per_head.saturating_mul(heads)).unwrap_or(u64::MAX)
    }
}
