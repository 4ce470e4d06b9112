//! Small data that is not a tensor, in one buffer.

use super::passes::Plan;
use crate::operand::Operand;

impl Plan {
    /// What [`Operand::Tables`] holds: for each modifier of the scores a word that says where its table starts, then the
    /// tables. Empty where no pass binds it.
    pub fn tables(&self) -> Vec<u32> {
        let scores = self.problem.scores();
        if !self.passes.iter().any(|pass| pass.specialization.operands().any(|(operand, _)| operand == Operand::Tables))
        {
            return Vec::new();
        }
        let mut words = vec![0; scores.len()];
        for (index, modifier) in scores.iter().enumerate() {
            words[index] = words.len() as u32;
            words.extend(modifier.table(&self.problem.shape));
        }
        words
    }
}
