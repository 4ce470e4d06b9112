//! Small data that is not a tensor, in one buffer.

use super::kernels::{Chain, Specialization};
use super::passes::Plan;
use super::tiles::Owns;
use crate::operand::Operand;
use crate::problem::Alignment;

/// Tables that there may be.
const NUMBER: usize = 2 * Chain::LONGEST + 3;

/// The number of a kernel's lists of tiles. Kernels that own rows have other lists than those that own keys.
pub(super) fn number_of_lists(specialization: &Specialization) -> usize {
    match specialization.kernel.spec().owns {
        Owns::Keys => NUMBER - 1,
        Owns::Rows | Owns::Heads | Owns::Entries | Owns::Everything | Owns::Sequences => NUMBER - 2,
    }
}

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
        let of_lengths = problem.lengths().map(|lengths| lengths.table(shape, is_bottom_right));
        let tables = (0..).zip(of_scores).chain((Chain::LONGEST..).zip(of_masks));
        let tables = tables.chain(of_lengths.map(|table| (2 * Chain::LONGEST, table)));
        let tables = tables.chain(self.lists.iter().map(|(number, lists)| (*number, lists.to_vec())));
        let mut words = vec![0; NUMBER];
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
        let of_lengths = self.has_lengths.then_some(("lengths", 2 * Chain::LONGEST));
        of_scores.chain(of_masks).chain(of_lengths).chain(self.has_lists.then(|| ("lists", number_of_lists(self))))
    }
}
