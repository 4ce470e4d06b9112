//! Small data that is not a tensor, in one buffer.

use super::kernels::{Chain, Specialization};
use super::passes::Plan;
use crate::operand::Operand;
use crate::problem::Alignment;

impl Plan {
    /// What [`Operand::Tables`] holds: a word for each modifier of the scores, each mask and the lengths, which says where their
    /// table starts, then the tables. Empty where no pass binds it.
    pub fn tables(&self) -> Vec<u32> {
        let (shape, problem) = (&self.problem.shape, &self.problem);
        if !self.passes.iter().any(|pass| pass.specialization.operands().any(|(operand, _)| operand == Operand::Tables))
        {
            return Vec::new();
        }
        let of_scores = problem.scores().iter().map(|modifier| modifier.table(shape));
        let of_masks = problem.key_masks().iter().map(|mask| mask.table(shape));
        let is_bottom_right = problem.mask.alignment == Alignment::BottomRight;
        let of_lengths = problem.lengths().map(|lengths| lengths.table(is_bottom_right));
        let tables = (0..).zip(of_scores).chain((Chain::LONGEST..).zip(of_masks));
        let tables = tables.chain(of_lengths.map(|table| (2 * Chain::LONGEST, table)));
        let mut words = vec![0; 2 * Chain::LONGEST + 1];
        for (index, table) in tables {
            words[index] = words.len() as u32;
            words.extend(table);
        }
        words
    }
}

impl Specialization {
    /// The name of each table, and the number of the word that says where it starts. It is the same in all kernels, whatever of
    /// the problem they use.
    pub(crate) fn tables(&self) -> impl Iterator<Item = (&'static str, usize)> {
        let of_scores = self.score_mods.names().zip(0..);
        let of_masks = self.key_masks.names().zip(Chain::LONGEST..);
        of_scores.chain(of_masks).chain(self.has_lengths.then_some(("lengths", 2 * Chain::LONGEST)))
    }
}
