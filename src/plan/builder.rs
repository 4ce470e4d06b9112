//! What a caller asks of a plan. There is no other way to make one.

use super::capabilities::Capabilities;
use super::direction::Direction;
use super::passes::Plan;
use super::tiles::Tiles;
use super::tuning::{self, Tuning};
use crate::error::Error;
use crate::problem::{AppendProblem, AttentionProblem, MergeProblem, ProbabilitiesProblem};

/// What is planned.
#[derive(Clone, Copy, Debug)]
pub(super) enum Question<'a> {
    Forward(&'a AttentionProblem),
    Backward(&'a AttentionProblem),
    Merge(&'a MergeProblem),
    Probabilities(&'a ProbabilitiesProblem),
    Append(&'a AppendProblem),
}

impl Question<'_> {
    pub fn direction(&self) -> Direction {
        match self {
            Question::Forward(_) => Direction::Forward,
            Question::Backward(_) => Direction::Backward,
            Question::Merge(_) => Direction::Merge,
            Question::Probabilities(_) => Direction::Probabilities,
            Question::Append(_) => Direction::Append,
        }
    }
}

/// A plan to be made. The planner chooses what is left out.
///
/// ```
/// use wgpu_flash_attention::{AttentionProblem, AttentionShape, Capabilities, Plan, Tiles};
///
/// let problem = AttentionProblem::new(AttentionShape::new(1, 8, 1024, 64));
/// let capabilities = Capabilities::webgpu_defaults();
/// let plan = Plan::forward(&problem, &capabilities).with_tiles(&[Tiles::new(64, 16, 4, 4)]).with_splits(2).build()?;
/// assert_eq!(plan.num_splits(), 2);
/// # Ok::<(), wgpu_flash_attention::Error>(())
/// ```
#[derive(Clone, Debug)]
#[must_use = "nothing is planned before `build`"]
pub struct PlanBuilder<'a> {
    pub(super) question: Question<'a>,
    pub(super) capabilities: &'a Capabilities,
    pub(super) tiles: Vec<Tiles>,
    pub(super) num_splits: Option<u32>,
    pub(super) tuning: Option<&'a Tuning>,
    pub(super) shares_buffers: bool,
}

impl Plan {
    /// Plans the forward pass of a problem.
    pub fn forward<'a>(problem: &'a AttentionProblem, capabilities: &'a Capabilities) -> PlanBuilder<'a> {
        PlanBuilder::new(Question::Forward(problem), capabilities)
    }

    /// Plans the gradients of a problem.
    pub fn backward<'a>(problem: &'a AttentionProblem, capabilities: &'a Capabilities) -> PlanBuilder<'a> {
        PlanBuilder::new(Question::Backward(problem), capabilities)
    }

    /// Plans a merge of partial results. A merge has no choice of tiles or splits.
    pub fn merge<'a>(merge: &'a MergeProblem, capabilities: &'a Capabilities) -> PlanBuilder<'a> {
        PlanBuilder::new(Question::Merge(merge), capabilities)
    }

    /// Plans the probabilities of chosen heads and rows.
    pub fn probabilities<'a>(chosen: &'a ProbabilitiesProblem, capabilities: &'a Capabilities) -> PlanBuilder<'a> {
        PlanBuilder::new(Question::Probabilities(chosen), capabilities)
    }

    /// Plans an append to a cache. It has no choice of tiles or splits.
    pub fn append<'a>(append: &'a AppendProblem, capabilities: &'a Capabilities) -> PlanBuilder<'a> {
        PlanBuilder::new(Question::Append(append), capabilities)
    }

    /// The tiles worth measuring for a forward problem of flash attention on a device, the planner's own choice first; none
    /// for a problem that is refused.
    pub fn candidates(problem: &AttentionProblem, capabilities: &Capabilities) -> Vec<Tiles> {
        tuning::candidates(problem, capabilities)
    }
}

impl<'a> PlanBuilder<'a> {
    fn new(question: Question<'a>, capabilities: &'a Capabilities) -> Self {
        Self { question, capabilities, tiles: Vec::new(), num_splits: None, tuning: None, shares_buffers: false }
    }

    /// Takes these tiles, not those of the table. One choice is for all kernels. Gradients of flash attention may have two:
    /// one for dK and dV, one for dQ. An empty slice leaves the choice to the planner.
    pub fn with_tiles(mut self, tiles: &[Tiles]) -> Self {
        self.tiles = tiles.to_vec();
        self
    }

    /// Puts the keys in `num_splits` splits (1 for none), whose partial results are merged. Only forward flash attention can
    /// have more than 1.
    pub fn with_splits(mut self, num_splits: u32) -> Self {
        self.num_splits = Some(num_splits);
        self
    }

    /// Prefers tiles that were measured on the device to the planner's table. This changes only forward flash attention.
    pub fn with_tuning(mut self, tuning: &'a Tuning) -> Self {
        self.tuning = Some(tuning);
        self
    }

    /// Whether tensors that are read and tensors that are written may lie in one buffer, apart from each other. See
    /// [`FlashAttention::with_shared_buffers`](crate::FlashAttention::with_shared_buffers).
    pub fn with_shared_buffers(mut self, shared_buffers: bool) -> Self {
        self.shares_buffers = shared_buffers;
        self
    }

    /// Checks the problem and the choices, and makes the plan.
    ///
    /// # Errors
    /// [`Error::InvalidProblem`] if the problem contradicts itself, [`Error::InvalidPlan`] for tiles or splits that no
    /// kernel has on any device, [`Error::TooLarge`] if a tensor passes a limit of the device and no cut helps,
    /// [`Error::TooManyDispatches`] if it would be cut into too many parts, [`Error::Unsupported`] if no kernel, or none
    /// with these tiles, fits the device.
    pub fn build(self) -> Result<Plan, Error> {
        span!("plan");
        let plan = Plan::of(&self)?;
        event!(
            operation = %plan.title(),
            reason = %plan.reason(),
            kernels = ?plan.passes().iter().map(|pass| pass.kernel.name()).collect::<Vec<_>>(),
            tiles = %plan.tiles(),
            num_splits = plan.num_splits(),
            "planned"
        );
        Ok(plan)
    }
}
