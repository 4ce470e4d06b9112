//! Small data that is not a tensor, in one buffer.

use super::passes::Plan;
use crate::operand::Operand;

impl Plan {
    /// What [`Operand::Tables`] holds: for each modifier of the scores and then for each mask a word that says where its
    /// table starts, then the tables. Empty where no pass binds it.
    pub fn tables(&self) -> Vec<u32> {
        if !self.passes.iter().any(|pass| pass.specialization.operands().any(|(operand, _)| operand == Operand::Tables))
        {
            return Vec::new();
        }
        let (shape, problem) = (&self.problem.shape, &self.problem);
        let of_scores = problem.scores().iter().map(|modifier| modifier.table(shape));
        let tables: Vec<_> = of_scores.chain(problem.key_masks().iter().map(|mask| mask.table(shape))).collect();
        let mut words = vec![0; tables.len()];
        for (index, table) in tables.iter().enumerate() {
            words[index] = words.len() as u32;
            words.extend(table);
        }
        words
    }
}
