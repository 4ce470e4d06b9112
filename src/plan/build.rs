//! How a plan is made: check, choose kernels and tiles, measure.

use super::capabilities::Capabilities;
use super::check::check;
use super::choice::{Step, choose, specialize, steps};
use super::direction::Direction;
use super::kernels::Kernel;
use super::part::Cut;
use super::passes::{Pass, Plan, Source, Stage};
use super::splits;
use super::tensor::{Tensor, parts_to_merge, tensors};
use super::tiles::Tiles;
use super::tuning::{self, Tuning};
use crate::error::{Error, InvalidProblem};
use crate::operand::Usage;
use crate::problem::{Algorithm, AttentionProblem, Element, MergeProblem};

/// What a caller may choose of a plan.
#[derive(Clone, Copy, Default)]
struct Choices<'a> {
    tiles: &'a [Tiles],
    num_splits: Option<u32>,
    tuning: Option<&'a Tuning>,
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
        let mut tensors_of_merge = parts_to_merge(merge).to_vec();
        tensors_of_merge.extend(tensors(&problem, Direction::Merge));
        let mut plan = Self::of(&problem, capabilities, Direction::Merge, tensors_of_merge)?;
        plan.num_splits = merge.num_splits;
        let mut pass = plan.pass(Kernel::Combine, Tiles::NONE);
        pass.specialization.parts_in_f32 = merge.parts_element == Element::F32;
        plan.add_stage(vec![pass]);
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
        let mut plan = Self::of(problem, capabilities, direction, tensors(problem, direction))?;
        for step in steps(direction, problem.algorithm) {
            plan.take(step, &choices)?;
        }
        plan.check_bindings()?;
        plan.scratch = plan.measure_scratch()?;
        Ok(plan)
    }

    /// A plan without passes, of a problem that is sound and whose tensors the device can hold.
    fn of(
        problem: &AttentionProblem,
        capabilities: &Capabilities,
        direction: Direction,
        tensors: Vec<Tensor>,
    ) -> Result<Self, Error> {
        check(problem, &tensors)?;
        for tensor in &tensors {
            let (operand, allowed) = (tensor.operand, capabilities.max_buffer);
            let needed = tensor.bytes().ok_or(InvalidProblem::LayoutOverflows(operand))?;
            if needed > allowed {
                return Err(Error::TooLarge { operand, needed, allowed, limit: "max_buffer_size" });
            }
        }
        Ok(Self {
            problem: problem.clone(),
            direction,
            capabilities: capabilities.clone(),
            passes: Vec::new(),
            stages: Vec::new(),
            tiles: Tiles::NONE,
            source: Source::Table,
            num_splits: 1,
            tensors,
            scratch: Vec::new(),
        })
    }

    /// Adds the passes of a step.
    fn take(&mut self, step: &Step, choices: &Choices) -> Result<(), Error> {
        let (problem, capabilities) = (&self.problem, &self.capabilities);
        let choose = |tiles| choose(step, problem, capabilities, &self.tensors, tiles, choices.num_splits);
        let given = step.tiles.and_then(|index| choices.tiles.get(index)).copied();
        let tuning = choices.tuning.filter(|_| problem.algorithm == Algorithm::Flash && given.is_none());
        let tuned = tuning.and_then(|tuning| tuning.tiles_for(problem).find_map(|tiles| choose(Some(tiles)).ok()));
        let source = match (given, tuned) {
            (Some(_), _) => Source::Caller,
            (None, Some(_)) => Source::Tuning,
            (None, None) => Source::Table,
        };
        let (kernels, tiles) = tuned.map_or_else(|| choose(given), Ok)?;
        let by_itself = || {
            let first = self.pass(kernels[0], tiles).specialization;
            splits::num_splits(&first, problem, capabilities, choices.tuning)
        };
        let num_splits = choices.num_splits.unwrap_or_else(by_itself);
        let passes = match kernels[0].spec().split.filter(|_| num_splits > 1) {
            Some(kernel) => vec![self.pass(kernel, tiles), self.pass(Kernel::Combine, tiles)],
            None => kernels.iter().map(|&kernel| self.pass(kernel, tiles)).collect(),
        };
        (self.source, self.tiles, self.num_splits) = (source, tiles, num_splits);
        self.add_stage(passes);
        Ok(())
    }

    fn pass(&self, kernel: Kernel, tiles: Tiles) -> Pass {
        Pass { kernel, specialization: specialize(&self.problem, &self.capabilities, &self.tensors, kernel, tiles) }
    }

    fn add_stage(&mut self, passes: Vec<Pass>) {
        let owned: Vec<_> = passes.iter().map(|pass| pass.kernel.spec().owns).collect();
        let first = self.passes.len();
        self.passes.extend(passes);
        self.stages.push(Stage { passes: first..self.passes.len(), cut: Cut::of(&owned) });
    }

    /// Whether the device lets every pass bind its tensors.
    fn check_bindings(&self) -> Result<(), Error> {
        let allowed = self.capabilities.max_storage_buffers;
        for Pass { kernel, specialization } in &self.passes {
            let needed = specialization.operands().filter(|(_, usage)| *usage != Usage::Uniform).count();
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
}
