//! How a plan is made: check, choose kernels and tiles, measure.

use super::block_lists::{MOST_LISTS, MOST_WORDS, TileLists, block_lists};
use super::builder::{PlanBuilder, Question};
use super::capabilities::Capabilities;
use super::check::check;
use super::choice::{Step, choose, first_step, more_steps, specialize, steps};
use super::chunks::{Chunks, most_keys};
use super::direction::Direction;
use super::kernels::Kernel;
use super::params::Params;
use super::part::Cut;
use super::parts::LONGEST_BINDING;
use super::passes::{Pass, Plan, Source, Stage};
use super::splits;
use super::tables::number_of_lists;
use super::tensor::{Tensor, parts_to_merge, probabilities, tensors};
use super::tiles::Tiles;
use crate::error::{Error, InvalidProblem};
use crate::operand::{Operand, Usage};
use crate::problem::{Algorithm, AttentionProblem, Element, MergeProblem, ProbabilitiesProblem};
use std::ops::Range;

impl Plan {
    /// Makes a plan: the work of [`PlanBuilder::build`].
    pub(super) fn of(builder: &PlanBuilder) -> Result<Self, Error> {
        let whole = Self::attempt(builder, None);
        match (&whole, builder.question) {
            (
                Err(Error::TooLarge { operand: Operand::K | Operand::V, allowed, limit, .. }),
                Question::Forward(problem),
            ) if problem.algorithm == Algorithm::Flash && *limit == LONGEST_BINDING => {
                let binding = allowed.saturating_sub(builder.capabilities.binding_alignment.max(1));
                let keys = most_keys(problem, &tensors(problem, Direction::Forward), binding);
                keys.map_or(whole, |keys| Self::attempt(builder, Some(keys)))
            }
            _ => whole,
        }
    }

    /// A plan whose dispatches visit all keys, or so many.
    fn attempt(builder: &PlanBuilder, keys: Option<u32>) -> Result<Self, Error> {
        let capabilities = builder.capabilities;
        let direction = builder.question.direction();
        let mut plan = match builder.question {
            Question::Forward(problem) | Question::Backward(problem) => {
                builder.check_choices(problem.algorithm)?;
                Self::without_passes(problem, capabilities, direction, tensors(problem, direction))?
            }
            Question::Probabilities(chosen) => {
                builder.check_choices(Algorithm::Standard)?;
                Self::of_probabilities(chosen, capabilities)?
            }
            Question::Append(append) => {
                builder.check_choices(Algorithm::Flash)?;
                Self::of_append(append, capabilities)?
            }
            Question::Merge(merge) => {
                builder.check_choices(Algorithm::Flash)?;
                Self::of_merge(merge, capabilities)?
            }
        };
        plan.chunks = keys.map(|keys| Chunks { keys, splits: 1 });
        let more: Vec<_> = more_steps(direction, &plan.problem).collect();
        let first = first_step(&plan.problem);
        for step in first.into_iter().chain(steps(direction, plan.problem.algorithm)).chain(more) {
            plan.take(step, builder)?;
        }
        plan.shares_buffers = builder.shares_buffers;
        plan.passes.iter_mut().for_each(|pass| pass.specialization.shares_buffers = builder.shares_buffers);
        plan.check_bindings()?;
        plan.lists = plan.list_tiles()?;
        plan.scratch = plan.measure_scratch()?;
        Ok(plan)
    }

    /// A merge: one pass, without tiles.
    fn of_merge(merge: &MergeProblem, capabilities: &Capabilities) -> Result<Self, Error> {
        if merge.parts_element != merge.element && merge.parts_element != Element::F32 {
            return Err(InvalidProblem::PartsElement { element: merge.element, found: merge.parts_element }.into());
        }
        if merge.is_running && (merge.element, merge.parts_element) != (Element::F32, Element::F32) {
            return Err(InvalidProblem::RunningElement(merge.element).into());
        }
        let problem = merge.rows();
        let mut tensors_of_merge = parts_to_merge(merge).to_vec();
        tensors_of_merge.extend(tensors(&problem, Direction::Merge));
        let mut plan = Self::without_passes(&problem, capabilities, Direction::Merge, tensors_of_merge)?;
        plan.num_splits = merge.num_splits;
        let kernel = if merge.is_running { Kernel::Fold } else { Kernel::Combine };
        let mut pass = plan.pass(kernel, Tiles::NONE);
        pass.specialization.parts_in_f32 = merge.parts_element == Element::F32;
        plan.add_stage(vec![pass]);
        Ok(plan)
    }

    /// The plan of probabilities, without passes.
    fn of_probabilities(chosen: &ProbabilitiesProblem, capabilities: &Capabilities) -> Result<Self, Error> {
        if let Some((name, Range { start, end }, count)) = chosen.fault() {
            return Err(InvalidProblem::Chosen { name, start, end, count }.into());
        }
        let problem = &chosen.attention;
        let mut tensors = tensors(problem, Direction::Probabilities);
        tensors.push(probabilities(chosen));
        let mut plan = Self::without_passes(problem, capabilities, Direction::Probabilities, tensors)?;
        plan.chosen = Some((chosen.heads.clone(), chosen.rows.clone()));
        Ok(plan)
    }

    /// A plan without passes, of a problem that is sound and whose tensors the device can hold.
    pub(super) fn without_passes(
        problem: &AttentionProblem,
        capabilities: &Capabilities,
        direction: Direction,
        tensors: Vec<Tensor>,
    ) -> Result<Self, Error> {
        check(problem, direction, &tensors)?;
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
            chunks: None,
            chosen: None,
            append: None,
            lists: Vec::new(),
            tensors,
            shares_buffers: false,
            scratch: Vec::new(),
        })
    }

    /// Adds the passes of a step.
    fn take(&mut self, step: &Step, choices: &PlanBuilder) -> Result<(), Error> {
        let (problem, capabilities) = (&self.problem, &self.capabilities);
        let splits = choices.num_splits.filter(|_| step.tiles.is_some());
        let choose = |tiles| choose(step, problem, capabilities, &self.tensors, tiles, splits);
        // One choice is for all kernels.
        let given = step.tiles.and_then(|index| choices.tiles.get(index).or(choices.tiles.first())).copied();
        let is_tuned = self.direction == Direction::Forward && problem.algorithm == Algorithm::Flash && given.is_none();
        let tuning = choices.tuning.filter(|_| is_tuned);
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
        let mut num_splits = choices.num_splits.unwrap_or_else(by_itself);
        let chunks = self.chunks.map(|Chunks { keys, .. }| {
            let count = problem.shape.seqlen_kv.div_ceil(keys);
            // No fewer than were asked for; no more than fit.
            let splits = choices.num_splits.map_or(num_splits / count, |asked| asked.div_ceil(count));
            Chunks { keys, splits: splits.max(1) }
        });
        if let Some(chunks) = chunks {
            num_splits = chunks.count(problem.shape.seqlen_kv) * chunks.splits;
        }
        let passes = match kernels[0].spec().split.filter(|_| num_splits > 1) {
            Some(kernel) => vec![self.pass(kernel, tiles), self.pass(Kernel::Combine, tiles)],
            None => kernels.iter().map(|&kernel| self.pass(kernel, tiles)).collect(),
        };
        if step.tiles.is_some() {
            (self.source, self.tiles, self.num_splits) = (source, tiles, num_splits);
            self.chunks = chunks;
        }
        self.add_stage(passes);
        Ok(())
    }

    pub(super) fn pass(&self, kernel: Kernel, tiles: Tiles) -> Pass {
        Pass { kernel, specialization: specialize(&self.problem, &self.capabilities, &self.tensors, kernel, tiles) }
    }

    pub(super) fn add_stage(&mut self, passes: Vec<Pass>) {
        let owned: Vec<_> = passes.iter().map(|pass| pass.kernel.spec().owns).collect();
        let first = self.passes.len();
        self.passes.extend(passes);
        self.stages.push(Stage { passes: first..self.passes.len(), cut: Cut::of(&owned, &self.problem) });
    }

    /// Whether the device lets every pass bind its tensors and its uniform.
    fn check_bindings(&self) -> Result<(), Error> {
        let (needed, found) = (size_of::<Params>() as u64, self.capabilities.max_uniform);
        if found < needed && !self.passes.is_empty() {
            return Err(Error::Unsupported {
                feature: "uniforms this large",
                reason: format!(
                    "kernels bind a uniform of {needed} bytes at a dynamic offset, the device allows {found} \
                     (max_uniform_buffer_binding_size; 0 if max_dynamic_uniform_buffers_per_pipeline_layout is 0); WebGPU \
                     promises 65536: ask for a device with FlashAttention::device_descriptor"
                ),
            });
        }
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

    /// The lists of tiles of each pass that has one.
    fn list_tiles(&self) -> Result<TileLists, Error> {
        let passes = self.passes.iter().map(|pass| &pass.specialization).filter(|of| of.has_lists);
        let lists = passes.map(|of| Some((number_of_lists(of), block_lists(&self.problem, of)?)));
        lists.collect::<Option<_>>().ok_or_else(|| Error::Unsupported {
            feature: "lists of tiles this long",
            reason: format!(
                "the block mask has more than {MOST_LISTS} lists, or shows more than {MOST_WORDS} pairs of tiles; make \
                 the sequences shorter, or give all sequences and heads one mask"
            ),
        })
    }
}

impl PlanBuilder<'_> {
    /// Checks that the operation has the choices that were made, on any device.
    fn check_choices(&self, algorithm: Algorithm) -> Result<(), Error> {
        let direction = self.question.direction();
        let refuse = |what, reason: String| Err(Error::InvalidPlan { what, reason });
        let most = match (direction, algorithm) {
            (Direction::Forward | Direction::Probabilities, _) | (Direction::Backward, Algorithm::Standard) => 1,
            (Direction::Backward, Algorithm::Flash) => 2,
            (Direction::Merge | Direction::Append, _) => 0,
        };
        if self.tiles.len() > most {
            return refuse("tiles", format!("{} were given, this operation has at most {most}", self.tiles.len()));
        }
        match (self.num_splits, direction, algorithm) {
            (Some(0), ..) => refuse("num_splits", "0 splits compute nothing; 1 is for no splits".into()),
            (Some(_), Direction::Merge, _) => {
                refuse("num_splits", "MergeProblem::num_splits says how many parts".into())
            }
            (None | Some(1), ..) | (Some(_), Direction::Forward, Algorithm::Flash) => Ok(()),
            (Some(_), ..) => refuse("num_splits", "forward flash attention alone has splits of the keys".into()),
        }
    }
}
